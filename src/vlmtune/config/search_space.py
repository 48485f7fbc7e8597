"""What a search may vary: keys of an experiment with lists of values or ranges, and how a point becomes an experiment.

In: an `Experiment`, `search.space`. Out: the whole space, and one experiment per trial. Called by `load` (for mistakes)
and `vlmtune search`. No Optuna here: a point of the space is a plain {key: value}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from vlmtune.config.schema import Experiment, RangeSection, Section
from vlmtune.errors import unknown_name

ALPHA_PER_RANK = "adapter.alpha_per_rank"
"""Not a key of the experiment: α / r, the factor on LoRA's update, which is what a search over ranks should vary."""

_MEASURES_ANOTHER_THING = {
    f"task.{key}" for key in ("type", "question_from", "labels", "levels", "label_names", "max_answer_tokens")
}
"""Trials that differ in these would have incomparable accuracies."""
_DECIDES_NOTHING = {
    "train.save_every",
    "train.keep_checkpoints",
    "train.keep_best",
    "train.feature_cache",
    "train.checkpoint_activations",
}

Point = Mapping[str, Any]
Choices = RangeSection | Sequence[Any]
Space = dict[str, Choices]


def searchable_keys() -> list[str]:
    """Every key that `search.space` may hold."""
    keys = [
        f"{name}.{key}"
        for name in ("adapter", "train", "task")
        for key in section_type(name).model_fields
        if f"{name}.{key}" not in _MEASURES_ANOTHER_THING | _DECIDES_NOTHING
    ]
    return sorted([*keys, ALPHA_PER_RANK])


def section_type(name: str) -> type[Section]:
    """The class of a section of the experiment."""
    annotation = Experiment.model_fields[name].annotation
    assert isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation


def default_space(resolved: Experiment) -> Space:
    """Rank, alpha, learning rate, targets, dropout and augmentation, around the experiment's own values.

    Args:
        resolved: with every decision made; its own values are in the space, so that a search can begin with it.
    """
    adapter, train = resolved.adapter, resolved.train
    assert train.learning_rate is not None
    space: Space = {}
    if adapter.targets:
        decoder = [role for role in ("attention", "mlp", "conv") if role in adapter.targets] or ["attention", "mlp"]
        vision = ["vision_attention", "vision_mlp"]
        connector = ["connector"] if resolved.model.connector is None else []
        narrow, wide = ["attention"], [*decoder, *connector]
        space |= {
            "adapter.rank": _with([4, 8, 16, 32], adapter.rank),
            ALPHA_PER_RANK: _with([1.0, 2.0, 4.0], own_value(resolved, ALPHA_PER_RANK)),
            "adapter.targets": _with([narrow, wide, [*wide, *vision]], adapter.targets),
            "adapter.dropout": _with([0.0, 0.05, 0.1], adapter.dropout),
        }
    rate = train.learning_rate
    space["train.learning_rate"] = RangeSection(low=_rounded(rate / 8), high=_rounded(rate * 4), log=True)
    space["train.augment"] = _with([["none"], ["random-crop", "color"], ["trivialaugment"]], train.augment or ["none"])
    return space


def whole_space(resolved: Experiment) -> Space:
    """The default space with `search.space` laid over it."""
    given = resolved.search.space if resolved.search else {}
    merged: dict[str, Choices | None] = {**default_space(resolved), **given}
    if given.get("adapter.alpha") is not None and ALPHA_PER_RANK not in given:
        merged.pop(ALPHA_PER_RANK, None)  # two ways to say one thing
    return {key: choices for key, choices in merged.items() if choices is not None}


def own_value(resolved: Experiment, key: str) -> Any:
    """The experiment's own value of a key."""
    if key == ALPHA_PER_RANK:
        alpha, rank = resolved.adapter.alpha, resolved.adapter.rank
        return alpha / rank if alpha and rank else None
    section, name = key.split(".")
    value = getattr(getattr(resolved, section), name)
    return ["none"] if key == "train.augment" and value == [] else value


def with_point(experiment: Experiment, point: Point) -> Experiment:
    """The experiment of a trial: the point's values in place, without the search section.

    Raises pydantic's ValidationError for a value that the key cannot have.
    """
    trial = experiment.model_copy(deep=True, update={"search": None})
    for key, value in point.items():
        if key != ALPHA_PER_RANK:
            section, name = key.split(".")
            setattr(getattr(trial, section), name, value)
    if ALPHA_PER_RANK in point:
        assert trial.adapter.rank is not None, "a rank in the point, or a resolved experiment"
        trial.adapter.alpha = point[ALPHA_PER_RANK] * trial.adapter.rank
    return trial


def label(value: Any) -> str | int | float | bool | None:
    """A value as one word, for tables and for stores that keep plain values only: [attention, mlp] is attention+mlp."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and "+" not in item for item in value):
        return "+".join(value)
    return json.dumps(value, ensure_ascii=False)


def holds_whole_numbers(key: str) -> bool:
    """Whether a range of this key means whole numbers."""
    if key == ALPHA_PER_RANK:
        return False
    section, name = key.split(".")
    return "int" in str(section_type(section).model_fields[name].annotation)


def find_mistakes(
    experiment: Experiment, check: Callable[[Experiment], Iterable[tuple[tuple[str | int, ...], str]]]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """(path of the key, what is wrong) for unknown keys, values that a key cannot have, and empty or reversed ranges.

    Args:
        check: finds contradictions in an experiment, applied to each value.
    """
    assert experiment.search is not None
    already = set(check(experiment.model_copy(update={"search": None})))
    for key, choices in experiment.search.space.items():
        path = ("search", "space", key)
        if key not in searchable_keys():
            yield path, unknown_name("key to search over", key, searchable_keys())
            continue
        if choices is None:
            continue
        if isinstance(choices, RangeSection):
            if choices.low >= choices.high:
                yield path, f"found {choices.low:g} to {choices.high:g}, expected low below high."
                continue
            if choices.log and choices.low <= 0:
                yield (*path, "low"), f"found {choices.low:g} with log: true, expected a number above 0."
                continue
            values = [_whole(value) if holds_whole_numbers(key) else value for value in (choices.low, choices.high)]
        else:
            if not choices:
                yield path, "found an empty list, expected values to choose from (or one, to hold it)."
            values = list(choices)
        for index, value in enumerate(values):
            where = (*path, ("low", "high")[index]) if isinstance(choices, RangeSection) else (*path, index)
            yield from ((where, message) for message in _wrong(experiment, key, value, check, already))


def _wrong(
    experiment: Experiment,
    key: str,
    value: Any,
    check: Callable[[Experiment], Iterable[tuple[tuple[str | int, ...], str]]],
    already: set[tuple[tuple[str | int, ...], str]],
) -> Iterator[str]:
    """The error in one value of a key."""
    if key == ALPHA_PER_RANK:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            yield f"found '{value}', expected a number above 0."
        return
    try:
        changed = with_point(experiment, {key: value})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        yield f"found '{value}', which {key} cannot be: {first['msg'][0].lower()}{first['msg'][1:]}."
        return
    for _, message in set(check(changed)) - already:
        yield f"'{label(value)}': {message}"


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _with(values: list[Any], own: Any) -> list[Any]:
    """The values including the experiment's own, without duplicates; numbers in order."""
    every = values if own is None or own in values else [*values, own]
    unique = [value for index, value in enumerate(every) if value not in every[:index]]
    return sorted(unique) if all(isinstance(value, int | float) for value in unique) else unique


def _rounded(value: float) -> float:
    """A number rounded to two significant figures, for tables."""
    return float(f"{value:.2g}")
