"""The usual names of splits and the part each plays."""

from __future__ import annotations

from collections.abc import Iterable
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


def assign_roles(data: DataSection, names: Iterable[str], where: str) -> dict[Role, str]:
    """Which split of a source is trained on, validated on and tested on.

    Splits named in the experiment file come first; the others are recognised by their usual names. A source with
    one split of any other name is all training pictures. A role that no split plays is missing from the result.
    Raises DataError on an unknown name, on one split in two roles, and when no training split can be told.
    """
    names = list(names)
    asked: dict[Role, str | None] = {
        "train": data.train_split,
        "validation": data.validation_split,
        "test": data.test_split,
    }
    roles: dict[Role, str] = {}
    for role, name in asked.items():
        if name is None:
            continue
        if name not in names:
            raise DataError(f"{where}: {unknown_name('split', name, names)} Correct data.{role}_split.")
        if name in roles.values():
            raise DataError(
                f"{where}: the split '{name}' is asked for in two roles, so the model would be measured on pictures "
                f"it learned from. Give each of data.train_split, validation_split and test_split its own."
            )
        roles[role] = name
    for role in ROLES:
        if role in roles:
            continue
        free = [name for name in names if name not in roles.values()]
        for name in sorted(
            free, key=lambda name: list(SPLIT_ROLES).index(name.lower()) if name.lower() in SPLIT_ROLES else 99
        ):
            if SPLIT_ROLES.get(name.lower()) == role:
                roles[role] = name
                break
    if "train" not in roles:
        free = [name for name in names if name not in roles.values()]
        if len(free) == 1:
            roles["train"] = free[0]
        elif len(free) > 1:
            raise DataError(
                f"{where}: none of its splits is called 'train': {', '.join(names)}. Set data.train_split to one."
            )
    return roles
