"""Baselines of an experiment: without the image, and from the frozen vision features alone.

The features do not depend on the question, so they are probed only where every image is asked the same one with closed
answers. Each baseline is an ordinary evaluation folder under `RUN/baselines/evaluation/` (so `vlmtune compare`
takes it), and a row of `RUN/baselines.json`. Called by `vlmtune baselines` and `demo`.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vlmtune.config.schema import TaskSection
from vlmtune.data.prefetch import read_ahead
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.evaluate.answers import predictions_of, task_facts
from vlmtune.evaluate.files import write_evaluation
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.probes import LEAST_PROBABILITY, Probed, Split, linear_probe, nearest_neighbors
from vlmtune.evaluate.scoring import content_free_images, question_key
from vlmtune.evaluate.table import PredictionTable
from vlmtune.inference.predictor import Predictor
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example
from vlmtune.runs.environment import now
from vlmtune.tasks.question import Task

FOLDER = "baselines"
FILE = "baselines.json"
Kind = Literal["floor", "reference", "ceiling"]
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Pooled:
    """The vision tower's output of a split, averaged over patches. float32[N, C]; NaN rows for unreadable images."""

    features: NDArray[np.float32]
    errors: list[str | None]

    @property
    def readable(self) -> NDArray[np.bool_]:
        return np.asarray([error is None for error in self.errors], dtype=bool)


def pool_features(
    opened: OpenedModel, examples: Sequence[Example], on_image: Callable[[], None] = lambda: None
) -> Pooled:
    """Run every image through the vision tower, no decoder, and average its patches."""
    model = opened.model.eval()
    rows: list[NDArray[np.float32] | None] = []
    errors: list[str | None] = []
    waiting: list[ProcessedImage] = []
    positions: list[int] = []

    def flush() -> None:
        with torch.inference_mode():
            for position, image in zip(positions, model.tower_features(waiting) if waiting else [], strict=True):
                rows[position] = image.patches.float().mean(dim=0).cpu().numpy()
        waiting.clear()
        positions.clear()

    for _, result in read_ahead(lambda e: opened.processor.process(e.image.open()), examples):
        errors.append(result.reason if isinstance(result, UnreadableImageError) else None)
        rows.append(None)
        if not isinstance(result, UnreadableImageError):
            positions.append(len(rows) - 1)
            waiting.append(result)
        if len(waiting) == _BATCH:
            flush()
        on_image()
    flush()
    if all(row is None for row in rows):
        return Pooled(np.zeros((len(rows), 1), np.float32), errors)
    width = next(len(row) for row in rows if row is not None)
    blank = np.full(width, np.nan, dtype=np.float32)
    return Pooled(np.stack([blank if row is None else row for row in rows]), errors)


class Baselines:
    """Collects baselines of one experiment on its test split, and writes them.

    Args:
        run: the run folder.
        section: the task.
        splits: its data.
        examples: the test examples, after any limit.
        data_facts: the entry ``data`` of evaluation.json.
    """

    def __init__(
        self, run: Path, section: TaskSection, splits: Splits, examples: Sequence[Example], data_facts: dict[str, Any]
    ) -> None:
        if not examples or not splits.train:
            raise DataError("Baselines need training and test images.")
        self.run, self.splits, self.examples, self.data_facts = run, splits, examples, data_facts
        (self.question,) = Task.of(section, splits.labels).questions
        self.labels = splits.labels
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []

    def add_majority(self) -> None:
        """The most frequent training answer to a question of this type, or to the only question."""
        started = time.perf_counter()
        counts: dict[str | None, Counter[str]] = defaultdict(Counter)
        for example in self.splits.train:
            if answer := self.question.truth(example):
                counts[example.question_type][answer] += 1
        every = sum(counts.values(), Counter[str]())
        if not every:
            raise DataError("Baselines need training examples with an answer among the labels. See: vlmtune data check")
        of_type = [counts.get(example.question_type) or every for example in self.examples]
        answers = [counted.most_common(1)[0][0] for counted in of_type]
        log_probs = None if self.labels is None else np.stack([self._log_shares(counted) for counted in of_type])
        setting = f"of {every.total():,} training {'images' if self._asks_one_question else 'questions'}"
        if len(counts) > 1:
            setting += f", for each of {len(counts)} types of question"
        name = "Majority class" if self._asks_one_question else "Most frequent answer"
        self._add("majority", name, "floor", answers, setting, started, log_probs=log_probs)

    def add_probes(self, opened: OpenedModel, on_image: Callable[[], None] = lambda: None) -> None:
        """k nearest neighbors and a linear probe on the frozen vision features, if all have the same question."""
        probes = (("neighbors", "k-NN on vision features", nearest_neighbors),
                  ("linear-probe", "Linear probe on vision features", linear_probe))  # fmt: skip
        if self.labels is None or not self._asks_one_question:
            reason = "vision features do not know the question" if self.labels else "answers are open, not among labels"
            self.left_out += [{"key": key, "name": name, "reason": reason} for key, name, _ in probes]
            return
        started = time.perf_counter()
        train, validation, test = (
            pool_features(opened, split, on_image)
            for split in (self.splits.train, self.splits.validation, self.examples)
        )
        if not train.readable.any() or not test.readable.any():
            raise DataError("None of the images can be read. See: vlmtune data check CONFIG")
        known = Split(train.features[train.readable], self._positions(self.splits.train)[train.readable])
        held_out = Split(
            validation.features[validation.readable], self._positions(self.splits.validation)[validation.readable]
        )
        if len(np.unique(known.labels)) < 2:
            raise DataError("The readable training images are of one class: there is nothing to tell apart.")
        readable = test.features[test.readable]
        pooling = time.perf_counter() - started
        for key, name, probe in probes:
            # The features are computed once, but their time counts for each probe, as each would need it alone.
            started = time.perf_counter() - pooling
            probed = probe(known, held_out, readable, len(self.labels))
            note = f"{len(known.labels):,} training images, {readable.shape[1]} features"
            skipped = int((~train.readable).sum() + (~validation.readable).sum())
            notes = [*probed.notes, *([f"{skipped} unreadable training images left out."] if skipped else [])]
            result = replace(probed, setting=f"{probed.setting}, {note}", notes=notes)
            self._add_probed(key, name, result, test, started)

    def add_prompt_only(self, predictor: Predictor, key: str, name: str) -> None:
        """A model that sees a gray image of the same size instead: what the prompt and prior alone give."""
        started = time.perf_counter()
        gray: dict[Hashable, Example] = {}
        keys: list[Hashable] = []
        errors: list[str | None] = []
        for example, size in read_ahead(lambda e: e.image.open().size, self.examples):
            if isinstance(size, UnreadableImageError):
                errors.append(size.reason)
                keys.append(None)
                continue
            # Asked once for each size and question: everything else is the same.
            errors.append(None)
            keys.append((size, question_key(example)))
            gray.setdefault(keys[-1], replace(example, image=content_free_images(size)[0]))
        outcomes = dict(zip(gray, self.question.ask(predictor, list(gray.values())), strict=True))
        given = [outcomes.get(key) for key in keys]
        log_probs = None
        if self.labels is not None:
            blank = (np.nan,) * len(self.labels)
            rows = [each.scores.log_probs if each and each.scores else blank for each in given]
            log_probs = np.asarray(rows, dtype=np.float32)
        setting = f"{len(gray)} gray image{'s' if len(gray) > 1 else ''}, one for each size and question"
        texts = [None if each is None else each.prediction for each in given]
        self._add(key, name, "floor", texts, setting, started, log_probs=log_probs, error=errors)

    def add_evaluation(self, key: str, name: str, facts: dict[str, Any], folder: Path) -> None:
        """Add an existing evaluation, such as the base model's, as a row."""
        self.rows.append(self._row(key, name, "reference", facts["metrics"], facts.get("seconds"), folder))

    def result(self) -> dict[str, Any]:
        """What `baselines.json` holds: rows from floor to ceiling, each with its accuracy, interval and seconds; and
        ``left_out``: the ``key``, ``name`` and ``reason`` of baselines that do not apply.
        """
        return {
            "split": self.data_facts.get("split"),
            "limit": self.data_facts.get("limit"),
            "num_examples": len(self.examples),
            "created": now(),
            "rows": self.rows,
            "left_out": self.left_out,
        }

    @property
    def _asks_one_question(self) -> bool:
        return not self.question.section.asks_from_data

    def _log_shares(self, counts: Counter[str]) -> NDArray[np.float32]:
        """float32[L]: the shares of the labels among training answers, as log-probabilities."""
        assert self.labels is not None
        shares = np.asarray([max(counts[label] / counts.total(), LEAST_PROBABILITY) for label in self.labels.stored])
        log_shares: NDArray[np.float32] = np.log(shares / shares.sum()).astype(np.float32)
        return log_shares

    def _positions(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        assert self.labels is not None
        positions = {label: index for index, label in enumerate(self.labels.stored)}
        return np.asarray([positions[example.label] for example in examples], dtype=np.int64)

    def _add_probed(self, key: str, name: str, probed: Probed, test: Pooled, started: float) -> None:
        assert self.labels is not None
        texts: list[str | None] = [None] * len(self.examples)
        for row, label in zip(np.flatnonzero(test.readable), probed.prediction, strict=True):
            texts[row] = self.labels.stored[label]
        log_probs = None
        if probed.log_probs is not None:
            log_probs = np.full((len(texts), len(self.labels)), np.nan, dtype=np.float32)
            log_probs[test.readable] = probed.log_probs
        more = {"tried": probed.tried, "notes": probed.notes}
        columns = {"log_probs": log_probs, "error": test.errors}
        self._add(key, name, "ceiling", texts, probed.setting, started, more, **columns)

    def _add(
        self,
        key: str,
        name: str,
        kind: Kind,
        answers: Sequence[str | None],
        setting: str,
        started: float,
        more: dict[str, Any] | None = None,
        **columns: Any,
    ) -> None:
        seconds = time.perf_counter() - started
        table: PredictionTable = predictions_of(self.question, self.examples, answers, **columns)
        figures = measure(table)
        folder = self.run / FOLDER / "evaluation" / f"{self.data_facts['split']}-{key}"
        has_probabilities = columns.get("log_probs") is not None
        facts = {
            "name": name,
            "task": task_facts(self.question),
            "mode": "generate" if self.labels is None else "full" if has_probabilities else "argmax",
            "data": self.data_facts,
            "seconds": seconds,
            "created": now(),
            "metrics": figures,
        }
        write_evaluation(folder, facts, table)
        self.rows.append({**self._row(key, name, kind, figures, seconds, folder), "setting": setting, **(more or {})})

    def _row(
        self, key: str, name: str, kind: Kind, figures: dict[str, Any], seconds: float | None, folder: Path
    ) -> dict[str, Any]:
        keys = ("accuracy", "accuracy_interval", "num_correct", "num_unreadable", "nll")
        return {
            "key": key,
            "name": name,
            "kind": kind,
            **{each: figures[each] for each in keys},
            "seconds": seconds,
            "setting": "",
            "folder": os.path.relpath(folder, self.run),
        }
