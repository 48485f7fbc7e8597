"""Frozen configuration records with the checkpoint's own field names, read from and written to `config.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self, get_type_hints

from vlmtune.errors import WeightsError


@dataclass(frozen=True)
class ModelConfig:
    """Base of all network configurations. Keys of `config.json` that no field names are kept out, not errors:
    checkpoints carry many that only generation or training scripts read."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the fields this network knows. Raises WeightsError for a value of the wrong type."""
        hints = get_type_hints(cls)
        known = {}
        for field in dataclasses.fields(cls):
            if field.name not in values:
                continue
            value = values[field.name]
            kind = hints[field.name]
            if isinstance(kind, type) and issubclass(kind, ModelConfig) and isinstance(value, dict):
                value = kind.from_dict(value)
            elif kind in (int, float, bool, str) and not isinstance(value, (int, float) if kind is float else kind):
                raise WeightsError(
                    f"config.json: {field.name} is {value!r}; expected {kind.__name__}. Is the checkpoint damaged?"
                )
            known[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return dataclasses.asdict(self)
