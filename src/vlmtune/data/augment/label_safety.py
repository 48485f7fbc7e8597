"""Random changes that would make an answer false, where it depends on a side, writing or a color.

Called by training where `train.augment` mirrors, rotates far or changes colors, and by preflight, which reports it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmtune.config.augmentation import AugmentStep, settings_of
from vlmtune.errors import UserError
from vlmtune.records import Example, LabelSet

_SIDES = {"left", "right", "leftmost", "rightmost", "clockwise", "counterclockwise", "anticlockwise"}
_WRITING = {
    *("letter", "letters", "word", "words", "text", "written", "write", "says", "say", "spell", "spells", "spelled"),
    *("read", "reads", "sign", "digit", "digits", "time", "clock"),
}
_COLORS = {
    *("color", "colors", "colour", "colours", "coloured", "colored"),
    *("red", "green", "blue", "yellow", "orange", "purple", "violet", "pink", "brown", "black", "white"),
    *("gray", "grey"),
}
_DIGITS = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
_WORD = re.compile(r"[a-z0-9]+")


def sided_labels(labels: LabelSet) -> str | None:
    """Why images of these labels must not be mirrored, in words; None if they may."""
    words = [(form, _words(form)) for form in (forms[0] for forms in labels.shown)]
    sided = [form for form, parts in words if parts & _SIDES]
    if sided:
        return f"the label '{sided[0]}' names a side"
    # 'letter b' and 'digit 3' as well as 'b' and '3'.
    written = [form for form, parts in words if _is_character(parts - {"letter", "digit", "number"})]
    if len(written) * 2 > len(words):
        return f"{len(written)} of {len(words)} labels are letters or digits, such as '{written[0]}'"
    return None


def refuse_flips(steps: Sequence[AugmentStep], labels: LabelSet | None) -> None:
    """Raises UserError where `train.augment` mirrors images whose labels would not stay true."""
    reason = sided_labels(labels) if labels is not None else None
    if reason and any(name == "flip" and not settings["anyway"] for name, settings in map(settings_of, steps)):
        raise UserError(
            f"train.augment: flip would mirror the images, but {reason}. Leave it out (crop instead of flip-crop); "
            "if a mirrored image keeps its label nevertheless, write it as {flip: {anyway: 1}}."
        )


def colored_labels(labels: LabelSet) -> str | None:
    """Why colors in images of these labels must stay, in words; None if they may change."""
    colored = [forms[0] for forms in labels.shown if _words(forms[0]) & _COLORS]
    if len(colored) * 2 <= len(labels):  # one 'red panda' among many animals does not depend on color
        return None
    return f"{len(colored)} of {len(labels)} labels name a color, such as '{colored[0]}'"


def has_sides(example: Example) -> bool:
    """Whether a question, its answers, or earlier turns mention left and right; or a question mentions writing."""
    questions, answers = _question_words(example)
    return bool(questions & (_SIDES | _WRITING) or answers & _SIDES)


def has_colors(example: Example) -> bool:
    """Whether a question, its answers, or earlier turns mention a color."""
    questions, answers = _question_words(example)
    return bool((questions | answers) & _COLORS)


def _question_words(example: Example) -> tuple[set[str], set[str]]:
    """The words of the questions, and of the answers; none where the example has no question of its own."""
    if example.question is None:
        return set(), set()
    questions = [example.question, *(question for question, _ in example.history)]
    answers = [*example.answers, *(answer for _, answer in example.history)]
    return _words(" ".join(questions)), _words(" ".join(answers))


def _is_character(words: set[str]) -> bool:
    return len(words) == 1 and all(len(word) == 1 or word in _DIGITS for word in words)


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold().replace("_", " ")))
