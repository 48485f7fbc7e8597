"""The predictions of one evaluation as columns, whatever was asked. No torch.

In: examples with what a model answered, or predictions.parquet. Out: the columns from which metrics, comparison,
calibration and the report compute. A row is one question about one image; its score is between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from vlmtune.errors import DataError
from vlmtune.records import Example

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("question_id", pa.string()),
        ("image", pa.string()),
        ("image_id", pa.string()),
        ("question", pa.string()),
        ("question_type", pa.string()),
        ("answer_type", pa.string()),
        ("truth", pa.list_(pa.string())),
        ("prediction", pa.string()),
        ("score", pa.float64()),
        ("log_probs", pa.list_(pa.float32())),
        ("num_tokens", pa.int64()),
        ("error", pa.string()),
    ]
)
"""Of predictions.parquet, which depends on model and images alone: equal byte for byte however often it is made.

- ``id``: the example's; ``question_id``: the task's question; ``image``: a path, or null; ``image_id``: equal for all
  rows about one image; ``question``: its text where each example has its own;
- ``truth``: the accepted answers, empty where they are not known; ``prediction``: null for an unreadable image;
  ``score``: in [0, 1], null where the truth is not known;
- ``log_probs``: of the question's closed labels in their order, normalized; null for an unreadable image, in arg-max
  mode and for open answers; ``num_tokens``: decoder positions run for this row alone.
"""


@dataclass(frozen=True, slots=True)
class AnswerSpace:
    """The possible answers to a question: its type and, unless that is `text`, the stored labels in their order."""

    type: Literal["choice", "bool", "score", "text"]
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ClosedAnswers:
    """Rows of one closed question, by position among its labels.

    Attributes:
        truth: int64[N], the most frequent accepted answer among the labels; -1 if there is none.
        prediction: int64[N], -1 for an unreadable image.
        log_probs: float32[N, L], NaN for an unreadable image; None in arg-max mode.
        score: float64[N], NaN where the truth is not known.
    """

    labels: tuple[str, ...]
    truth: Ints
    prediction: Ints
    log_probs: NDArray[np.float32] | None
    score: Floats

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """bool[N]."""
        return self.prediction >= 0

    def take(self, rows: NDArray[Any]) -> ClosedAnswers:
        """Only these rows (positions, or bool[N])."""
        log_probs = None if self.log_probs is None else self.log_probs[rows]
        return ClosedAnswers(self.labels, self.truth[rows], self.prediction[rows], log_probs, self.score[rows])


@dataclass(frozen=True)
class PredictionTable:
    """All predictions of one evaluation, in the order of its split.

    Attributes:
        rows: the columns of `COLUMNS`.
        spaces: question id -> the answers it may have.
        seconds: float32[N], each row's share of the time its block took.
    """

    rows: pa.Table
    spaces: Mapping[str, AnswerSpace]
    seconds: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def from_columns(
        cls, spaces: Mapping[str, AnswerSpace], *, seconds: ArrayLike | None = None, **columns: Any
    ) -> PredictionTable:
        """A table of columns by name: Arrow arrays, numpy arrays or lists; ``log_probs`` float32[N, L] or None.

        ``id``, ``truth``, ``prediction`` and ``score`` are needed. Left out, ``image_id`` is the id, ``question_id``
        the only question's, and every other column null.
        """
        num = len(columns["id"])
        defaults = {"question_id": [next(iter(spaces))] * num, "image_id": columns["id"]}
        if isinstance(log_probs := columns.get("log_probs"), np.ndarray):
            columns["log_probs"] = _list_column(log_probs)
        arrays = []
        for field in COLUMNS:
            values = columns.pop(field.name, None)
            values = defaults.get(field.name) if values is None else values
            if isinstance(values, pa.Array | pa.ChunkedArray):
                arrays.append(values.cast(field.type))
            else:
                from_pandas = field.type == pa.float64()  # NaN is null
                arrays.append(
                    pa.nulls(num, field.type)
                    if values is None
                    else pa.array(values, field.type, from_pandas=from_pandas)
                )
        assert not columns, f"no column {', '.join(columns)}"
        times = np.full(num, np.nan, np.float32) if seconds is None else np.asarray(seconds, np.float32)
        return cls(pa.Table.from_arrays(arrays, schema=COLUMNS), spaces, times)

    @classmethod
    def of_examples(
        cls,
        examples: Sequence[Example],
        predictions: Sequence[str | None],
        spaces: Mapping[str, AnswerSpace],
        score: Callable[[str | None, Example], float | None],
        **columns: Any,
    ) -> PredictionTable:
        """A table of examples and their predictions; None for an unreadable image.

        Args:
            score: an answer and its example -> [0, 1]; None where the truth is not known. See `Question.score`.
            columns: ``log_probs``, ``num_tokens``, ``error`` and ``seconds``, see `from_columns`.
        """
        return cls.from_columns(
            spaces,
            id=[example.id for example in examples],
            image=[str(example.image.path) if example.image.path else None for example in examples],
            image_id=[example.image_id or example.id for example in examples],
            question=[example.question for example in examples],
            question_type=[example.question_type for example in examples],
            answer_type=[example.answer_type for example in examples],
            truth=[list(example.answers) for example in examples],
            prediction=list(predictions),
            score=[score(prediction, example) for example, prediction in zip(examples, predictions, strict=True)],
            **columns,
        )

    def texts(self, name: str) -> list[Any]:
        """One column as Python values."""
        return list(self.rows[name].to_pylist())

    @cached_property
    def ids(self) -> list[str]:
        return self.texts("id")

    @cached_property
    def score(self) -> Floats:
        """float64[N]; NaN where the truth is not known."""
        return np.asarray(self.rows["score"].to_numpy(), dtype=np.float64)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """bool[N]: a score of one half or more."""
        return self.score >= 0.5

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """bool[N]: whether the truth is known."""
        return ~np.isnan(self.score)

    @cached_property
    def readable(self) -> NDArray[np.bool_]:
        """bool[N]."""
        return np.asarray(self.rows["prediction"].is_valid().to_numpy())

    @cached_property
    def image_numbers(self) -> Ints:
        """int64[N]: the image of each row, numbered from 0 on."""
        codes = self.rows["image_id"].combine_chunks().dictionary_encode().indices
        return np.asarray(codes.to_numpy(), dtype=np.int64)

    @property
    def num_images(self) -> int:
        return int(self.image_numbers.max()) + 1 if len(self) else 0

    @property
    def clusters(self) -> Ints | None:
        """`image_numbers`, over which statistics resample; None where each row is a different image."""
        return None if self.num_images == len(self) else self.image_numbers

    def groups(self, name: str) -> dict[str, NDArray[np.bool_]]:
        """Value of a text column -> bool[N], the rows whose truth is known and that have it; the most frequent first.

        Rows without a value are under "".
        """
        column = self.rows[name].fill_null("").combine_chunks().dictionary_encode()
        codes = column.indices.to_numpy()
        counts = np.bincount(codes[self.known], minlength=len(column.dictionary))
        names = column.dictionary.to_pylist()
        order = sorted(np.flatnonzero(counts), key=lambda code: (-counts[code], names[code]))
        return {names[code]: self.known & (codes == code) for code in order}

    def take(self, rows: NDArray[Any]) -> PredictionTable:
        """The same table with these rows (positions, or bool[N]) in this order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return PredictionTable(self.rows.take(rows), self.spaces, self.seconds[rows])

    def of_question(self, question_id: str) -> PredictionTable:
        """The rows of one question."""
        part = self.take(pc.equal(self.rows["question_id"], question_id).to_numpy())
        return replace(part, spaces={question_id: self.spaces[question_id]})

    @property
    def space(self) -> AnswerSpace:
        """The answer space of the only question; several questions share none."""
        return next(iter(self.spaces.values())) if len(self.spaces) == 1 else AnswerSpace("text")

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The closed labels of the only question."""
        return self.space.labels

    @cached_property
    def closed(self) -> ClosedAnswers | None:
        """The rows of the only question by position among its labels; None for open answers and several questions.

        Raises DataError for a prediction outside the labels and for probabilities that do not fit them.
        """
        labels = self.labels
        if labels is None:
            return None
        predicted = pc.index_in(self.rows["prediction"], value_set=pa.array(labels, pa.string()))
        prediction = predicted.fill_null(-1).to_numpy().astype(np.int64)
        if (wrong := np.flatnonzero((prediction < 0) & self.readable)).size:
            raise outside_labels("prediction", self.texts("prediction")[wrong[0]], self.ids[wrong[0]], labels)
        log_probs = self._log_probs(len(labels))
        return ClosedAnswers(labels, _truth_positions(self.rows["truth"], labels), prediction, log_probs, self.score)

    def with_labels(self, labels: tuple[str, ...]) -> PredictionTable:
        """The same table with the labels of its only question in another order."""
        (question_id,) = self.spaces
        closed = self.closed
        if closed is None or closed.labels == labels:
            return self
        rows = self.rows
        if closed.log_probs is not None:
            old_of_new = [closed.labels.index(label) for label in labels]
            column = COLUMNS.get_field_index("log_probs")
            rows = rows.set_column(column, "log_probs", _list_column(closed.log_probs[:, old_of_new]))
        return PredictionTable(rows, {question_id: replace(self.space, labels=labels)}, self.seconds)

    def _log_probs(self, num_labels: int) -> NDArray[np.float32] | None:
        column = self.rows["log_probs"]
        present = column.is_valid().to_numpy()
        if not present.any():
            return None
        if (self.readable & ~present).any():
            raise DataError("some readable images have probabilities and others have none. Evaluate again.")
        lengths = pc.list_value_length(column).to_numpy()
        if (wrong := np.flatnonzero(present & (lengths != num_labels))).size:
            raise DataError(f"row {wrong[0] + 1}: log_probs do not have {num_labels} values, one a label.")
        return matrix_from_arrow(column, num_labels)


def renumbered(clusters: Ints) -> Ints | None:
    """Clusters of some of a table's rows renumbered from 0; None where each row has its own."""
    distinct, numbers = np.unique(clusters, return_inverse=True)
    return None if len(distinct) == len(clusters) else numbers.astype(np.int64)


def outside_labels(column: str, label: str | None, example: str, labels: Sequence[str]) -> DataError:
    """The error for a name outside the labels."""
    listed = ", ".join(labels[:10]) + (" …" if len(labels) > 10 else "")
    return DataError(f"{column} '{label}' of '{example}' is not among the {len(labels)} labels: {listed}.")


def matrix_from_arrow(column: Any, width: int) -> NDArray[Any]:
    """float[N, width] of a column of lists that are null or all of that length; null rows are NaN."""
    present = column.is_valid().to_numpy()
    values = pc.list_flatten(column).to_numpy()
    matrix: NDArray[Any] = values.reshape(-1, width)
    if present.all():
        return matrix
    matrix = np.full((len(column), width), np.nan, dtype=values.dtype)
    matrix[present] = values.reshape(-1, width)
    return matrix


def top_positions(log_probs: NDArray[np.float32], num: int) -> Ints:
    """int64[N, min(num, L)]: the most probable labels of each row, best first, ties in label order."""
    num = min(num, log_probs.shape[1])
    chosen = np.argpartition(-log_probs, num - 1, axis=1)[:, :num]
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(log_probs, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1).astype(np.int64)


def _list_column(matrix: NDArray[np.float32]) -> pa.Array:
    """A column of lists from float32[N, L]; a row that begins with NaN is null."""
    present = ~np.isnan(matrix[:, 0]) if len(matrix) else np.zeros(0, bool)
    offsets = np.concatenate([[0], np.cumsum(present * matrix.shape[1])]).astype(np.int32)
    values = pa.array((matrix if present.all() else matrix[present]).astype(np.float32, copy=False).ravel())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=None if present.all() else pa.array(~present))


def _truth_positions(truth: pa.ChunkedArray, labels: Sequence[str]) -> Ints:
    """int64[N]: see `ClosedAnswers.truth`; the first given among ties."""
    answers = pc.list_flatten(truth)
    rows = pc.list_parent_indices(truth).to_numpy()
    known = pa.array(labels, pa.string())
    positions = pc.index_in(answers, value_set=known)
    if positions.null_count:  # annotators' answers may differ from a label in white space
        spaced = pc.utf8_trim_whitespace(pc.replace_substring_regex(answers, r"\s+", " "))
        positions = pc.coalesce(positions, pc.index_in(spaced, value_set=known))
    is_label = positions.is_valid().to_numpy()
    rows, positions = rows[is_label].astype(np.int64), positions.drop_null().to_numpy()
    result = np.full(len(truth), -1, dtype=np.int64)
    pairs, first, counts = np.unique(rows * len(labels) + positions, return_index=True, return_counts=True)
    # Written in this order, the last write wins: the most frequent answer, the first given among ties.
    order = np.lexsort([-first, counts])
    result[pairs[order] // len(labels)] = pairs[order] % len(labels)
    return result
