"""Fine-tuning: from an experiment to a run folder. The loop of steps, with validation and checkpoints between them.

Called by `vlmtune train` and `vlmtune demo`. What is shown comes from `samples`, what is learned from `targets`, the
gradient from `step`, the accuracy from `validation`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlmtune.adapters.layer import merged
from vlmtune.adapters.plan import AdapterPlan, apply_adapter
from vlmtune.config.defaults import num_steps
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits
from vlmtune.errors import ConfigError, DataError, UserError
from vlmtune.models.malloc import hold_memory
from vlmtune.models.registry import OpenedModel
from vlmtune.runs.checkpoints import mark_best
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.open import put_connector
from vlmtune.runs.record import Progress
from vlmtune.tasks.question import Task
from vlmtune.tasks.validation import Validation, Validator
from vlmtune.train.feature_cache import Refusal, open_feature_cache
from vlmtune.train.feature_files import FeatureCache
from vlmtune.train.keeping import CheckpointKeeper
from vlmtune.train.memory import needs_checkpointing
from vlmtune.train.optimizer import ScheduledOptimizer
from vlmtune.train.precision import autocast
from vlmtune.train.samples import Prompts, SampleReader, SampleTree, Shown, image_features
from vlmtune.train.step import loss_weight, sample_loss


@dataclass(frozen=True)
class Report:
    """What a step tells whoever watches: the command line draws a progress bar from it.

    Attributes:
        step, num_steps: optimizer steps taken, and of the whole run.
        samples_per_s: images learned from a second, lately.
        loss: mean negative log-probability a token, of this step.
        accuracy: of the latest validation, or None.
    """

    step: int
    num_steps: int
    samples_per_s: float
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class _Step:
    """What an optimizer step did: mean loss a token, gradient norm before clipping, images, tokens learned."""

    loss: float
    grad_norm: float
    samples: int
    tokens: float


class Trainer:
    """One run.

    Args:
        experiment: resolved (no `None` that decides anything), with a name.
        opened: the base model; its weights are adapted in place.
        splits: the data.
        watch: called after every optimizer step.

    Attributes:
        plan: what learns.
        prompts: what is asked.
        reader: what is shown, in which order; its `targets` are what is answered.
        validator: measures accuracy; None without validation images.
    """

    def __init__(
        self,
        experiment: Experiment,
        opened: OpenedModel,
        splits: Splits,
        watch: Callable[[Report], None] = lambda report: None,
    ) -> None:
        if not splits.train:
            raise DataError("There are no training images. Check data.source, data.train_split and data.limit.")
        if experiment.train.loss == "all" and opened.model.bidirectional_prompt:
            raise ConfigError(
                f"train.loss: found all, but the prompts of {opened.family.name} models see themselves in both "
                "directions: each token is in sight of the one that should predict it. Set train.loss: answer."
            )
        self.experiment, self.opened, self.splits, self.watch = experiment, opened, splits, watch
        self.model = opened.model
        hold_memory()
        torch.manual_seed(experiment.seed)
        if experiment.model.connector is not None:
            put_connector(opened, experiment.model.connector, experiment.seed)
        self.plan: AdapterPlan = apply_adapter(self.model, experiment.adapter, seed=experiment.seed)
        self.prompts = Prompts(opened, experiment, splits.labels)
        self.reader = SampleReader(experiment, opened.processor, splits.train, splits.labels)
        task = Task.of(self.prompts.later.task, splits.labels)
        self.validator = (
            Validator(task, dict.fromkeys((q.id for q in task.questions), self.prompts.later), splits.validation)
            if splits.validation
            else None
        )
        if self.validator is None and experiment.train.patience is not None:
            raise DataError("train.patience waits for validation accuracy, and there are no validation images.")
        self.num_steps = num_steps(experiment, len(splits.train))
        self.optimizer = ScheduledOptimizer(self.model, self.plan, experiment.train, self.num_steps)
        self.progress = Progress()
        self.cache_note = ""

    def run(self, folder: RunFolder, *, resume: bool = False) -> Progress:
        """Train to the end and leave the best checkpoint linked. Raises UserError when a loss is not finite."""
        keeper = CheckpointKeeper(folder.path, self.experiment, self.model, self.plan, self.optimizer)
        if resume:
            self.progress = keeper.resume()
            folder.truncate_metrics(self.progress.step)
        with self._feature_cache(folder.path.parent):
            self._learn(folder, keeper)
        self._average(folder, keeper)
        return self.progress

    def _learn(self, folder: RunFolder, keeper: CheckpointKeeper) -> None:
        """Every step still to take, with validation and checkpoints between them."""
        started = time.perf_counter() - self.progress.seconds
        recent: list[tuple[float, int]] = []
        accuracy = self.progress.history[-1][1] if self.progress.history else None
        for micro_batches in self._steps():
            done = self._step(micro_batches)
            self.progress.step += 1
            self.progress.micro_batch += len(micro_batches)
            self.progress.seconds = time.perf_counter() - started
            recent = [*recent[-20:], (self.progress.seconds, done.samples)]
            rate = _rate(recent)
            self._log(
                folder,
                "train",
                **asdict(done),
                lr=self.optimizer.learning_rate,
                samples_per_s=rate,
                seconds=self.progress.seconds,
            )
            if self._is_due(self.experiment.train.eval_every) and self.validator is not None:
                accuracy = self._validate(folder)
                self.progress.seconds = time.perf_counter() - started
                keeper.save(self.progress, is_validated=True)
            elif self._is_due(self.experiment.train.save_every):
                keeper.save(self.progress, is_validated=None if self.validator is None else False)
            self.watch(Report(self.progress.step, self.num_steps, rate, done.loss, accuracy))
            if self.progress.is_stopped:
                break

    @property
    def is_finished(self) -> bool:
        """Whether no step is left to take."""
        return self.progress.step >= self.num_steps or self.progress.is_stopped

    def trial_step(self) -> float:
        """One step's work without its effect, for measuring time and memory; returns its seconds.

        Reading is left out, which a run does ahead on other threads; a short step is timed again, since the first
        call allocates.
        """
        micro_batches = next(self._steps())
        for _ in range(2):
            start = time.perf_counter()
            self._step(micro_batches, learn=False)
            seconds = time.perf_counter() - start
            if seconds > 1:
                break
        return seconds

    @contextmanager
    def _feature_cache(self, runs: Path) -> Iterator[None]:
        """The feature cache for as long as the block lasts, however it ends: another run may be waiting for it."""
        if not self.is_finished:
            self._open_cache(runs)
        try:
            yield
        finally:
            if self.reader.cache is not None:
                self.cache_note = self.reader.cache.note
                self.reader.cache.close()

    def _open_cache(self, runs: Path) -> None:
        """Features of frozen towers are shared by all runs over the same base, beside their folders."""
        train = self.experiment.train
        assert train.epochs is not None
        found: FeatureCache | Refusal
        if self.reader.mixing.is_on:
            found = Refusal("train.mixup or train.cutmix makes a new image each time.")
        else:
            found = open_feature_cache(
                runs / ".features",
                self.opened,
                self.plan,
                self.reader.augmentation,
                train.feature_cache,
                images=[example.image for example in self.splits.train],
                num_epochs=train.epochs,
                precision=self.experiment.model.dtype,
            )
        if isinstance(found, FeatureCache):
            self.reader.cache, self.cache_note = found, found.note
        elif train.feature_cache == "on":
            raise UserError(f"train.feature_cache is on, but features cannot be cached: {found.reason}")
        else:
            self.cache_note = f"image features are not cached: {found.reason}"

    def _steps(self) -> Iterator[list[list[Shown]]]:
        """The micro-batches of every optimizer step still to take."""
        train = self.experiment.train
        assert train.batch_size is not None
        left = 0 if self.is_finished else self.num_steps - self.progress.step
        count = left * train.gradient_accumulation
        step: list[list[Shown]] = []
        for batch in self.reader.micro_batches(train.batch_size, self.progress.micro_batch, count):
            step.append(batch)
            if len(step) == train.gradient_accumulation:
                yield step
                step = []

    def _step(self, micro_batches: list[list[Shown]], *, learn: bool = True) -> _Step:
        """One optimizer step over the mean loss of all its tokens."""
        train = self.experiment.train
        self.model.train()
        trees = [tree for batch in micro_batches for tree in self.prompts.trees(batch)]
        weight = sum(loss_weight(tree.samples, tree.prefix, train.loss) for tree in trees)
        self.model.checkpoint_activations(self._needs_checkpointing(trees))
        total = sum(self._backward(tree, weight) for tree in trees)
        norm = self.optimizer.step(self.progress.step, learn=learn)
        return _Step(total / max(weight, 1e-12), norm, sum(map(len, micro_batches)), weight)

    def _backward(self, tree: SampleTree, weight: float) -> float:
        """Gradients of one tree's loss over the ``weight`` of its whole step; returns the summed loss."""
        with autocast(self.model.device, self.experiment.model.dtype):
            features = image_features(self.model, tree.shown, self.reader.cache)
            for sample, image in zip(tree.samples, features, strict=True):
                sample.features = [image]
            loss = sample_loss(self.model, tree.prefix, tree.samples, self.experiment.train.loss)
        value = loss.total.item()
        if not math.isfinite(value):
            raise UserError(
                f"The loss is not finite at step {self.progress.step + 1}. Lower train.learning_rate "
                f"({self.experiment.train.learning_rate}), or set model.dtype: float32."
            )
        (loss.total / weight).backward()  # type: ignore[no-untyped-call]
        return value

    def _needs_checkpointing(self, trees: list[SampleTree]) -> bool:
        setting = self.experiment.train.checkpoint_activations
        if setting != "auto":
            return setting == "on"
        return needs_checkpointing(self.model, max(tree.num_rows for tree in trees))

    def _is_due(self, every: int | None) -> bool:
        """Whether something done every so many steps, and after the last, is to be done now."""
        assert every is not None
        return self.progress.step == self.num_steps or self.progress.step % every == 0

    def _measure(self, folder: RunFolder, kind: str) -> Validation:
        """Validate the model as it stands."""
        assert self.validator is not None
        started = time.perf_counter()
        with merged(self.model):
            found = self.validator.measure()
        self._log(
            folder,
            kind,
            accuracy=found.accuracy,
            loss=found.loss,
            num=found.num,
            unreadable=found.num_unreadable,
            **({} if found.level_distance is None else {"level_distance": found.level_distance}),
            seconds=time.perf_counter() - started,
        )
        return found

    def _validate(self, folder: RunFolder) -> float:
        found = self._measure(folder, "validation")
        self.progress.history.append((self.progress.step, found.accuracy))
        train = self.experiment.train
        if train.patience is not None and self.progress.step < self.num_steps:
            self.progress.is_stopped = self.progress.num_without_gain(train.min_gain) >= train.patience
        return found.accuracy

    def _average(self, folder: RunFolder, keeper: CheckpointKeeper) -> None:
        """The mean of the last checkpoints: validated, and the best if it is better than every step was."""
        average = keeper.average()
        if average is None or self.validator is None:
            return
        with keeper.loaded(average):
            found = self._measure(folder, "average")
        self.progress.average_accuracy = found.accuracy
        if found.accuracy > self.progress.best_accuracy:
            mark_best(folder.path, average)

    def _log(self, folder: RunFolder, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl."""
        train = self.experiment.train
        assert train.batch_size is not None
        step = self.progress.step
        epoch = step * train.batch_size * train.gradient_accumulation / len(self.splits.train)
        folder.append_metrics(kind=kind, step=step, epoch=round(epoch, 4), **values)


def _rate(recent: list[tuple[float, int]]) -> float:
    """Images a second, from (seconds so far, images) of the latest steps."""
    seconds = recent[-1][0] - recent[0][0]
    return round(sum(count for _, count in recent[1:]) / seconds, 2) if seconds > 0 else 0.0
