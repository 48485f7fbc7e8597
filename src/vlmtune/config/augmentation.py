"""The values of `train.augment`: names of random changes with settings, and the chains that older names stand for.

In: text, or a list of names and `{name: {setting: value}}`. Out: the same as one list of steps, chains spelled out.
`data/augment/` applies them to images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator

from vlmtune.errors import unknown_name


class Setting(NamedTuple):
    """A numeric setting of a change, with its default and bounds."""

    default: float
    low: float
    high: float


_ANYWAY = Setting(0, 0, 1)

CHANGES: Mapping[str, Mapping[str, Setting]] = {
    "random-crop": {"min_area": Setting(0.64, 0.05, 1)},
    "color": {"strength": Setting(0.3, 0, 1)},
    "flip": {"probability": Setting(0.5, 0, 1), "anyway": _ANYWAY},
    "shift-rotate": {"degrees": Setting(12, 0, 45), "shift": Setting(0.08, 0, 0.5), "scale": Setting(0.1, 0, 0.5)},
    "randaugment": {"ops": Setting(2, 1, 8), "magnitude": Setting(9, 0, 30)},
    "trivialaugment": {},
}
"""Name -> its settings. `anyway` permits a flip even if answers seem to depend on left and right, or on letters."""

CHAINS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "crop": ("random-crop", "color"),
    "flip-crop": ("flip", "random-crop", "color"),
}
"""Names for sequences of changes, for the short form of the key."""


def _spell_out(value: Any) -> Any:
    """One text as a list, chains as their changes; anything else is left for pydantic to reject."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        return value
    return [step for entry in value for step in (CHAINS.get(entry, (entry,)) if isinstance(entry, str) else (entry,))]


AugmentStep = str | dict[str, dict[str, bool | float]]
AugmentSteps = Annotated[list[AugmentStep], BeforeValidator(_spell_out)]


def settings_of(step: AugmentStep) -> tuple[str, dict[str, float]]:
    """A step's name and all its settings, those left out at their defaults."""
    name, given = (step, {}) if isinstance(step, str) else next(iter(step.items()))
    return name, {key: setting.default for key, setting in CHANGES[name].items()} | dict(given)


def find_mistakes(steps: Sequence[AugmentStep]) -> Iterator[tuple[int, str]]:
    """(number of the step, its error) for names and settings that do not exist or are out of bounds."""
    for index, step in enumerate(steps):
        if isinstance(step, dict) and len(step) != 1:
            yield index, f"found {len(step)} names in one step, expected one: - randaugment: {{magnitude: 9}}."
            continue
        name, given = (step, {}) if isinstance(step, str) else next(iter(step.items()))
        if name not in CHANGES:
            yield index, unknown_name("augmentation", name, [*CHANGES, *CHAINS])
            continue
        for key, value in given.items():
            if key not in CHANGES[name]:
                yield index, unknown_name(f"setting of {name}", key, CHANGES[name])
            elif not CHANGES[name][key].low <= value <= CHANGES[name][key].high:
                _, low, high = CHANGES[name][key]
                yield index, f"found {key}: {value:g}, expected a number from {low:g} to {high:g}."
