"""Questions about plain scenes: colour, shape, count, left or right, letter, yes or no. Facts in, questions out.

Fewer kinds than `questions` asks in pretraining, in its words, and every thing of a scene is asked about: which colour
belongs to which shape is what the built-in model has to learn here.
"""

from __future__ import annotations

from random import Random

from vlmtune.data.drawn.facts import Facts, Thing
from vlmtune.data.drawn.plain_scenes import MOST_SHAPES, PLAIN_COLORS, PLAIN_LETTERS, PLAIN_SHAPES
from vlmtune.data.drawn.questions import Question

_CLEARLY_APART = 0.2
"""Of the side: things nearer than this are neither left nor right of each other."""


def plain_questions(facts: Facts, rng: Random) -> list[Question]:
    """All questions about a scene in a random order. `type` is color, shape, count, position, letter or yes/no."""
    asked = [Question("What color is the background?", facts.place, "color")]
    asked += _about_letter(facts, rng) if facts.kind == "letter" else _about_shapes(facts, rng)
    rng.shuffle(asked)
    return asked


def _about_letter(facts: Facts, rng: Random) -> list[Question]:
    (thing,) = facts.things
    guess = _guess(PLAIN_LETTERS, [thing.name], rng)
    return [
        Question("Which letter is this?", thing.name, "letter"),
        Question("What color is the letter?", thing.color, "color"),
        _yes_no(f"Is this the letter {guess}?", guess == thing.name),
    ]


def _about_shapes(facts: Facts, rng: Random) -> list[Question]:
    names, colors = [thing.name for thing in facts.things], [thing.color for thing in facts.things]
    guess = _guess(PLAIN_SHAPES, names, rng)
    number = _guess(tuple(str(i + 1) for i in range(MOST_SHAPES)), [str(len(names))], rng)
    asked = [
        Question("How many shapes are there?", str(len(names)), "count"),
        _yes_no("Is there one shape?" if number == "1" else f"Are there {number} shapes?", number == str(len(names))),
        _yes_no(f"Is there a {guess}?", guess in names),
    ]
    for thing in facts.things:
        guess = _guess(PLAIN_COLORS if len(names) == 1 else tuple(colors), [thing.color], rng)
        asked += [
            Question(f"What color is the {thing.name}?", thing.color, "color"),
            Question(f"Which shape is {thing.color}?", thing.name, "shape"),
            _yes_no(f"Is the {thing.name} {guess}?", guess == thing.color),
        ]
    if len(names) == 2:
        # Of two, a thing's own place says on which side of the other it is.
        first, second = rng.sample(facts.things, 2)
        asked += _where(first, second, rng)
    return asked


def _where(first: Thing, second: Thing, rng: Random) -> list[Question]:
    asked = []
    for word, opposite, low, high in (("left", "right", first.x, second.x), ("above", "below", first.y, second.y)):
        if abs(low - high) > _CLEARLY_APART:
            of = " of" if word == "left" else ""
            answer = word if low < high else opposite
            asked.append(
                Question(f"Is the {first.name} {word} or {opposite}{of} the {second.name}?", answer, "position")
            )
            said = rng.choice((word, opposite))
            asked.append(_yes_no(f"Is the {first.name} {said}{of} the {second.name}?", said == answer))
    return asked


def _guess(pool: tuple[str, ...], true: list[str], rng: Random) -> str:
    """What a yes/no question asks about: something true half of the time."""
    others = [word for word in pool if word not in true]
    return rng.choice(true) if rng.random() < 0.5 or not others else rng.choice(others)


def _yes_no(question: str, is_true: bool) -> Question:
    return Question(question, "yes" if is_true else "no", "yes/no")
