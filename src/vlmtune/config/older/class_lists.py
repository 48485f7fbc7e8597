"""Class lists written into a prompt by hand: found, and replaced by `{labels}`. Called by `convert`.

A list is a run of bulleted lines, or names joined by commas. It may spell a class differently than the answer does
("aquarium fish" for aquarium_fish, in the system prompt one way and in the user prompt another).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_BULLET = re.compile(r"(?P<bullet>[ \t]*[-*•][ \t]+)(?P<item>\S.*?)[ \t]*")
_LONGEST_NAME = 60
"""Longer lines are sentences, such as rules to follow."""
_PLACEHOLDER = "{labels}"


@dataclass(frozen=True)
class FoundList:
    """A prompt whose class list became `{labels}`.

    Attributes:
        prompt: with the placeholder.
        spellings: class -> its spelling in the list, if different.
        num: items of the list.
        unknown: items that are not a class. missing: classes that are not in the list.
    """

    prompt: str
    spellings: dict[str, str] = field(default_factory=dict)
    num: int = 0
    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def find_list(prompt: str, names: Sequence[str] | None) -> FoundList | None:
    """The class list of a prompt.

    Args:
        prompt: system or user prompt.
        names: the classes; None if only the data have them: then the longest bulleted list is taken.

    Returns None if there is none.
    """
    bulleted = _bulleted(prompt, names)
    return bulleted if bulleted is not None or names is None else _joined(prompt, names)


def _bulleted(prompt: str, names: Sequence[str] | None) -> FoundList | None:
    """The list with the most classes in it."""
    lines = prompt.split("\n")
    best: tuple[int, int, int] | None = None
    for start, end in _runs(lines):
        items = _items(lines[start:end])
        score = len(items) if names is None else len({_plain(item) for item in items} & {_plain(n) for n in names})
        if score > 1 and (best is None or score > best[0]):
            best = (score, start, end)
    if best is None:
        return None
    _, start, end = best
    first = _BULLET.fullmatch(lines[start])
    assert first is not None
    replaced = "\n".join([*lines[:start], first["bullet"] + _PLACEHOLDER, *lines[end:]])
    return _compared(replaced, _items(lines[start:end]), names)


def _runs(lines: list[str]) -> list[tuple[int, int]]:
    """Start and end of every run of at least two bulleted lines."""
    runs, start = [], 0
    for index in range(len(lines) + 1):
        match = _BULLET.fullmatch(lines[index]) if index < len(lines) else None
        if match is None or len(match["item"]) > _LONGEST_NAME:
            if index - start > 1:
                runs.append((start, index))
            start = index + 1
    return runs


def _items(lines: list[str]) -> list[str]:
    return [match["item"] for line in lines if (match := _BULLET.fullmatch(line))]


def _joined(prompt: str, names: Sequence[str]) -> FoundList | None:
    """All names in their order, joined by commas or "or", within a line."""
    words = ["(" + r"[ _-]".join(map(re.escape, re.split(r"[\s_-]+", name))) + ")" for name in names]
    match = re.search(
        r"(?<!\w)" + r"(?:\s*,\s*|,?\s+)(?:(?:or|and)\s+)?".join(words) + r"(?!\w)", prompt, re.IGNORECASE
    )
    if match is None or len(names) < 2:
        return None
    return _compared(prompt[: match.start()] + _PLACEHOLDER + prompt[match.end() :], list(match.groups()), names)


def _compared(prompt: str, items: list[str], names: Sequence[str] | None) -> FoundList:
    if names is None:
        return FoundList(prompt, num=len(items))
    by_plain = {_plain(name): name for name in names}
    known = {by_plain[_plain(item)]: item for item in items if _plain(item) in by_plain}
    return FoundList(
        prompt,
        {name: item for name, item in known.items() if item != name},
        len(items),
        tuple(item for item in items if _plain(item) not in by_plain),
        tuple(name for name in names if name not in known),
    )


def _plain(name: str) -> str:
    """A name without what spellings differ in: case and word separators."""
    return re.sub(r"[\s_-]+", " ", name).strip(" .,;\"'`").casefold()
