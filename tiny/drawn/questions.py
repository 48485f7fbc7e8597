"""Questions about a drawn image: facts in, questions with their answers out. No torch, no images."""

from __future__ import annotations

from random import Random

from tiny.drawn.silhouettes import THINGS
from tiny.drawn.vocabulary import CLASSES, DIGITS, INVENTED, LETTERS, PLACES, SHAPES, TEXTURES
from vlmtune.data.drawn.ink import COLORS
from vlmtune.data.drawn.questions import Question, with_article, yes_no
from vlmtune.data.drawn.questions import caption as scene_caption
from vlmtune.data.drawn.scenes import Facts, Thing

_NUMBERS = ("0", "1", "2", "3", "4")
_POOLS = {
    "digit": DIGITS,
    "letter": LETTERS,
    "shapes": SHAPES,
    "thing": tuple(THINGS),
    "texture": TEXTURES,
    "invented": INVENTED,
}
_KIND_NAMES = {
    "digit": "digit",
    "letter": "letter",
    "shapes": "shape",
    "thing": "photo",
    "texture": "pattern",
    "invented": "object",
}


def questions(facts: Facts, seed: int) -> list[Question]:
    """All questions about an image; the seed decides their order and the claims of yes/no questions."""
    rng = Random(f"questions {seed}")
    makers = {
        "digit": _about_glyph,
        "letter": _about_glyph,
        "shapes": _about_shapes,
        "thing": _about_thing,
        "texture": _about_texture,
        "invented": _about_invented,
    }
    items = makers[facts.kind](facts, rng)
    items.append(Question("Describe the picture.", caption(facts), "caption"))
    rng.shuffle(items)
    return items


def caption(facts: Facts) -> str:
    """One short line that says what the image shows."""
    if facts.kind == "texture":
        return f"{facts.color} {facts.label} on {facts.background}"
    if facts.kind == "invented":
        return f"{with_article(facts.label or '')}, {facts.background}"
    if facts.kind == "thing":
        return f"{with_article(f'{facts.color} {facts.label}')}, {facts.background}"
    names = [f"{thing.color} {thing.name}" for thing in facts.things]
    if len(names) > 1 and len(set(names)) == 1:
        return f"{len(names)} {names[0]}s on {facts.background}"
    return scene_caption(facts)


def class_list(facts: Facts, rng: Random, most: int = 12) -> tuple[list[str], str] | None:
    """A closed set of labels in a random order, the right one among them: (labels, answer).

    Most lists hold names of the image's kind, some are mixed with unrelated words, some ask for a color, a place or
    the kind of image. None where the image has no single name.
    """
    choice = rng.random()
    if choice < 0.06:
        return _shuffled(list(_KIND_NAMES.values()), _KIND_NAMES[facts.kind], rng)
    if facts.color and choice < 0.16:
        return _listed(tuple(COLORS), facts.color, rng, rng.randint(2, len(COLORS)))
    if facts.kind in ("thing", "invented") and choice < 0.22:
        return _listed(PLACES, facts.background, rng, rng.randint(2, len(PLACES)))
    if facts.label is None:
        return None
    if facts.kind == "digit" and choice < 0.75:
        # The whole set in its usual order is the most common request.
        return list(DIGITS), facts.label
    pool = _POOLS[facts.kind]
    if choice > 0.85:
        pool = CLASSES
    elif facts.kind in ("thing", "invented") and choice > 0.6:
        pool = (*THINGS, *INVENTED)
    return _listed(pool, facts.label, rng, rng.randint(2, most))


def _listed(pool: tuple[str, ...], answer: str, rng: Random, count: int) -> tuple[list[str], str]:
    others = [word for word in rng.sample(pool, min(count, len(pool))) if word != answer][: count - 1]
    return _shuffled([*others, answer], answer, rng)


def _shuffled(labels: list[str], answer: str, rng: Random) -> tuple[list[str], str]:
    rng.shuffle(labels)
    return labels, answer


def _other(pool: tuple[str, ...], word: str, rng: Random) -> str:
    """The claim of a yes/no question: the word itself half of the time, else another one."""
    return word if rng.random() < 0.5 else rng.choice([other for other in pool if other != word])


def _about_glyph(facts: Facts, rng: Random) -> list[Question]:
    kind, label = facts.kind, facts.label or ""
    guess = _other(_POOLS[kind], label, rng)
    return [
        Question(f"Which {kind} is this?", label, "name"),
        Question("What is written here?", label, "name"),
        yes_no(f"Is this the {kind} {guess}?", guess == label),
        Question("Is this a letter or a digit?", kind, "kind"),
        Question("Is it printed or handwritten?", facts.writing, "writing"),
        Question(f"What color is the {kind}?", facts.color, "color"),
        Question("What color is the background?", facts.background, "color"),
    ]


def _about_shapes(facts: Facts, rng: Random) -> list[Question]:
    things = facts.things
    count = str(len(things))
    items = [
        Question("How many shapes are there?", count, "count"),
        Question("What color is the background?", facts.background, "color"),
    ]
    guess = _other(_NUMBERS[1:], count, rng)
    items.append(yes_no(f"Are there {guess} shapes?" if guess != "1" else "Is there one shape?", guess == count))
    names = [thing.name for thing in things]
    one = rng.choice(things)
    guess = _other(SHAPES, one.name, rng)
    items.append(yes_no(f"Is there {with_article(guess)}?", guess in names))
    if len(set(names)) == 1:
        plural = "s are" if len(names) > 1 else " is"
        items.append(Question("What shape is this?" if len(names) == 1 else "What shapes are these?", names[0], "name"))
        items.append(
            Question(
                f"What color {plural.strip() if len(names) == 1 else 'are'} the shape{'s' if len(names) > 1 else ''}?",
                one.color,
                "color",
            )
        )
        if len(names) > 1:
            items.append(Question(f"How many {one.name}s are there?", count, "count"))
        return items
    items.append(Question(f"What color is the {one.name}?", one.color, "color"))
    items.append(Question(f"Which shape is {one.color}?", one.name, "name"))
    first, second = rng.sample(things, 2)
    items.extend(_where(first, second))
    return items


def _where(first: Thing, second: Thing) -> list[Question]:
    """The relative position of two things, if it is clear."""
    items = []
    if abs(first.x - second.x) > 0.2:
        items.append(yes_no(f"Is the {first.name} left of the {second.name}?", first.x < second.x))
        side = "left" if first.x < second.x else "right"
        items.append(Question(f"Is the {first.name} left or right of the {second.name}?", side, "position"))
    if abs(first.y - second.y) > 0.2:
        items.append(yes_no(f"Is the {first.name} above the {second.name}?", first.y < second.y))
        side = "above" if first.y < second.y else "below"
        items.append(Question(f"Is the {first.name} above or below the {second.name}?", side, "position"))
    return items


def _about_thing(facts: Facts, rng: Random) -> list[Question]:
    label = facts.label or ""
    guess = _other(tuple(THINGS), label, rng)
    return [
        Question("What is in the picture?", label, "name"),
        Question("What is this?", label, "name"),
        yes_no(f"Is this {with_article(guess)}?", guess == label),
        Question(f"What color is the {label}?", facts.color, "color"),
        Question("Where is it?", facts.background, "place"),
    ]


def _about_texture(facts: Facts, rng: Random) -> list[Question]:
    label = facts.label or ""
    guess = _other(TEXTURES, label, rng)
    return [
        Question("What pattern is this?", label, "name"),
        yes_no(f"Is the pattern {guess}?", guess == label),
    ]


def _about_invented(facts: Facts, rng: Random) -> list[Question]:
    label = facts.label or ""
    guess = _other(INVENTED, label, rng)
    return [
        Question("What is in the picture?", label, "name"),
        Question("What is this?", label, "name"),
        yes_no(f"Is this {with_article(guess)}?", guess == label),
        Question("Where is it?", facts.background, "place"),
    ]
