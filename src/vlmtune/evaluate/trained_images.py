"""No model is measured on images that it learned from. Called by `evaluate` before any image is scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmtune.config.load import load_experiment
from vlmtune.data.duplicates import group_identical_files
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import DataError, UserError
from vlmtune.records import Example
from vlmtune.runs.open import find_run
from vlmtune.runs.record import read_record


def refuse_trained_images(
    checkpoint: Path, splits: Splits, examples: Sequence[Example], say: Callable[[str], None]
) -> None:
    """Refuse examples that a run learned from, which a different seed, fraction or source may select.

    The run's own splits are read again and its files compared byte for byte. ``say`` is called with a warning where
    that cannot be done, and where the run chose its checkpoint by some of the examples.

    Raises UserError with the count.
    """
    run = find_run(checkpoint)
    if run is None:
        return
    described = splits.description.get("splits", {})
    recorded = _recorded_fingerprints(run)
    if recorded and all(recorded[role] == described.get(role, {}).get("fingerprint") for role in recorded):
        return  # the same splits as in training, which are disjoint
    trained = load_experiment(run, must_exist=False)
    try:
        run_splits = load_splits(trained.data, trained.task, trained.seed)
    except DataError as error:
        say(f"Warning: nothing says whether {run} was trained on some of these images: its data are gone ({error})")
        return
    num_trained = _num_shared(run_splits.train, examples)
    if num_trained:
        raise UserError(
            f"{run} was trained on {num_trained} of the {len(examples)} images it would be measured on: data.source, "
            f"data.test_fraction or seed differ from its config.yaml. Evaluate it as it was trained (vlmtune evaluate "
            f"{run}), or name images it has not seen."
        )
    num_validation = _num_shared(run_splits.validation, examples)
    if num_validation:
        say(
            f"Warning: {num_validation} of the {len(examples)} images chose the best checkpoint of {run} (its "
            "validation split), so its accuracy on them is somewhat too high."
        )


def _recorded_fingerprints(run: Path) -> dict[str, str]:
    """Fingerprints of training and validation images; empty if run.json has none."""
    try:
        roles = read_record(run).data["splits"]
        return {role: roles[role]["fingerprint"] for role in ("train", "validation")}
    except (UserError, KeyError, TypeError):
        return {}


def _num_shared(learned: Sequence[Example], examples: Sequence[Example]) -> int:
    """How many of the examples are, byte for byte, images that were learned from."""
    first = group_identical_files([example.image for example in (*learned, *examples)])
    return sum(position < len(learned) for position in first[len(learned) :])
