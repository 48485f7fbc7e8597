"""The predictions of one evaluation as columns, and their parquet form. No torch.

`evaluate` builds a table from records; metrics, comparison and calibration compute on its arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from vlmtune.errors import DataError
from vlmtune.records import Prediction

REQUIRED_COLUMNS = ("id", "truth", "prediction", "log_probs")
"""What figures are computed from. The other columns that `to_arrow` writes may be missing in another version's file."""
NUM_TOP = 5


@dataclass(frozen=True, slots=True)
class PredictionTable:
    """All predictions of one evaluation, as columns.

    ``truth`` and ``prediction`` are positions in ``labels``; ``prediction`` is -1 where the image was unreadable.
    ``log_probs`` is normalized over the labels; its rows are NaN for unreadable images; None in arg-max mode.
    """

    labels: tuple[str, ...]
    ids: NDArray[np.object_]  # str [N]
    images: NDArray[np.object_]  # str or None [N]
    truth: NDArray[np.int64]  # [N]
    prediction: NDArray[np.int64]  # [N]
    log_probs: NDArray[np.float32] | None  # [N, L]
    seconds: NDArray[np.float32]  # [N], NaN where it was not measured
    errors: NDArray[np.object_]  # str or None [N]
    num_tokens: NDArray[np.int64] | None = None  # [N], decoder rows run for this image alone

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """bool[N]; an unreadable image is never correct."""
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
        return cls.from_columns(
            labels,
            ids=[r.id for r in predictions],
            images=[r.image for r in predictions],
            truth=[r.truth[0] for r in predictions],
            prediction=[r.prediction for r in predictions],
            log_probs=_log_prob_matrix(predictions, len(labels)),
            seconds=[r.seconds for r in predictions],
            errors=[r.error for r in predictions],
            num_tokens=[r.num_tokens for r in predictions],
        )

    @classmethod
    def from_columns(
        cls,
        labels: Sequence[str],
        *,
        ids: Sequence[str],
        images: Sequence[str | None],
        truth: Sequence[str],
        prediction: Sequence[str | None],
        log_probs: NDArray[np.float32] | None,
        seconds: ArrayLike,
        errors: Sequence[str | None],
        num_tokens: ArrayLike | None,
    ) -> PredictionTable:
        """Columns with names of labels instead of positions; a prediction of None is an unreadable image.

        Raises DataError for a name outside ``labels`` and for a repeated id.
        """
        _refuse_repeated(ids)
        positions = {label: index for index, label in enumerate(labels)}
        places = [
            -1 if p is None else _position(positions, p, i, "prediction") for i, p in zip(ids, prediction, strict=True)
        ]
        return cls(
            labels=tuple(labels),
            ids=_objects(ids),
            images=_objects(images),
            truth=np.asarray([_position(positions, t, i, "truth") for i, t in zip(ids, truth, strict=True)], np.int64),
            prediction=np.asarray(places, np.int64),
            log_probs=log_probs,
            seconds=np.asarray(seconds, np.float32),
            errors=_objects(errors),
            num_tokens=None if num_tokens is None else np.asarray(num_tokens, np.int64),
        )


def to_arrow(table: PredictionTable) -> pa.Table:
    """The table as predictions.parquet holds it: names instead of positions, and no time.

    So the file is a function of model and images alone, equal byte for byte however often it is made.
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
    for name, kind in (("image", pa.string()), ("error", pa.string()), ("num_tokens", pa.int64())):
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(len(table), kind))
    ids = table["id"].to_pylist()
    named = PredictionTable.from_columns(
        labels,
        ids=ids,
        images=table["image"].to_pylist(),
        truth=table["truth"].to_pylist(),
        prediction=table["prediction"].to_pylist(),
        log_probs=None,
        seconds=[seconds.get(i, np.nan) for i in ids],
        errors=table["error"].to_pylist(),
        num_tokens=None if table["num_tokens"].null_count else table["num_tokens"].to_numpy(),
    )
    return replace(named, log_probs=_log_probs_from_arrow(table["log_probs"], len(labels), named.readable))


def _log_probs_from_arrow(column: Any, num_labels: int, readable: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    present = column.is_valid().to_numpy()
    if not present.any():
        return None
    if (readable & ~present).any():
        raise DataError("some readable images have probabilities and others have none. Evaluate again.")
    lengths = pc.list_value_length(column).to_numpy()
    if (wrong := np.flatnonzero(present & (lengths != num_labels))).size:
        raise DataError(f"row {wrong[0] + 1}: log_probs do not have {num_labels} values, one a label.")
    return matrix_from_arrow(column, num_labels).astype(np.float32)


def matrix_from_arrow(column: Any, width: int) -> NDArray[Any]:
    """float[N, width] of a column of lists that are null or all of that length; null rows are NaN."""
    present = column.is_valid().to_numpy()
    values = pc.list_flatten(column).to_numpy()
    matrix = np.full((len(column), width), np.nan, dtype=values.dtype)
    matrix[present] = values.reshape(-1, width)
    return matrix


def _log_prob_matrix(predictions: Sequence[Prediction], num_labels: int) -> NDArray[np.float32] | None:
    present = [r.log_probs is not None for r in predictions]
    if not any(present):
        return None
    matrix = np.full((len(predictions), num_labels), np.nan, dtype=np.float32)
    for row, record in enumerate(predictions):
        if record.log_probs is None:
            if record.prediction is not None:
                raise DataError(f"'{record.id}' has no label probabilities, but other images have them.")
            continue
        if len(record.log_probs) != num_labels:
            raise DataError(f"'{record.id}' has {len(record.log_probs)} log-probabilities for {num_labels} labels.")
        matrix[row] = record.log_probs
    return matrix


def _refuse_repeated(ids: Sequence[str]) -> None:
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    repeated = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
    raise DataError(f"the id '{repeated}' stands twice; ids must be unique. Evaluate again.")


def _position(positions: Mapping[str, int], label: str | None, example: str, column: str) -> int:
    if label is not None and label in positions:
        return positions[label]
    listed = ", ".join(list(positions)[:10]) + (" …" if len(positions) > 10 else "")
    raise DataError(f"{column} '{label}' of '{example}' is not among the {len(positions)} labels: {listed}.")


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
