"""What must be the same for a run to be continued, and how differences are described. Opens no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmtune.config.schema import Section

MAY_CHANGE = (
    "output_dir",
    "model.device",
    "data.limit_test",
    "data.test_split",
    "evaluate",
    "modal",
    "tracking",
    "search",
    "train.patience",
    "train.min_gain",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.average_last",
    "train.feature_cache",
    "train.checkpoint_activations",
)
"""Keys and sections that do not affect a step: what is kept, when to stop, where and how to measure."""


def differing_keys(stored: Section, wanted: Section) -> list[str]:
    """`key: VALUE in the run, VALUE now` for every key whose change forbids continuing the run.

    Both are whole files: an `Experiment`, or a `Pretraining`.
    """
    before, now = _flat(stored.model_dump()), _flat(wanted.model_dump())
    return [
        f"{key}: {_written(before.get(key))} in the run, {_written(now.get(key))} now"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not _may_change(key)
    ]


def differing_images(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The same for the images: splits whose examples or answers are no longer those of the run.

    Args:
        stored, now: `Splits.description` of the run and of today.
    """
    changes = []
    for role in ("train", "validation"):
        before, after = (facts.get("splits", {}).get(role, {}) for facts in (stored, now))
        if before.get("fingerprint") != after.get("fingerprint"):
            changes.append(f"{role} images: {before.get('used')} in the run, {after.get('used')} now, and not the same")
    return changes


def _may_change(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _written(value: Any) -> str:
    text = "nothing" if value is None or value in ({}, []) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
