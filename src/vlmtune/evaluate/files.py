"""An evaluation folder: evaluation.json and three parquet files. Written whole or not at all.

`evaluate` writes it; `report`, `compare` and `calibration` need nothing else. No torch.

- predictions.parquet: id, image, truth, prediction, log_probs (of every label, normalized), top (five labels),
  num_tokens, error. It depends on model and images alone: equal byte for byte however often it is made.
- timing.parquet: id, seconds. - thumbnails.parquet: id, jpeg.
- evaluation.json: ``name``, ``task``, ``labels``, ``mode``, ``model``, ``base``, ``checkpoint``, versions, and

  - ``data``: ``source``, ``split``, ``num_examples``, ``limit`` (how many, if they are not the whole split; else null),
    ``fingerprint``, ``left_out``;
  - ``metrics``: see `metrics.measure`; ``unreadable``: a list of ``id`` and ``error``;
  - ``seconds``: of all images; ``num_tokens``: decoder rows run, an image's mean, its share of the prompt that
    images share included; ``num_tokens_unshared``: what a plain forward pass for every label would have run;
  - ``scoring``: ``form``, ``calibration`` (see `scoring`), ``chosen_on`` (null or "validation"), ``num_validation``,
    ``candidates``: each with ``form``, ``calibration``, and on validation ``accuracy``, ``num_correct``, ``nll``;
  - ``calibration`` (only if asked for): see `calibration.calibrate`.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from vlmtune.errors import DataError, RunFolderError
from vlmtune.evaluate.predictions import REQUIRED_COLUMNS, PredictionTable, from_arrow, to_arrow

FACTS_FILE = "evaluation.json"
PREDICTIONS_FILE = "predictions.parquet"
TIMING_FILE = "timing.parquet"
THUMBNAILS_FILE = "thumbnails.parquet"
THUMBNAIL_SIDE = 96

_REQUIRED_FACTS = ("name", "task", "labels", "data")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An evaluation folder in memory. ``facts`` is evaluation.json; ``thumbnails`` maps an id to JPEG bytes."""

    facts: dict[str, Any]
    predictions: PredictionTable
    thumbnails: dict[str, bytes] = field(default_factory=dict, repr=False)
    folder: Path | None = None

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def labels(self) -> tuple[str, ...]:
        return self.predictions.labels


class SomeEvaluation(Protocol):
    """An evaluation of any task."""

    @property
    def name(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    @property
    def folder(self) -> Path | None: ...


AnyEvaluation = TypeVar("AnyEvaluation", bound=SomeEvaluation)


def write_evaluation(
    folder: Path | str,
    facts: Mapping[str, Any],
    predictions: PredictionTable,
    thumbnails: Mapping[str, bytes] | None = None,
) -> Path:
    """Write an evaluation folder under a temporary name beside it, then rename; an older one there is replaced.

    Raises RunFolderError if the place cannot be written, or holds something that is not an evaluation.
    """
    facts = {**facts, "labels": list(predictions.labels)}
    return write_folder(folder, facts, to_arrow(predictions), predictions.ids, predictions.seconds, thumbnails or {})


def write_folder(
    folder: Path | str,
    facts: Mapping[str, Any],
    predictions: pa.Table,
    ids: Iterable[str],
    seconds: Iterable[float],
    thumbnails: Mapping[str, bytes],
    more: Mapping[str, str] | None = None,
) -> Path:
    """Write an evaluation of any task, as `write_evaluation` does; ``more`` are further files, name -> text."""
    folder = Path(folder)
    if folder.exists() and not (folder / FACTS_FILE).exists() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} exists and is not an evaluation folder. Name another place, or remove it.")
    missing = [key for key in _REQUIRED_FACTS if key not in facts]
    assert not missing, f"facts lack {missing}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise RunFolderError(
            f"Cannot write {folder}: {error.strerror}. Free the disk or name another place."
        ) from error
    try:
        pq.write_table(predictions, temporary / PREDICTIONS_FILE, compression="zstd")
        timing = {"id": pa.array(ids, pa.string()), "seconds": pa.array(seconds, pa.float32())}
        pq.write_table(pa.table(timing), temporary / TIMING_FILE, compression="zstd")
        pq.write_table(_thumbnail_table(thumbnails), temporary / THUMBNAILS_FILE)
        for name, content in (more or {}).items():
            (temporary / name).write_text(content, encoding="utf-8")
        text = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / FACTS_FILE).write_text(text + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        _replace_folder(temporary, folder)
    except OSError as error:
        raise RunFolderError(
            f"Cannot write {folder}: {error.strerror}. Free the disk or name another place."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read_evaluation(folder: Path | str) -> Evaluation:
    """Read an evaluation folder strictly; only columns that no figure needs, and times, may be missing.

    Raises RunFolderError naming the file for a missing or damaged file, a missing column or key, a label outside the
    list, a repeated id, or rows whose probabilities do not fit the labels.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    labels = tuple(facts["labels"])
    table = read_parquet(folder / PREDICTIONS_FILE, REQUIRED_COLUMNS)
    seconds: dict[str, float] = {}
    if (folder / TIMING_FILE).exists():
        timing = read_parquet(folder / TIMING_FILE, ("id", "seconds"))
        seconds = dict(zip(timing["id"].to_pylist(), timing["seconds"].to_pylist(), strict=True))
    try:
        predictions = from_arrow(table, labels, seconds)
    except DataError as error:
        raise RunFolderError(f"{folder / PREDICTIONS_FILE}: {error}") from error
    return Evaluation(facts, predictions, read_thumbnails(folder), folder)


def read_thumbnails(folder: Path) -> dict[str, bytes]:
    """Id -> JPEG; empty where the evaluation stored no images. Raises RunFolderError if the file is damaged."""
    if not (folder / THUMBNAILS_FILE).exists():
        return {}
    rows = read_parquet(folder / THUMBNAILS_FILE, ("id", "jpeg"))
    return dict(zip(rows["id"].to_pylist(), rows["jpeg"].to_pylist(), strict=True))


def is_evaluation(folder: Path | str) -> bool:
    """Whether a folder holds an evaluation."""
    return (Path(folder) / FACTS_FILE).is_file()


def facts_if_of(folder: Path | str, fingerprint: str) -> dict[str, Any] | None:
    """evaluation.json of a folder that was measured on the examples with this fingerprint; None for any other."""
    if not is_evaluation(folder):
        return None
    facts = read_facts(Path(folder))
    return facts if (facts["data"] or {}).get("fingerprint") == fingerprint else None


def with_distinct_names(evaluations: Sequence[AnyEvaluation]) -> list[AnyEvaluation]:
    """The same evaluations; those that share a name are called by their run's folder, by run and evaluation, or by
    what their paths do not share."""
    names = [e.name for e in evaluations]
    shared = _shared_parts([e.folder for e in evaluations if e.folder is not None and names.count(e.name) > 1])
    for rename in (_run_name, _run_and_own_name, lambda e: _without(e, *shared)):
        if len(set(names)) == len(names):
            break
        names = [rename(e) if _count_of(e.name, evaluations) > 1 else e.name for e in evaluations]
    return [
        e if e.name == name else cast(AnyEvaluation, replace(cast(Any, e), facts={**e.facts, "name": name}))
        for e, name in zip(evaluations, names, strict=True)
    ]


def _run_name(evaluation: SomeEvaluation) -> str:
    if evaluation.folder is None:
        return evaluation.name
    folder = evaluation.folder.resolve()
    return folder.parent.parent.name if folder.parent.name == "evaluation" else folder.name


def _run_and_own_name(evaluation: SomeEvaluation) -> str:
    return f"{_run_name(evaluation)}/{evaluation.folder.name if evaluation.folder else evaluation.name}"


def _shared_parts(folders: Sequence[Path]) -> tuple[int, int]:
    """How many parts all paths share at their beginning and at their end; each path keeps one part at least."""
    paths = [folder.resolve().parts for folder in folders]
    most = min((len(path) for path in paths), default=1) - 1
    first = next((i for i in range(most) if len({path[i] for path in paths}) > 1), most)
    last = next((i for i in range(most - first) if len({path[-1 - i] for path in paths}) > 1), most - first)
    return first, last


def _without(evaluation: SomeEvaluation, num_first: int, num_last: int) -> str:
    if evaluation.folder is None:
        return evaluation.name
    parts = evaluation.folder.resolve().parts
    return "/".join(parts[num_first : len(parts) - num_last])


def _count_of(name: str, evaluations: Sequence[SomeEvaluation]) -> int:
    return sum(e.name == name for e in evaluations)


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most 96 px a side. Images smaller than that keep their size."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def thumbnail_rows(predictions: PredictionTable, max_wrong: int = 500, max_right: int = 20) -> NDArray[np.int64]:
    """Level whose images a report shows: the mistakes (the most confident first if capped), and some right ones."""
    wrong = np.flatnonzero(~predictions.correct & predictions.readable)
    if len(wrong) > max_wrong and predictions.log_probs is not None:
        confidence = predictions.log_probs[wrong, predictions.prediction[wrong]]
        wrong = wrong[np.argsort(-confidence, kind="stable")]
    right = np.flatnonzero(predictions.correct)
    if len(right) > max_right:
        right = right[np.linspace(0, len(right) - 1, max_right).round().astype(np.int64)]
    return np.sort(np.concatenate([wrong[:max_wrong], right])).astype(np.int64)


def read_facts(folder: Path) -> dict[str, Any]:
    """evaluation.json alone, checked. Raises RunFolderError."""
    path = folder / FACTS_FILE
    if not path.is_file():
        raise RunFolderError(
            f"{folder} is not an evaluation folder: it has no {FACTS_FILE}. "
            "Give a folder that `vlmtune evaluate` wrote, such as runs/NAME/evaluation/test."
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{path}: not readable as JSON ({error}). Run `vlmtune evaluate` again.") from error
    if not isinstance(facts, dict):
        raise RunFolderError(f"{path}: expected a JSON object, found {type(facts).__name__}.")
    missing = [key for key in _REQUIRED_FACTS if key not in facts]
    if missing:
        raise RunFolderError(f"{path}: missing {', '.join(missing)}. Run `vlmtune evaluate` again.")
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
        {"id": pa.array(list(thumbnails), pa.string()), "jpeg": pa.array(list(thumbnails.values()), pa.binary())}
    )


def _replace_folder(temporary: Path, folder: Path) -> None:
    """Rename over an older folder: the older one is moved aside first, since rename refuses a folder with content."""
    if not folder.exists():
        temporary.replace(folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.replace(aside / "old")
    try:
        temporary.replace(folder)
    except OSError:
        (aside / "old").replace(folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
