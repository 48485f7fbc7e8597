"""Baselines of an experiment: what needs no image, and what the frozen vision features alone would give.

Each is an ordinary evaluation folder under `RUN/baselines/evaluation/` (so `vlmtune compare` takes it), and a row of
`RUN/baselines.json`. Called by `vlmtune baselines` and `demo`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vlmtune.data.prefetch import read_ahead
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.evaluate.files import write_evaluation
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.predictions import PredictionTable
from vlmtune.evaluate.probes import Probed, Split, linear_probe, majority_class, nearest_neighbors
from vlmtune.evaluate.scoring import content_free_images
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.records import Example, LabelScores, LabelSet, Prediction
from vlmtune.runs.environment import now

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
    places: list[int] = []

    def flush() -> None:
        with torch.inference_mode():
            for place, image in zip(places, model.tower_features(waiting) if waiting else [], strict=True):
                rows[place] = image.patches.float().mean(dim=0).cpu().numpy()
        waiting.clear()
        places.clear()

    for _, result in read_ahead(lambda e: opened.processor.process(e.image.open()), examples):
        errors.append(result.reason if isinstance(result, UnreadableImageError) else None)
        rows.append(None)
        if not isinstance(result, UnreadableImageError):
            places.append(len(rows) - 1)
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
        splits: classification data.
        examples: the test images, after any limit.
        data_facts: what evaluation.json says of the data.
    """

    def __init__(self, run: Path, splits: Splits, examples: Sequence[Example], data_facts: dict[str, Any]) -> None:
        if splits.labels is None:
            raise DataError("Baselines need a label set: they are for classification.")
        if not examples or not splits.train:
            raise DataError("Baselines need training and test images.")
        self.run, self.splits, self.examples, self.data_facts = run, splits, examples, data_facts
        self.labels: LabelSet = splits.labels
        self.truth = self._positions(examples)
        self.rows: list[dict[str, Any]] = []

    def add_majority(self) -> None:
        """The most frequent training label for every image."""
        started = time.perf_counter()
        probed = majority_class(self._positions(self.splits.train), len(self.examples), len(self.labels))
        self._add_probed("majority", "Majority class", "floor", probed, [None] * len(self.examples), started)

    def add_probes(self, opened: OpenedModel, on_image: Callable[[], None] = lambda: None) -> None:
        """k nearest neighbors and a linear probe on the frozen vision features."""
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
        probes = (("neighbors", "k-NN on vision features", nearest_neighbors),
                  ("linear-probe", "Linear probe on vision features", linear_probe))  # fmt: skip
        for key, name, probe in probes:
            # The features are needed once: their time stands with each, as each would need it alone.
            started = time.perf_counter() - pooling
            probed = probe(known, held_out, readable, len(self.labels))
            note = f"{len(known.labels):,} training images, {readable.shape[1]} features"
            skipped = int((~train.readable).sum() + (~validation.readable).sum())
            notes = [*probed.notes, *([f"{skipped} unreadable training images left out."] if skipped else [])]
            told = replace(probed, setting=f"{probed.setting}, {note}", notes=notes)
            self._add_probed(key, name, "ceiling", told, test.errors, started)

    def add_prompt_only(self, predictor: Predictor, key: str, name: str) -> None:
        """A model that sees gray instead of each image, of the same size: what prompt and habit alone give."""
        started = time.perf_counter()
        queries: dict[tuple[tuple[int, int], str | None], Query] = {}
        asked: list[tuple[tuple[int, int], str | None] | UnreadableImageError] = []
        for example, size in read_ahead(lambda e: e.image.open().size, self.examples):
            if isinstance(size, UnreadableImageError):
                asked.append(size)
                continue
            # Scored once for each size and question: everything else is the same.
            queries.setdefault((size, example.question), Query(content_free_images(size)[0].image, example.question))
            asked.append((size, example.question))
        answers = dict(zip(queries, predictor.classify(queries.values()), strict=True))
        records = []
        for example, query in zip(self.examples, asked, strict=True):
            if isinstance(query, UnreadableImageError):
                records.append(Prediction(example.id, example.answers, None, error=query.reason))
                continue
            scores = answers[query]
            assert isinstance(scores, LabelScores)  # a gray image can be read
            records.append(Prediction(example.id, example.answers, scores.prediction, scores.log_probs))
        setting = f"{len(queries)} gray image{'s' if len(queries) > 1 else ''}, one for each size and question"
        self._add(key, name, "floor", records, setting, started)

    def add_evaluation(self, key: str, name: str, facts: dict[str, Any], folder: Path) -> None:
        """An evaluation that exists, such as the base model's, as a row beside the others."""
        self.rows.append(self._row(key, name, "reference", facts["metrics"], facts.get("seconds"), folder))

    def result(self) -> dict[str, Any]:
        """What `baselines.json` holds: rows from floor to ceiling, each with its accuracy, interval and seconds."""
        return {
            "split": self.data_facts.get("split"),
            "limit": self.data_facts.get("limit"),
            "num_examples": len(self.examples),
            "created": now(),
            "rows": self.rows,
        }

    def _positions(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        places = {label: index for index, label in enumerate(self.labels.stored)}
        return np.asarray([places[example.label] for example in examples], dtype=np.int64)

    def _add_probed(
        self, key: str, name: str, kind: Kind, probed: Probed, errors: Sequence[str | None], started: float
    ) -> None:
        records = []
        rows = iter(range(len(probed.prediction)))
        for example, error in zip(self.examples, errors, strict=True):
            label, log_probs = None, None
            if error is None:
                row = next(rows)
                label = self.labels.stored[probed.prediction[row]]
                log_probs = None if probed.log_probs is None else tuple(probed.log_probs[row].tolist())
            records.append(Prediction(example.id, example.answers, label, log_probs, error=error))
        self._add(key, name, kind, records, probed.setting, started, tried=probed.tried, notes=probed.notes)

    def _add(
        self, key: str, name: str, kind: Kind, records: list[Prediction], setting: str, started: float, **more: Any
    ) -> None:
        seconds = time.perf_counter() - started
        table = PredictionTable.from_records(records, self.labels.stored)
        figures = measure(table)
        folder = self.run / FOLDER / "evaluation" / f"{self.data_facts['split']}-{key}"
        facts = {
            "name": name,
            "task": "classify",
            "mode": "full" if table.log_probs is not None else "argmax",
            "data": self.data_facts,
            "seconds": seconds,
            "created": now(),
            "metrics": figures,
        }
        write_evaluation(folder, facts, table)
        self.rows.append({**self._row(key, name, kind, figures, seconds, folder), "setting": setting, **more})

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
