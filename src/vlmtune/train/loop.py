"""Fine-tuning: from an experiment to a run folder. The loop of steps, with validation and checkpoints between them.

In: a resolved experiment, the opened base, the data. Out: a run folder. Called by `vlmtune train` and `vlmtune demo`.
The order of examples comes from `items`, targets from `targets`, the loss from `step`, accuracy from `validation`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from vlmtune.adapters.layer import merged
from vlmtune.adapters.plan import AdapterPlan, apply_adapter
from vlmtune.config.defaults import num_steps
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits
from vlmtune.errors import ConfigError, DataError, UserError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.models.registry import OpenedModel
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.runs.checkpoints import RunCheckpoints, mark_best
from vlmtune.runs.environment import environment, now
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.open import put_connector
from vlmtune.runs.record import Progress, RunRecord
from vlmtune.tasks.question import Task
from vlmtune.tasks.validation import Validation, Validator
from vlmtune.train.device import autocast, needs_checkpointing
from vlmtune.train.feature_cache import Refusal, open_feature_cache
from vlmtune.train.feature_files import FeatureCache
from vlmtune.train.items import EpochPrompts, ItemReader, TrainItem, image_features
from vlmtune.train.optimizer import ScheduledOptimizer
from vlmtune.train.step import run


@dataclass(frozen=True)
class StepEvent:
    """What a callback receives after every optimizer step.

    Attributes:
        step, num_steps: optimizer steps taken, and steps of the whole run.
        samples_per_s: recent training examples per second.
        loss: mean negative log-probability per token, of this step.
        accuracy: of the latest validation, or None.
    """

    step: int
    num_steps: int
    samples_per_s: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class StepResult:
    """Outcome of one optimizer step: mean loss per token, gradient norm before clipping, examples, learned tokens."""

    loss: float
    grad_norm: float
    samples: int
    tokens: float


class Trainer:
    """One run.

    Args:
        experiment: resolved (no `None` left to decide), with a name.
        opened: the base model; its weights are adapted in place.
        splits: the data.

    Attributes:
        plan: what learns.
        prompts: of the first epoch and of the later ones.
        reader: the training items, in order.
        validator: measures accuracy; None without validation images.
        features: the cache of image features, or the reason there is none.

    Raises DataError without training images, and ConfigError for settings that the base does not support.
    """

    def __init__(self, experiment: Experiment, opened: OpenedModel, splits: Splits) -> None:
        train = experiment.train
        if not splits.train:
            raise DataError("There are no training images. Check data.source, data.train_split and data.limit.")
        if train.loss == "all" and opened.model.bidirectional_prompt:
            raise ConfigError(
                f"train.loss: found all, but the prompts of {opened.family.name} models see themselves in both "
                "directions: each token is in sight of the one that should predict it. Set train.loss: answer."
            )
        self.experiment, self.opened, self.splits = experiment, opened, splits
        keep_freed_memory()
        torch.manual_seed(experiment.seed)
        if experiment.model.connector is not None:
            put_connector(opened, experiment.model.connector, experiment.seed)
        self.plan: AdapterPlan = apply_adapter(opened.model, experiment.adapter, seed=experiment.seed)
        self.prompts = EpochPrompts(opened, experiment, splits.labels)
        self.reader = ItemReader(experiment, opened.processor, splits.train, splits.labels)
        self.validator = self._validator()
        if self.validator is None and train.patience is not None:
            raise DataError("train.patience waits for validation accuracy, and there are no validation images.")
        self.optimizer = ScheduledOptimizer(opened.model, self.plan, train, num_steps(experiment, len(splits.train)))
        self.progress = Progress()
        self.features: FeatureCache | Refusal = Refusal("no step was taken.")

    def _validator(self) -> Validator | None:
        """A validator with the prompts of the later epochs, as after training."""
        if not self.splits.validation:
            return None
        section, labels = self.experiment.task.after_first_epoch(), self.splits.labels
        predictor = Predictor(self.opened, section, labels, self.experiment.evaluate.batch_size)
        task = Task.of(section, labels)
        return Validator(task, {question.id: predictor for question in task.questions}, self.splits.validation)

    @property
    def model(self) -> VisionLanguageModel:
        return self.opened.model

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.optimizer.num_steps

    @property
    def is_finished(self) -> bool:
        """Whether no step is left to take."""
        return self.progress.step >= self.num_steps or self.progress.is_stopped

    def run(
        self, folder: RunFolder, *, resume: bool = False, on_step: Callable[[StepEvent], None] | None = None
    ) -> Progress:
        """Train to the end and leave the best checkpoint linked.

        Args:
            folder: of the run.
            resume: continue from its newest checkpoint.
            on_step: called after every optimizer step; it may set `progress.is_stopped`.

        Raises UserError when a loss is not finite.
        """
        adamw, names = self.optimizer.adamw, self.optimizer.names
        checkpoints = RunCheckpoints(folder.path, self.experiment, self.model, self.plan, adamw, names)
        if resume:
            self.progress = checkpoints.resume()
            folder.truncate_metrics(self.progress.step)
        with self._feature_cache(folder.path.parent):
            self._fit(folder, checkpoints, on_step or (lambda event: None))
        self._average(folder, checkpoints)
        return self.progress

    def _fit(self, folder: RunFolder, checkpoints: RunCheckpoints, on_step: Callable[[StepEvent], None]) -> None:
        """Every remaining step, with validation and checkpoints between them."""
        train, progress = self.experiment.train, self.progress
        started = time.perf_counter() - progress.seconds
        recent: list[tuple[float, int]] = []
        accuracy = progress.history[-1][1] if progress.history else None
        for micro_batches in self.steps():
            result = self.step(micro_batches)
            progress.step += 1
            progress.micro_batch += len(micro_batches)
            progress.seconds = time.perf_counter() - started
            recent = [*recent[-20:], (progress.seconds, result.samples)]
            speed = {"samples_per_s": _rate(recent), "seconds": progress.seconds}
            self._log(folder, "train", **asdict(result), lr=self.optimizer.learning_rate, **speed)
            if self.validator is not None and self._is_due(train.eval_every):
                accuracy = self._validate(folder)
                progress.seconds = time.perf_counter() - started
                checkpoints.save(progress, is_validated=True)
            elif self._is_due(train.save_every):
                checkpoints.save(progress, is_validated=None if self.validator is None else False)
            on_step(StepEvent(progress.step, self.num_steps, speed["samples_per_s"], result.loss, accuracy))
            if progress.is_stopped:
                break

    def step(self, micro_batches: list[list[TrainItem]], *, learn: bool = True) -> StepResult:
        """One optimizer step on the mean loss over all learned tokens of its micro-batches.

        Args:
            learn: False computes everything and leaves the weights as they are.
        """
        train, model = self.experiment.train, self.model.train()
        plans = [plan for batch in micro_batches for plan in self.prompts.plan(model, batch, train.loss)]
        weight = max(1e-12, math.fsum(plan.weight for _, plan in plans))
        model.checkpoint_activations(self._needs_checkpointing(max(plan.num_tokens for _, plan in plans)))
        total = 0.0
        for items, plan in plans:
            with autocast(model.device, self.experiment.model.dtype):
                features = image_features(model, items, self.reader.cache)
                loss = run(model, plan, features)
            total += self._finite(loss)
            (loss / weight).backward()  # type: ignore[no-untyped-call]
        grad_norm = self.optimizer.step(self.progress.step, learn=learn)
        return StepResult(total / weight, grad_norm, sum(map(len, micro_batches)), weight)

    def steps(self) -> Iterator[list[list[TrainItem]]]:
        """The micro-batches of every remaining optimizer step."""
        train = self.experiment.train
        assert train.batch_size is not None
        num = 0 if self.is_finished else self.num_steps - self.progress.step
        batches = self.reader.micro_batches(
            train.batch_size, self.progress.micro_batch, num * train.gradient_accumulation
        )
        while step := list(islice(batches, train.gradient_accumulation)):
            yield step

    def _finite(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"The loss is not finite at step {self.progress.step + 1}. Lower train.learning_rate "
                f"({self.experiment.train.learning_rate}), or set model.dtype: float32."
            )
        return value

    def _needs_checkpointing(self, num_tokens: int) -> bool:
        setting = self.experiment.train.checkpoint_activations
        return needs_checkpointing(self.model, num_tokens) if setting == "auto" else setting == "on"

    def _is_due(self, every: int | None) -> bool:
        """Whether something done every N steps, and after the last step, is due now."""
        assert every is not None
        return self.progress.step == self.num_steps or self.progress.step % every == 0

    @contextmanager
    def _feature_cache(self, runs: Path) -> Iterator[None]:
        """Image features of a frozen tower, shared by all runs beside this one, until the block ends, however it does:
        another run may be waiting for them."""
        if not self.is_finished:
            self.features = open_feature_cache(
                runs / ".features", self.opened, self.plan, self.experiment, self.splits.train, self.reader.changes
            )
        if isinstance(self.features, FeatureCache):
            self.reader.cache = self.features
        try:
            yield
        finally:
            if isinstance(self.features, FeatureCache):
                self.features.close()

    def _measure(self, folder: RunFolder, kind: str) -> Validation:
        """Validate the current model."""
        assert self.validator is not None
        started = time.perf_counter()
        with merged(self.model):
            validation = self.validator.measure()
        self._log(
            folder,
            kind,
            accuracy=validation.accuracy,
            loss=validation.loss,
            num=validation.num,
            unreadable=validation.num_unreadable,
            **({} if validation.level_distance is None else {"level_distance": validation.level_distance}),
            seconds=time.perf_counter() - started,
        )
        return validation

    def _validate(self, folder: RunFolder) -> float:
        validation = self._measure(folder, "validation")
        self.progress.history.append((self.progress.step, validation.accuracy))
        train = self.experiment.train
        if train.patience is not None and self.progress.step < self.num_steps:
            self.progress.is_stopped = self.progress.num_without_gain(train.min_gain) >= train.patience
        return validation.accuracy

    def _average(self, folder: RunFolder, checkpoints: RunCheckpoints) -> None:
        """The mean of the last checkpoints: validated, and marked best if it beats every step."""
        average = checkpoints.average()
        if average is None or self.validator is None:
            return
        with checkpoints.loaded(average):
            validation = self._measure(folder, "average")
        self.progress.average_accuracy = validation.accuracy
        if validation.accuracy > self.progress.best_accuracy:
            mark_best(folder.path, average)

    def _log(self, folder: RunFolder, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl."""
        train = self.experiment.train
        assert train.batch_size is not None
        step = self.progress.step
        epoch = step * train.batch_size * train.gradient_accumulation / len(self.splits.train)
        folder.append_metrics(kind=kind, step=step, epoch=round(epoch, 4), **values)


def _rate(recent: list[tuple[float, int]]) -> float:
    """Images per second, from (seconds so far, images) of the latest steps."""
    seconds = recent[-1][0] - recent[0][0]
    return round(sum(count for _, count in recent[1:]) / seconds, 2) if seconds > 0 else 0.0


def run_record(trainer: Trainer, started: str) -> RunRecord:
    """What is known about a run besides its experiment, before, during or after training.

    Args:
        started: time of the run's first session.
    """
    labels = trainer.splits.labels
    return RunRecord(
        name=trainer.experiment.name,
        seed=trainer.experiment.seed,
        base=trainer.experiment.model.base,
        environment=environment(),
        data=dict(trainer.splits.description),
        labels=list(labels.stored) if labels else None,
        trainable_parameters=trainer.plan.num_trainable,
        total_parameters=trainer.plan.num_total,
        learned=trainer.plan.summary(),
        num_steps=trainer.num_steps,
        started=started,
        finished=now() if trainer.is_finished else None,
        progress=trainer.progress,
        unreadable=trainer.reader.unreadable,
        feature_cache=trainer.features.note,
    )
