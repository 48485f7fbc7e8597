"""The predictions of one VQA evaluation: columns, their parquet form, the folder, and the official results file.

No torch. The folder is that of `files`, with these differences:

- predictions.parquet: id (the question's), image, image_id, question, question_type, answer_type, answers (a list;
  empty where they are not known), prediction (null for an unreadable image), accuracy (0 to 1; null without
  answers), confidence (of a closed list scored in full; else null), error.
- submission.json: [{"question_id": …, "answer": …}] for every question, as the official servers take it.
- thumbnails.parquet: its ids are image ids.
- evaluation.json: ``task`` is "vqa", ``labels`` the closed list or [], ``metrics`` see `vqa_metrics.measure_vqa`;
  ``scoring``, ``calibration`` and ``num_tokens`` are not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmtune.errors import RunFolderError
from vlmtune.evaluate.files import (
    PREDICTIONS_FILE,
    TIMING_FILE,
    read_facts,
    read_parquet,
    read_thumbnails,
    write_folder,
)
from vlmtune.records import Example
from vlmtune.text.vqa_accuracy import vqa_accuracy

SUBMISSION_FILE = "submission.json"
NUM_MISTAKES = 300
"""Wrong answers whose images are stored."""
NUM_RIGHT = 20

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("question_type", pa.string()),
        ("answer_type", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("accuracy", pa.float64()),
        ("confidence", pa.float64()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class VqaTable:
    """All answers of one evaluation, as columns in the order of the split."""

    columns: pa.Table
    seconds: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.columns)

    def texts(self, name: str) -> list[Any]:
        """One column as Python values."""
        return list(self.columns[name].to_pylist())

    @cached_property
    def ids(self) -> list[str]:
        return self.texts("id")

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """float64[N]; NaN for a question whose answers are not known."""
        return np.asarray(self.columns["accuracy"].to_numpy(), dtype=np.float64)

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        """int64[N]: the image of each question, numbered from 0."""
        _, numbers = np.unique(np.asarray(self.texts("image_id")), return_inverse=True)
        return numbers.astype(np.int64)

    @cached_property
    def readable(self) -> NDArray[np.bool_]:
        return np.asarray(self.columns["error"].is_null().to_numpy())

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        predictions: Sequence[str | None],
        errors: Sequence[str | None],
        seconds: NDArray[np.float32],
        confidences: Sequence[float | None] | None = None,
    ) -> VqaTable:
        """Columns from a split and what was answered; an unreadable image (None) has accuracy 0."""
        rows = []
        for number, (example, prediction) in enumerate(zip(examples, predictions, strict=True)):
            accuracy = None
            if example.answers:
                accuracy = 0.0 if prediction is None else vqa_accuracy(prediction, example.answers)
            rows.append(
                {
                    "id": example.id,
                    "image": str(example.image.path) if example.image.path else None,
                    "image_id": example.image_id or example.id,
                    "question": example.question,
                    "question_type": example.question_type,
                    "answer_type": example.answer_type,
                    "answers": list(example.answers),
                    "prediction": prediction,
                    "accuracy": accuracy,
                    "confidence": None if confidences is None else confidences[number],
                    "error": errors[number],
                }
            )
        return cls(pa.Table.from_pylist(rows, schema=_SCHEMA), seconds)

    def thumbnail_rows(self) -> NDArray[np.int64]:
        """Level whose images a report shows: wrong answers (evenly chosen if there are many), and some right ones."""
        known = ~np.isnan(self.accuracy) & self.readable
        wrong, right = np.flatnonzero(known & (self.accuracy < 0.5)), np.flatnonzero(known & (self.accuracy == 1))
        chosen = [_spread(wrong, NUM_MISTAKES), _spread(right, NUM_RIGHT)]
        return np.sort(np.concatenate(chosen))

    def submission(self) -> list[dict[str, Any]]:
        """The official results: every question once, an empty answer where the image could not be read.

        Question ids are whole numbers, as the servers ask, wherever the data set's own are.
        """
        return [
            {"question_id": int(id_) if id_.isdecimal() else id_, "answer": answer or ""}
            for id_, answer in zip(self.ids, self.texts("prediction"), strict=True)
        ]


@dataclass(frozen=True)
class VqaEvaluation:
    """An evaluation folder of questions in memory. ``thumbnails`` maps an image id to JPEG bytes."""

    facts: dict[str, Any]
    table: VqaTable
    thumbnails: dict[str, bytes] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    @property
    def name(self) -> str:
        return str(self.facts["name"])


def write_vqa_evaluation(
    folder: Path, facts: Mapping[str, Any], table: VqaTable, thumbnails: Mapping[str, bytes]
) -> Path:
    """Write the folder whole or not at all. Raises RunFolderError as `files.write_evaluation` does."""
    more = {SUBMISSION_FILE: json.dumps(table.submission(), ensure_ascii=False) + "\n"}
    return write_folder(folder, facts, table.columns, table.ids, table.seconds.tolist(), thumbnails, more)


def read_vqa_evaluation(folder: Path | str) -> VqaEvaluation:
    """Read a folder strictly. Raises RunFolderError naming the file, also for an evaluation of another task."""
    folder = Path(folder)
    facts = read_facts(folder)
    if facts["task"] != "vqa":
        raise RunFolderError(f"{folder} is an evaluation of labels, not of questions (its task is '{facts['task']}').")
    columns = read_parquet(folder / PREDICTIONS_FILE, _SCHEMA.names).select(_SCHEMA.names)
    try:
        columns = columns.cast(_SCHEMA)
    except pa.ArrowException as error:
        raise RunFolderError(f"{folder / PREDICTIONS_FILE}: {error}. Run `vlmtune evaluate` again.") from error
    timing = read_parquet(folder / TIMING_FILE, ("id", "seconds"))
    seconds = np.asarray(timing["seconds"].to_numpy(), dtype=np.float32)
    return VqaEvaluation(facts, VqaTable(columns, seconds), read_thumbnails(folder), folder)


def is_vqa(folder: Path | str) -> bool:
    """Whether an evaluation folder is about questions. Raises RunFolderError if it is none."""
    return bool(read_facts(Path(folder))["task"] == "vqa")


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
