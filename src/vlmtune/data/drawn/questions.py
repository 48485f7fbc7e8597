"""Questions about plain scenes (color, shape, count, left or right, letter, yes or no), and their captions.

Mostly what a tiny model sees at once (how many, which letter, what is on the left); for two or three shapes also what
it learns late: which color belongs to which, and how they are arranged.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vlmtune.data.drawn.scenes import FOREGROUNDS, LETTERS, MAX_SHAPES, SHAPES, Facts, Thing

_CLEARLY_APART = 0.2
"""Share of the side: nearer things are neither left nor right of each other."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene, of `type` `color`, `count`, `yes/no`…"""

    question: str
    answer: str
    type: str


def scene_questions(facts: Facts, rng: Random) -> list[Question]:
    """All questions about a scene in a random order. `type` is color, shape, count, position, letter or yes/no."""
    questions = [Question("What color is the background?", facts.background, "color")]
    questions += _about_letter(facts, rng) if facts.kind == "letter" else _about_shapes(facts, rng)
    rng.shuffle(questions)
    return questions


def caption(facts: Facts) -> str:
    """One short line that says what a scene shows: a character, or shapes."""
    if facts.writing:
        return f"a {facts.writing} {facts.kind} {facts.label}, {facts.color} on {facts.background}"
    return " and ".join(with_article(f"{s.color} {s.name}") for s in facts.things) + f" on {facts.background}"


def _about_letter(facts: Facts, rng: Random) -> list[Question]:
    (thing,) = facts.things
    guess = _guess(LETTERS, [thing.name], rng)
    return [
        Question("Which letter is this?", thing.name, "letter"),
        Question("What color is the letter?", thing.color, "color"),
        yes_no(f"Is this the letter {guess}?", guess == thing.name),
    ]


def _about_shapes(facts: Facts, rng: Random) -> list[Question]:
    names, colors = [thing.name for thing in facts.things], [thing.color for thing in facts.things]
    guess, color = _guess(SHAPES, names, rng), _guess(FOREGROUNDS, colors, rng)
    number = _guess(tuple(str(i + 1) for i in range(MAX_SHAPES)), [str(len(names))], rng)
    questions = [
        Question("How many shapes are there?", str(len(names)), "count"),
        yes_no("Is there one shape?" if number == "1" else f"Are there {number} shapes?", number == str(len(names))),
        yes_no(f"Is there a {guess}?", guess in names),
        yes_no(f"Is there {with_article(color)} shape?", color in colors),
    ]
    if len(names) == 1:
        questions.append(Question("What shape is this?", names[0], "shape"))
        questions.append(Question("What color is the shape?", colors[0], "color"))
    else:
        # The hard one: which color belongs to which shape.
        thing = rng.choice(facts.things)
        questions.append(Question(f"What color is the {thing.name}?", thing.color, "color"))
    if len(names) == 2:
        first, second = rng.sample(facts.things, 2)
        questions += _where(first, second, rng)
    return questions


def _where(first: Thing, second: Thing, rng: Random) -> list[Question]:
    """Questions about two things: what is on a side, and on which side of the other a thing is."""
    questions = []
    if abs(first.x - second.x) > _CLEARLY_APART:
        side, thing = rng.choice((("left", min(first, second, key=_x)), ("right", max(first, second, key=_x))))
        questions.append(Question(f"What color is the shape on the {side}?", thing.color, "color"))
        questions.append(Question(f"Which shape is on the {side}?", thing.name, "shape"))
        answer = "left" if first.x < second.x else "right"
        words = f"Is the {first.name} left or right of the {second.name}?"
        questions.append(Question(words, answer, "position"))
        side = rng.choice(("left", "right"))
        questions.append(yes_no(f"Is the {first.name} {side} of the {second.name}?", side == answer))
    if abs(first.y - second.y) > _CLEARLY_APART:
        side, thing = rng.choice((("top", min(first, second, key=_y)), ("bottom", max(first, second, key=_y))))
        questions.append(Question(f"What color is the shape at the {side}?", thing.color, "color"))
        questions.append(Question(f"Which shape is at the {side}?", thing.name, "shape"))
    return questions


def _x(thing: Thing) -> float:
    return thing.x


def _y(thing: Thing) -> float:
    return thing.y


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _guess(pool: tuple[str, ...], true: list[str], rng: Random) -> str:
    """The claim of a yes/no question, true half of the time."""
    others = [word for word in pool if word not in true]
    return rng.choice(true) if rng.random() < 0.5 or not others else rng.choice(others)


def yes_no(question: str, is_true: bool) -> Question:
    return Question(question, "yes" if is_true else "no", "yes/no")
