"""Fine-tuning: from an experiment to a run folder. Preflight, the loop, validation by label accuracy, checkpoints.

Called by `vlmtune train` and `vlmtune demo`. Validation runs through the same `Predictor` as evaluation; samples are
tokenised and pictures prepared by the same `Predictor` as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmtune.adapters.lora import AdapterPlan, apply_adapter, merged, parameter_groups
from vlmtune.config.recipes import num_steps
from vlmtune.config.schema import Experiment
from vlmtune.data.augment import Augmentation
from vlmtune.data.loading import read_ahead
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError, RunFolderError, UnreadableImageError, UserError
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example, LabelScores
from vlmtune.train.allocator import hold_memory
from vlmtune.train.checkpoints import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    mark_best,
    prune,
    save_checkpoint,
)
from vlmtune.train.feature_cache import CachedPicture, FeatureCache, open_feature_cache
from vlmtune.train.memory import needs_checkpointing
from vlmtune.train.precision import autocast
from vlmtune.train.run_folder import RunFolder, environment, now
from vlmtune.train.schedule import learning_rate_factor, micro_batches
from vlmtune.train.step import Answer, Sample, loss_weight, sample_loss


@dataclass(frozen=True)
class _Seen:
    """A picture as one micro-batch sees it: prepared, or with its features from the cache."""

    example: Example
    epoch: int
    image: ProcessedImage | CachedPicture
    digest: str


@dataclass(frozen=True)
class Report:
    """What a step tells whoever watches: the command line draws a progress bar from it.

    Attributes:
        step, num_steps: optimizer steps taken, and of the whole run.
        samples_per_s: pictures learned from a second, lately.
        loss: mean negative log-probability a token, of this step.
        accuracy: of the latest validation, or None.
    """

    step: int
    num_steps: int
    samples_per_s: float
    loss: float
    accuracy: float | None


class Trainer:
    """One run.

    Args:
        experiment: resolved (no `None` that decides anything), with a name.
        opened: the base model; its weights are adapted in place.
        splits: the data.
        watch: called after every optimizer step.
    """

    def __init__(
        self,
        experiment: Experiment,
        opened: OpenedModel,
        splits: Splits,
        watch: Callable[[Report], None] = lambda report: None,
    ) -> None:
        if not splits.train:
            raise DataError("There are no training pictures. Check data.source, data.train_split and data.limit.")
        self.experiment, self.opened, self.splits, self.watch = experiment, opened, splits, watch
        self.model = opened.model
        hold_memory()
        torch.manual_seed(experiment.seed)
        self.plan: AdapterPlan = apply_adapter(self.model, experiment.adapter, seed=experiment.seed)
        self.predictor = Predictor(opened, experiment.task, splits.labels, experiment.evaluate.batch_size)
        # After the first epoch the class list may go: the closed-set scorer does not need it.
        self.later_predictor = self.predictor
        if experiment.task.list_labels == "drop-after-first-epoch":
            self.predictor = Predictor(
                opened, experiment.task.model_copy(update={"list_labels": "prompt"}), splits.labels
            )
            self.later_predictor = Predictor(
                opened, experiment.task.after_first_epoch(), splits.labels, experiment.evaluate.batch_size
            )
        self.augmentation = Augmentation.named(experiment.train.augment or "none")
        self.num_steps = num_steps(experiment, len(splits.train))
        train = experiment.train
        assert train.learning_rate is not None
        groups = parameter_groups(self.model, self.plan, train.learning_rate)
        self.optimizer = torch.optim.AdamW(groups, betas=train.betas, weight_decay=train.weight_decay)
        self.plan.attach(self.optimizer)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        name_of = {id(parameter): name for name, parameter in self.plan.parameters.items()}
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.names = [name_of[id(p)] for p in self.parameters]
        self.progress = Progress()
        self.unreadable: dict[str, str] = {}
        self.cache: FeatureCache | None = None
        self.cache_note = ""

    def run(self, folder: RunFolder, *, resume: bool = False) -> Progress:
        """Train to the end and leave the best checkpoint linked. Raises UserError when a loss is not finite."""
        if resume:
            self._resume(folder)
        self._open_cache(folder.path.parent)
        started = time.perf_counter() - self.progress.seconds
        recent: list[tuple[float, int]] = []
        accuracy = self.progress.history[-1][1] if self.progress.history else None
        for prepared in self._steps():
            self.model.train()
            loss, grad_norm, num_samples, num_tokens = self._step(prepared)
            self.progress.step += 1
            self.progress.micro_batch += len(prepared)
            self.progress.seconds = time.perf_counter() - started
            step = self.progress.step
            recent = [*recent[-20:], (self.progress.seconds, num_samples)]
            rate = self._rate(recent)
            folder.append_metrics(
                kind="train",
                step=step,
                epoch=round(self._epoch(step), 4),
                loss=loss,
                lr=self.optimizer.param_groups[0]["lr"],
                grad_norm=grad_norm,
                samples=num_samples,
                tokens=num_tokens,
                samples_per_s=rate,
                seconds=self.progress.seconds,
            )
            is_last = step == self.num_steps
            every, save_every = self.experiment.train.eval_every, self.experiment.train.save_every
            assert every is not None and save_every is not None
            has_validated = bool(self.splits.validation) and (is_last or step % every == 0)
            if has_validated:
                accuracy = self._validate(folder)
                self.progress.seconds = time.perf_counter() - started
            if is_last or has_validated or step % save_every == 0:
                self._save(folder, has_validated)
            self.watch(Report(step, self.num_steps, rate, loss, accuracy))
        if self.cache is not None:
            self.cache.close()
        return self.progress

    def _open_cache(self, runs: Path) -> None:
        """Features of frozen towers are shared by all runs over the same base, beside their folders."""
        train = self.experiment.train
        assert train.epochs is not None
        found = open_feature_cache(
            runs / ".features",
            self.opened,
            self.plan,
            self.augmentation,
            train.feature_cache,
            pictures=[example.image for example in self.splits.train],
            num_epochs=train.epochs,
            precision=self.experiment.model.dtype,
        )
        if isinstance(found, FeatureCache):
            self.cache, self.cache_note = found, "picture features are cached"
        elif train.feature_cache == "on":
            raise UserError(f"train.feature_cache is on, but features cannot be cached: {found.reason}")
        else:
            self.cache_note = f"picture features are not cached: {found.reason}"

    def _resume(self, folder: RunFolder) -> None:
        found = list_checkpoints(folder.path)
        if not found:
            raise RunFolderError(f"{folder.path}: the run has no checkpoint to resume from. Delete it and start again.")
        self.progress = load_checkpoint(found[-1], self.model, self.optimizer, self.names)
        folder.truncate_metrics(self.progress.step)

    def _epoch(self, step: int) -> float:
        train = self.experiment.train
        assert train.batch_size is not None
        return step * train.batch_size * train.gradient_accumulation / len(self.splits.train)

    @staticmethod
    def _rate(recent: list[tuple[float, int]]) -> float:
        seconds = recent[-1][0] - recent[0][0]
        return round(sum(count for _, count in recent[1:]) / seconds, 2) if seconds > 0 else 0.0

    def _steps(self) -> Iterator[list[list[_Seen]]]:
        """The micro-batches of every optimizer step still to take, with their pictures read ahead."""
        train = self.experiment.train
        assert train.batch_size is not None
        examples = self.splits.train
        first = self.progress.micro_batch
        remaining = (self.num_steps - self.progress.step) * train.gradient_accumulation
        places = (
            (number, index, epoch)
            for _, (number, members) in zip(
                range(remaining),
                micro_batches(len(examples), train.batch_size, self.experiment.seed, first),
                strict=False,
            )
            for index, epoch in members
        )

        def load(place: tuple[int, int, int]) -> _Seen:
            _, index, epoch = place
            example = examples[index]
            if self.cache is not None:
                digest = example.image.digest()
                cached = self.cache.get(digest)
                image = cached or self.opened.processor.process(example.image.open())
                return _Seen(example, epoch, image, digest)
            # The draw depends on the example and the epoch alone: neither threads nor resuming change a picture.
            draw = np.random.default_rng((self.experiment.seed, epoch, index))
            return _Seen(
                example, epoch, self.opened.processor.process(self.augmentation(example.image.open(), draw)), ""
            )

        step: list[list[_Seen]] = []
        batch: list[_Seen] = []
        for count, ((_, index, _), result) in enumerate(read_ahead(load, places), start=1):
            if isinstance(result, UnreadableImageError):
                self.unreadable[examples[index].id] = result.reason
                if len(self.unreadable) == len(examples):
                    raise DataError(f"No training picture can be read. The last one: {result}")
            else:
                batch.append(result)
            if count % train.batch_size == 0:
                if not batch:
                    raise DataError(f"None of {train.batch_size} training pictures in a row can be read: {result}")
                step.append(batch)
                batch = []
                if len(step) == train.gradient_accumulation:
                    yield step
                    step = []

    def _step(self, micro: list[list[_Seen]], *, learn: bool = True) -> tuple[float, float, int, float]:
        """One optimizer step: (mean loss a token, gradient norm before clipping, pictures, tokens learned)."""
        train = self.experiment.train
        factor = learning_rate_factor(self.progress.step, self.num_steps, train.warmup_ratio, train.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

        prepared = []
        for batch in micro:
            # One tree has one prefix: where the class list goes after the first epoch, a batch may hold two kinds.
            for predictor in {id(p): p for p in (self.predictor, self.later_predictor)}.values():
                own = [seen for seen in batch if self._predictor(seen.epoch) is predictor]
                if own:
                    prepared.append((predictor, own, [self.answers(predictor, seen.example) for seen in own]))
        placeholders = [
            [
                Sample(p.rest_of_prompt(seen.image, seen.example.question), [], answer)
                for seen, answer in zip(own, answers, strict=True)
            ]
            for p, own, answers in prepared
        ]
        total_weight = sum(
            loss_weight(samples, predictor.prefix, train.loss)
            for (predictor, _, _), samples in zip(prepared, placeholders, strict=True)
        )
        setting = train.checkpoint_activations
        rows = max(
            len(predictor.prefix) + sum(len(sample.ids) + len(sample.answers[0].ids) for sample in samples)
            for (predictor, _, _), samples in zip(prepared, placeholders, strict=True)
        )
        self.model.checkpoint_activations(
            setting == "on" or (setting == "auto" and needs_checkpointing(self.model, rows))
        )
        total = self._backward(prepared, placeholders, total_weight)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm))
        if learn:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total / max(total_weight, 1e-12), norm, sum(len(batch) for batch in micro), total_weight

    def _backward(self, prepared: list[Any], samples_by_part: list[list[Sample]], total_weight: float) -> float:
        """Losses and gradients of the parts of one step, each one tree; the summed loss."""
        train = self.experiment.train
        total = 0.0
        for (predictor, own, _), samples in zip(prepared, samples_by_part, strict=True):
            with autocast(self.model.device, self.experiment.model.dtype):
                features = self._features(own)
                for sample, picture in zip(samples, features, strict=True):
                    sample.features = [picture]
                loss = sample_loss(self.model, predictor.prefix, samples, train.loss)
            value = loss.total.item()
            if not math.isfinite(value):
                raise UserError(
                    f"The loss is not finite at step {self.progress.step + 1}. Lower train.learning_rate "
                    f"({train.learning_rate}), or set model.dtype: float32."
                )
            (loss.total / total_weight).backward()  # type: ignore[no-untyped-call]
            total += value
        return total

    def trial_step(self) -> None:
        """One step's work without its effect: for measuring time and memory."""
        self.model.train()
        self._step(next(self._steps()), learn=False)

    def _predictor(self, epoch: int) -> Predictor:
        return self.predictor if epoch == 0 else self.later_predictor

    def _features(self, seen: list[_Seen]) -> list[Tensor]:
        """Picture features, with a graph only where something before the decoder learns; from the cache if it has
        them."""
        new = [picture.image for picture in seen if isinstance(picture.image, ProcessedImage)]
        encoded = iter(self.predictor.encode(new) if new else [])
        features = []
        for picture in seen:
            if isinstance(picture.image, CachedPicture):
                features.append(picture.image.features.to(self.model.device))
                continue
            features.append(next(encoded))
            if self.cache is not None:
                self.cache.put(picture.digest, features[-1], picture.image.text)
        return features

    def answers(self, predictor: Predictor, example: Example) -> list[Answer]:
        """What an example teaches: the label's first surface form, end token last."""
        labels = self.splits.labels
        text = example.answers[0] if labels is None else labels.shown[labels.index(example.label)][0]
        return [Answer(predictor.prompt.answer_tokens(text))]

    def _validate(self, folder: RunFolder) -> float:
        """Label accuracy and mean negative log-probability of the true label on the validation split."""
        started = time.perf_counter()
        labels = self.splits.labels
        assert labels is not None
        num_right, nll, num_read = 0, 0.0, 0
        examples = self.splits.validation
        with merged(self.model):
            queries = (Query(example.image, example.question) for example in examples)
            for example, result in zip(examples, self.later_predictor.classify(queries), strict=True):
                if isinstance(result, LabelScores):
                    assert result.log_probs is not None
                    num_right += result.prediction == example.label
                    nll -= result.log_probs[labels.index(example.label)]
                    num_read += 1
        accuracy = num_right / len(examples)
        step = self.progress.step
        folder.append_metrics(
            kind="validation",
            step=step,
            epoch=round(self._epoch(step), 4),
            accuracy=accuracy,
            loss=nll / max(1, num_read),
            num=len(examples),
            unreadable=len(examples) - num_read,
            seconds=time.perf_counter() - started,
        )
        self.progress.history.append((step, accuracy))
        return accuracy

    def _save(self, folder: RunFolder, has_validated: bool) -> None:
        is_best = False
        if has_validated:
            accuracy = self.progress.history[-1][1]
            # A tie goes to the later one: it has learned from more.
            is_best = accuracy >= self.progress.best_accuracy
            if is_best:
                self.progress.best_accuracy, self.progress.best_step = accuracy, self.progress.step
        checkpoint = save_checkpoint(
            folder.path, self.progress, self.model, self.plan, self.optimizer, self.names, self.experiment.model.base
        )
        if is_best or not self.splits.validation:
            mark_best(folder.path, checkpoint)
        prune(folder.path, self.experiment.train.keep_checkpoints)


def describe_run(trainer: Trainer, started: str) -> dict[str, Any]:
    """`run.json`: everything a reader of the run folder needs that is not in the experiment file."""
    labels = trainer.splits.labels
    return {
        "name": trainer.experiment.name,
        "seed": trainer.experiment.seed,
        "base": trainer.experiment.model.base,
        "environment": environment(),
        "data": trainer.splits.description,
        "labels": list(labels.stored) if labels else None,
        "trainable_parameters": trainer.plan.num_trainable,
        "total_parameters": trainer.plan.num_total,
        "learned": trainer.plan.summary(),
        "num_steps": trainer.num_steps,
        "started": started,
        "finished": now() if trainer.progress.step == trainer.num_steps else None,
        "progress": asdict(trainer.progress),
        "unreadable": trainer.unreadable,
        "feature_cache": trainer.cache_note,
    }
