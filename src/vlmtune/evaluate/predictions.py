"""The predictions of one evaluation as columns, and their parquet form. No torch.

`evaluate` builds a table from records; metrics, comparison and calibration compute on its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmtune.errors import DataError
from vlmtune.records import Prediction

COLUMNS = ("id", "image", "truth", "prediction", "log_probs", "top", "num_tokens", "error")
NUM_TOP = 5


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """All predictions of one evaluation, as columns.

    ``truth`` and ``prediction`` are positions in ``labels``; ``prediction`` is -1 where the picture was unreadable.
    ``log_probs`` is normalised over the labels; its rows are NaN for unreadable pictures; None in arg-max mode.
    """

    labels: tuple[str, ...]
    ids: NDArray[np.object_]  # str [N]
    images: NDArray[np.object_]  # str or None [N]
    truth: NDArray[np.int64]  # [N]
    prediction: NDArray[np.int64]  # [N]
    log_probs: NDArray[np.float32] | None  # [N, L]
    seconds: NDArray[np.float32]  # [N], NaN where it was not measured
    errors: NDArray[np.object_]  # str or None [N]
    num_tokens: NDArray[np.int64] | None = None  # [N], decoder rows run for this picture alone

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool[N]; an unreadable picture is never correct."""
        return np.equal(self.truth, self.prediction)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """bool[N]."""
        return self.prediction >= 0

    def take(self, rows: NDArray[np.integer[Any]]) -> PredictionTable:
        """The same table with these rows in this order."""
        return PredictionTable(
            self.labels,
            self.ids[rows],
            self.images[rows],
            self.truth[rows],
            self.prediction[rows],
            None if self.log_probs is None else self.log_probs[rows],
            self.seconds[rows],
            self.errors[rows],
            None if self.num_tokens is None else self.num_tokens[rows],
        )

    @classmethod
    def from_records(cls, predictions: Sequence[Prediction], labels: Sequence[str]) -> PredictionTable:
        """Columns from classification records.

        Raises DataError for a truth or a prediction outside ``labels``, for a repeated id, and when some readable
        rows have probabilities and others do not.
        """
        ids = [record.id for record in predictions]
        _refuse_repeated(ids, "the predictions")
        positions = {label: index for index, label in enumerate(labels)}
        truth = [_position(positions, r.truth[0], r.id, "truth") for r in predictions]
        prediction = [
            -1 if r.prediction is None else _position(positions, r.prediction, r.id, "prediction") for r in predictions
        ]
        return cls(
            labels=tuple(labels),
            ids=_objects(ids),
            images=_objects([r.image for r in predictions]),
            truth=np.asarray(truth, dtype=np.int64),
            prediction=np.asarray(prediction, dtype=np.int64),
            log_probs=_log_prob_matrix(predictions, len(labels)),
            seconds=np.asarray([r.seconds for r in predictions], dtype=np.float32),
            errors=_objects([r.error for r in predictions]),
            num_tokens=np.asarray([r.num_tokens for r in predictions], dtype=np.int64),
        )


def to_arrow(table: PredictionTable) -> pa.Table:
    """The table as predictions.parquet holds it: names instead of positions, and no time.

    So the file is a function of model and pictures alone, equal byte for byte however often it is made.
    """
    names = np.asarray([*table.labels, None], dtype=object)  # position -1 reads as None
    return pa.table(
        {
            "id": pa.array(table.ids, pa.string()),
            "image": pa.array(table.images, pa.string()),
            "truth": pa.array(names[table.truth], pa.string()),
            "prediction": pa.array(names[table.prediction], pa.string()),
            "log_probs": _log_prob_column(table),
            "top": pa.array(_top_labels(table), pa.list_(pa.string())),
            "num_tokens": pa.nulls(len(table), pa.int64()) if table.num_tokens is None else pa.array(table.num_tokens),
            "error": pa.array(table.errors, pa.string()),
        }
    )


def _log_prob_column(table: PredictionTable) -> pa.Array:
    if table.log_probs is None:
        return pa.nulls(len(table), pa.list_(pa.float32()))
    readable = table.readable
    offsets = np.concatenate([[0], np.cumsum(readable * len(table.labels))]).astype(np.int32)
    values = pa.array(table.log_probs[readable].ravel(), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~readable))


def _top_labels(table: PredictionTable) -> list[list[str]]:
    if table.log_probs is None:
        return [[table.labels[p]] if p >= 0 else [] for p in table.prediction]
    order = top_positions(table.log_probs, NUM_TOP)
    names = np.asarray(table.labels, dtype=object)[order].tolist()
    return [row if ok else [] for row, ok in zip(names, table.readable, strict=True)]


def top_positions(log_probs: NDArray[np.float32], num: int) -> NDArray[np.int64]:
    """int64[N, min(num, L)]: the most probable labels of each row, best first, ties in label order."""
    num = min(num, log_probs.shape[1])
    chosen = np.argpartition(-log_probs, num - 1, axis=1)[:, :num]
    chosen.sort(axis=1)
    order = np.argsort(-np.take_along_axis(log_probs, chosen, axis=1), axis=1, kind="stable")
    return np.take_along_axis(chosen, order, axis=1).astype(np.int64)


def from_arrow(table: pa.Table, labels: tuple[str, ...], seconds: Mapping[str, float]) -> PredictionTable:
    """Columns from predictions.parquet, with the seconds that each id took.

    Raises DataError for a label outside ``labels``, a repeated id, or probabilities that do not fit the labels.
    """
    ids = table["id"].to_pylist()
    _refuse_repeated(ids, "column id")
    positions = {label: index for index, label in enumerate(labels)}
    truth = [_position(positions, t, i, "truth") for i, t in zip(ids, table["truth"].to_pylist(), strict=True)]
    prediction = [
        -1 if p is None else _position(positions, p, i, "prediction")
        for i, p in zip(ids, table["prediction"].to_pylist(), strict=True)
    ]
    predicted = np.asarray(prediction, dtype=np.int64)
    return PredictionTable(
        labels=labels,
        ids=_objects(ids),
        images=_objects(table["image"].to_pylist()),
        truth=np.asarray(truth, dtype=np.int64),
        prediction=predicted,
        log_probs=_log_probs_from_arrow(table["log_probs"].combine_chunks(), len(labels), predicted >= 0),
        seconds=np.asarray([seconds.get(i, np.nan) for i in ids], dtype=np.float32),
        errors=_objects(table["error"].to_pylist()),
        num_tokens=None if table["num_tokens"].null_count else np.asarray(table["num_tokens"].to_numpy(), np.int64),
    )


def _log_probs_from_arrow(column: Any, num_labels: int, readable: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    if not present.any():
        return None
    if (readable & ~present).any():
        raise DataError("some readable pictures have probabilities and others have none. Evaluate again.")
    lengths = column.drop_null().value_lengths().to_numpy(zero_copy_only=False)
    if (lengths != num_labels).any():
        row = int(np.flatnonzero(present)[np.flatnonzero(lengths != num_labels)[0]])
        raise DataError(f"row {row + 1}: log_probs do not have {num_labels} values, one a label.")
    matrix = np.full((len(column), num_labels), np.nan, dtype=np.float32)
    matrix[present] = column.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, num_labels)
    return matrix


def _log_prob_matrix(predictions: Sequence[Prediction], num_labels: int) -> NDArray[np.float32] | None:
    present = [r.log_probs is not None for r in predictions]
    if not any(present):
        return None
    matrix = np.full((len(predictions), num_labels), np.nan, dtype=np.float32)
    for row, record in enumerate(predictions):
        if record.log_probs is None:
            if record.prediction is not None:
                raise DataError(f"'{record.id}' has no label probabilities, but other pictures have them.")
            continue
        if len(record.log_probs) != num_labels:
            raise DataError(f"'{record.id}' has {len(record.log_probs)} log-probabilities for {num_labels} labels.")
        matrix[row] = record.log_probs
    return matrix


def _refuse_repeated(ids: Sequence[str], where: str) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    repeated = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
    raise DataError(f"the id '{repeated}' stands twice in {where}; ids must be unique. Evaluate again.")


def _position(positions: Mapping[str, int], label: str | None, example: str, column: str) -> int:
    if label is not None and label in positions:
        return positions[label]
    listed = ", ".join(list(positions)[:10]) + (" …" if len(positions) > 10 else "")
    raise DataError(f"{column} '{label}' of '{example}' is not among the {len(positions)} labels: {listed}.")


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
