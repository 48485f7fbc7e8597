"""An evaluation folder: evaluation.json and three parquet files, the same for every kind of question.

Written whole or not at all by `evaluate`; `report`, `compare` and `calibration` need nothing else. No torch.

- predictions.parquet: see `table.COLUMNS`. - timing.parquet: id, question_id, seconds.
- thumbnails.parquet: image_id, jpeg. - submission.json, where examples have their own questions: every question with
  its answer, as the official VQA servers take it.
- evaluation.json: ``name``, ``task`` (``type``, ``question_from``), ``labels`` (closed, else null), ``mode`` (full,
  argmax or generate), ``model``, ``base``, ``checkpoint``, versions, and

  - ``data``: ``source``, ``split``, ``num_examples``, ``limit`` (how many, if they are not the whole split; else null),
    ``fingerprint``, ``left_out``;
  - ``metrics``: see `metrics.measure`; ``unreadable``: a list of ``id`` and ``error``;
  - ``seconds``: of all images; and of closed answers, else null,
  - ``num_tokens``: decoder positions run, a row's mean, its share of the prompt that all rows share included;
    ``num_tokens_unshared``: what a plain forward pass for every label would have run;
  - ``scoring``: ``reduce``, ``prior`` (see `scoring`), ``chosen_on`` (null or "validation"), ``num_validation``,
    ``candidates``: each with ``reduce``, ``prior``, and on validation ``accuracy``, ``nll``;
  - ``calibration`` (only if asked for): see `calibration.calibrate`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlmtune.errors import DataError, RunFolderError
from vlmtune.evaluate.table import COLUMNS, AnswerSpace, PredictionTable, outside_labels
from vlmtune.files import new_folder, read_json, write_json

FACTS_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.parquet"
TIMING_FILE = "timing.parquet"
THUMBNAILS_FILE = "thumbnails.parquet"
SUBMISSION_FILE = "submission.json"
THUMBNAIL_SIDE = 96
NUM_MISTAKES = 500
"""Wrong answers whose images are stored."""
NUM_RIGHT = 20

_REQUIRED_FACTS = ("name", "task", "labels", "data")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation folder in memory. ``facts`` is evaluation.json; ``thumbnails`` maps an image id to JPEG bytes."""

    facts: dict[str, Any]
    predictions: PredictionTable
    thumbnails: dict[str, bytes] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.predictions.labels

    @property
    def figures(self) -> dict[str, Any]:
        """The figures of `metrics.measure`."""
        figures: dict[str, Any] = self.facts["metrics"]
        return figures


def write_evaluation(
    folder: Path | str,
    facts: Mapping[str, Any],
    predictions: PredictionTable,
    thumbnails: Mapping[str, bytes] | None = None,
) -> Path:
    """Write an evaluation folder under a temporary name beside it, then rename; an older one there is replaced.

    Raises RunFolderError if the folder cannot be written, or holds something that is not an evaluation.
    """
    facts = {**facts, "labels": None if predictions.labels is None else list(predictions.labels)}
    folder = Path(folder)
    if folder.exists() and not (folder / FACTS_FILE).exists() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} exists and is not an evaluation folder. Name another folder, or remove it.")
    missing = [key for key in _REQUIRED_FACTS if key not in facts]
    assert not missing, f"facts lack {missing}"
    with new_folder(folder, replace=True) as temporary:
        pq.write_table(predictions.rows, temporary / PREDICTIONS_FILE, compression="zstd")
        timing = predictions.rows.select(["id", "question_id"]).append_column("seconds", pa.array(predictions.seconds))
        pq.write_table(timing, temporary / TIMING_FILE, compression="zstd")
        pq.write_table(_thumbnail_table(thumbnails or {}), temporary / THUMBNAILS_FILE)
        if facts["task"].get("question_from") == "data":
            write_json(temporary / SUBMISSION_FILE, submission(predictions), indent=None)
        write_json(temporary / FACTS_FILE, facts)
    return folder


def submission(predictions: PredictionTable) -> list[dict[str, Any]]:
    """The official results: every question once, an empty answer where the image could not be read.

    Question ids are whole numbers, as the servers ask, if the data set's own are.
    """
    return [
        {"question_id": int(id_) if id_.isdecimal() else id_, "answer": answer or ""}
        for id_, answer in zip(predictions.ids, predictions.texts("prediction"), strict=True)
    ]


def read_evaluation(folder: Path | str) -> Evaluation:
    """Read an evaluation folder strictly.

    Raises RunFolderError naming the file for a missing or damaged file, a missing column or key, a label outside the
    list, a repeated id, or rows whose probabilities do not fit the labels.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    path = folder / PREDICTIONS_FILE
    rows = read_parquet(path, COLUMNS.names).select(COLUMNS.names)
    labels = facts["labels"]
    space = AnswerSpace(facts["task"]["type"], None if labels is None else tuple(labels))
    try:
        rows = rows.cast(COLUMNS)
        seconds = read_parquet(folder / TIMING_FILE, ("id", "question_id", "seconds"))["seconds"].to_numpy()
        spaces = dict.fromkeys(rows["question_id"].unique().to_pylist(), space)
        predictions = PredictionTable(rows, spaces, np.asarray(seconds, dtype=np.float32))
        _check(predictions, facts)
    except (DataError, pa.ArrowException) as error:
        raise RunFolderError(f"{path}: {error} Run `vlmtune evaluate` again.") from error
    return Evaluation(facts, predictions, read_thumbnails(folder), folder)


def _check(predictions: PredictionTable, facts: Mapping[str, Any]) -> None:
    """Raises DataError for a repeated row, and for a name outside the labels."""
    keys = predictions.rows.group_by(["question_id", "id"]).aggregate([([], "count_all")])
    repeated = keys.filter(pc.greater(keys["count_all"], 1))["id"].to_pylist()
    if repeated:
        raise DataError(f"the id '{repeated[0]}' appears twice; ids must be unique.")
    if len(predictions.seconds) != len(predictions):
        raise DataError(f"{len(predictions)} rows, but {TIMING_FILE} has {len(predictions.seconds)}.")
    closed = predictions.closed
    if closed is not None and facts["task"].get("question_from") != "data":
        outside = np.flatnonzero((closed.truth < 0) & predictions.known)
        if len(outside):
            row = int(outside[0])
            truth = predictions.rows["truth"][row].as_py()
            raise outside_labels("truth", truth[0], predictions.ids[row], closed.labels)


def read_thumbnails(folder: Path) -> dict[str, bytes]:
    """Image id -> JPEG; empty where the evaluation stored no images. Raises RunFolderError if the file is damaged."""
    if not (folder / THUMBNAILS_FILE).exists():
        return {}
    rows = read_parquet(folder / THUMBNAILS_FILE, ("image_id", "jpeg"))
    return dict(zip(rows["image_id"].to_pylist(), rows["jpeg"].to_pylist(), strict=True))


def is_evaluation(folder: Path | str) -> bool:
    """Whether a folder holds an evaluation."""
    return (Path(folder) / FACTS_FILE).is_file()


def facts_if_of(folder: Path | str, fingerprint: str) -> dict[str, Any] | None:
    """evaluation.json of a folder that was measured on the examples with this fingerprint; None for any other."""
    if not is_evaluation(folder):
        return None
    facts = read_facts(Path(folder))
    return facts if (facts["data"] or {}).get("fingerprint") == fingerprint else None


def with_distinct_names(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The same evaluations; those that share a name are named by run folder, by run and evaluation, or by
    the parts of their paths that differ."""
    names = [e.name for e in evaluations]
    shared = _shared_parts([e.folder for e in evaluations if e.folder is not None and names.count(e.name) > 1])
    for rename in (_run_name, _run_and_own_name, lambda e: _without(e, *shared)):
        if len(set(names)) == len(names):
            break
        names = [rename(e) if _count_of(e.name, evaluations) > 1 else e.name for e in evaluations]
    return [
        e if e.name == name else replace(e, facts={**e.facts, "name": name})
        for e, name in zip(evaluations, names, strict=True)
    ]


def _run_name(evaluation: Evaluation) -> str:
    if evaluation.folder is None:
        return evaluation.name
    folder = evaluation.folder.resolve()
    return folder.parent.parent.name if folder.parent.name == "evaluation" else folder.name


def _run_and_own_name(evaluation: Evaluation) -> str:
    return f"{_run_name(evaluation)}/{evaluation.folder.name if evaluation.folder else evaluation.name}"


def _shared_parts(folders: Sequence[Path]) -> tuple[int, int]:
    """The number of leading and trailing parts that all paths share; each path keeps at least one part."""
    paths = [folder.resolve().parts for folder in folders]
    most = min((len(path) for path in paths), default=1) - 1
    first = next((i for i in range(most) if len({path[i] for path in paths}) > 1), most)
    last = next((i for i in range(most - first) if len({path[-1 - i] for path in paths}) > 1), most - first)
    return first, last


def _without(evaluation: Evaluation, num_first: int, num_last: int) -> str:
    if evaluation.folder is None:
        return evaluation.name
    parts = evaluation.folder.resolve().parts
    return "/".join(parts[num_first : len(parts) - num_last])


def _count_of(name: str, evaluations: Sequence[Evaluation]) -> int:
    return sum(e.name == name for e in evaluations)


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most 96 px per side. Smaller images keep their size."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def thumbnail_rows(
    predictions: PredictionTable, max_wrong: int = NUM_MISTAKES, max_right: int = NUM_RIGHT
) -> NDArray[np.int64]:
    """Rows whose images a report shows: wrong answers and some right ones.

    If there are more than ``max_wrong``, the most confident ones; without probabilities, evenly spaced ones.
    """
    measured = predictions.known & predictions.readable
    wrong = np.flatnonzero(measured & ~predictions.correct)
    closed = predictions.closed
    if len(wrong) > max_wrong and closed is not None and closed.log_probs is not None:
        confidence = closed.log_probs[wrong, closed.prediction[wrong]]
        wrong = wrong[np.argsort(-confidence, kind="stable")][:max_wrong]
    right = np.flatnonzero(measured & (predictions.score == 1))
    return np.sort(np.concatenate([_spread(wrong, max_wrong), _spread(right, max_right)]))


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def read_facts(folder: Path) -> dict[str, Any]:
    """evaluation.json alone, checked. Raises RunFolderError."""
    path = folder / FACTS_FILE
    if not path.is_file():
        raise RunFolderError(
            f"{folder} is not an evaluation folder: it has no {FACTS_FILE}. "
            "Give a folder that `vlmtune evaluate` wrote, such as runs/NAME/evaluation/test."
        )
    facts = read_json(path, advice="Run `vlmtune evaluate` again.")
    missing = [key for key in _REQUIRED_FACTS if key not in facts]
    if missing or not isinstance(facts["task"], dict):
        raise RunFolderError(f"{path}: missing {', '.join(missing) or 'task.type'}. Run `vlmtune evaluate` again.")
    return facts


def read_parquet(path: Path, columns: Iterable[str]) -> pa.Table:
    """A table with at least these columns. Raises RunFolderError naming the file for anything else."""
    if not path.is_file():
        raise RunFolderError(f"{path} is missing. Run `vlmtune evaluate` again.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path}: damaged ({reason}). Run `vlmtune evaluate` again.") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise RunFolderError(f"{path}: no column {', '.join(missing)}; found {', '.join(table.column_names)}.")
    return table


def _thumbnail_table(thumbnails: Mapping[str, bytes]) -> pa.Table:
    return pa.table(
        {"image_id": pa.array(list(thumbnails), pa.string()), "jpeg": pa.array(list(thumbnails.values()), pa.binary())}
    )
