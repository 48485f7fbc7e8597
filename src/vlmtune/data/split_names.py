"""The usual names of splits and their roles; slices of splits, as in `train+validation[:-10240]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vlmtune.config.schema import DataSection
from vlmtune.errors import DataError, unknown_name

Role = Literal["train", "validation", "test"]
ROLES: tuple[Role, ...] = ("train", "validation", "test")

SPLIT_ROLES: dict[str, Role] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_PART = re.compile(r"(?P<name>.+?)(?:\[(?P<start>-?\d+)?:(?P<stop>-?\d+)?\])?")


@dataclass(frozen=True, slots=True)
class SplitPart:
    """A split, or the rows of it from ``start`` to before ``stop`` as Python slices a list."""

    name: str
    start: int | None = None
    stop: int | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


def parse_split(text: str, names: Iterable[str] = ()) -> list[SplitPart]:
    """Parse a split's name in an experiment file: `NAME`, `NAME[a:b]`, or several joined by `+`.

    A split among ``names`` with exactly this name takes precedence. Raises DataError for an empty part.
    """
    if text in names:
        return [SplitPart(text)]
    parts = []
    for piece in text.split("+"):
        match = _PART.fullmatch(piece.strip())
        if match is None:
            raise DataError(f"'{text}' is not a split. Expected NAME, NAME[a:b], or several joined by '+'.")
        start, stop = (None if match[key] is None else int(match[key]) for key in ("start", "stop"))
        parts.append(SplitPart(match["name"], start, stop))
    return parts


def split_names(data: DataSection) -> set[str]:
    """The names of all splits that an experiment names."""
    given = (data.train_split, data.validation_split, data.test_split)
    return {part.name for text in given if text is not None for part in parse_split(text)}


def assign_roles(data: DataSection, names: Iterable[str], where: str) -> dict[Role, str]:
    """The training, validation and test splits of a source, in the syntax of `parse_split`.

    Splits named in the experiment file come first; the others are recognized by their usual names. A source with
    one split of any other name is all training images. A role without a split is missing from the result.

    Raises DataError on an unknown name, on one whole split in two roles, and when no split is clearly the training one.
    (Overlap of slices of one split is checked when they are read.)
    """
    names = list(names)
    given: dict[Role, str | None] = {
        "train": data.train_split,
        "validation": data.validation_split,
        "test": data.test_split,
    }
    roles: dict[Role, str] = {}
    used: set[SplitPart] = set()
    for role, name in given.items():
        if name is None:
            continue
        for part in parse_split(name, names):
            if part.name not in names:
                raise DataError(f"{where}: {unknown_name('split', part.name, names)} Correct data.{role}_split.")
            if part in used:
                raise DataError(
                    f"{where}: the split '{name}' is given two roles, so the model would be measured on "
                    f"images it learned from. Give each of data.train_split, validation_split and test_split its own."
                )
            used.add(part)
        roles[role] = name
    for role in ROLES:
        if role in roles:
            continue
        taken = {part.name for part in used} | set(roles.values())
        free = [name for name in names if name not in taken]
        for name in sorted(
            free, key=lambda name: list(SPLIT_ROLES).index(name.lower()) if name.lower() in SPLIT_ROLES else 99
        ):
            if SPLIT_ROLES.get(name.lower()) == role:
                roles[role] = name
                break
    if "train" not in roles:
        taken = {part.name for part in used} | set(roles.values())
        free = [name for name in names if name not in taken]
        if len(free) == 1:
            roles["train"] = free[0]
        elif len(free) > 1:
            raise DataError(
                f"{where}: none of its splits is called 'train': {', '.join(names)}. Set data.train_split to one."
            )
    return roles
