"""`run.json`: everything a reader of a run folder needs that is not in the experiment file.

In: what training decides and reaches. Out: a typed record, as JSON and back. `train` writes it before, during and
after training; evaluation, reports and whatever opens a run read it. No torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vlmtune.files import read_json, read_json_if_exists, write_json
from vlmtune.runs.layout import RunLayout


@dataclass
class Progress:
    """A run's progress.

    Attributes:
        step: optimizer steps taken.
        micro_batch: micro-batches consumed.
        seconds: time spent training so far, over all sessions.
        best_accuracy: best validation accuracy of a step, and that step.
        history: (step, accuracy) of every validation.
        is_stopped: ended before its last step, for lack of improvement.
        average_accuracy: of the averaged checkpoint, where there is one and it was validated.
    """

    step: int = 0
    micro_batch: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_step: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    is_stopped: bool = False
    average_accuracy: float | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `asdict`, from what JSON makes of it."""
        history = [(int(step), float(accuracy)) for step, accuracy in values.get("history", [])]
        return cls(**{**values, "history": history})

    def num_without_gain(self, min_gain: float) -> int:
        """Validations since the last that exceeded the best one before it by more than ``min_gain``."""
        best, since = -1.0, 0
        for _, accuracy in self.history:
            if accuracy > best + min_gain:
                best, since = accuracy, 0
            else:
                since += 1
        return since

    def best_steps(self, num: int) -> list[int]:
        """The steps of the best validations, best first; of ties the later, which has learned from more."""
        ranked = sorted(self.history, key=lambda item: (item[1], item[0]), reverse=True)
        return [step for step, _ in ranked[:num]]


@dataclass
class RunResult:
    """What a finished run reached, as `train --json` prints it.

    Attributes:
        run: the run folder.
        steps, seconds: of training, over all sessions.
        is_stopped: ended before its last step, for lack of improvement.
        best_accuracy, best_step: on validation; None without validation images.
        average_accuracy: of the averaged checkpoint on validation.
        test_accuracy, base_accuracy: of the best checkpoint and of the base model on the test split, if measured.
        unreadable: training images that could not be read.
        report: the report's page.
    """

    run: str
    steps: int
    seconds: float
    is_stopped: bool
    best_accuracy: float | None
    best_step: int
    average_accuracy: float | None = None
    test_accuracy: float | None = None
    base_accuracy: float | None = None
    unreadable: int = 0
    report: str | None = None


@dataclass
class RunRecord:
    """What is known about a run besides its experiment.

    Attributes:
        base: the base model's source.
        environment: see `environment.environment`.
        data: `Splits.description`.
        labels: the stored labels in order; None for open answers.
        learned: what the adapter trains, by kind.
        started, finished: times; finished is None while steps are left.
        unreadable: example id -> reason, of images that could not be read.
        feature_cache: whether image features were cached, in words.
        result: None while something is left to do.
    """

    name: str | None = None
    seed: int = 0
    base: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    labels: list[str] | None = None
    trainable_parameters: int = 0
    total_parameters: int = 0
    learned: Any = None
    num_steps: int = 0
    started: str | None = None
    finished: str | None = None
    progress: Progress = field(default_factory=Progress)
    unreadable: dict[str, str] = field(default_factory=dict)
    feature_cache: str = ""
    result: RunResult | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """A record from its JSON; keys that are missing keep their defaults."""
        known = {item.name: values[item.name] for item in fields(cls) if item.name in values}
        if known.get("progress") is not None:
            known["progress"] = Progress.from_json(known["progress"])
        if known.get("result") is not None:
            known["result"] = RunResult(**known["result"])
        return cls(**known)

    def write(self, run: RunLayout) -> None:
        """Write `run.json`. Raises UserError if the folder cannot be written."""
        write_json(run.record, asdict(self))


def read_record(run: Path) -> RunRecord:
    """The record of a run. Raises RunFolderError if there is none, or it is damaged."""
    return RunRecord.from_json(read_json(RunLayout(run).record))


def read_record_if_exists(run: Path) -> RunRecord:
    """The record of a run; an empty one where training never began."""
    return RunRecord.from_json(read_json_if_exists(RunLayout(run).record))
