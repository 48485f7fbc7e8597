"""Parquet files, `datasets` folders and hub data sets: Arrow columns of encoded images, read with `datasets`.

What the columns hold is decided by `columns`. Images are never decoded here, and stay in the memory-mapped Arrow file
until one is opened. No remote code is run: `datasets` has no loading scripts since version 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.duplicates import group_identical_files
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.rows import RowMapping, TableRow
from vlmtune.data.read.source import Source
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource, clean_label


@dataclass(frozen=True, slots=True)
class ArrowImageSource(ImageSource):
    """An image's encoded bytes in row ``row`` of a memory-mapped binary column, fetched when it is opened."""

    column: Any = field(default=None, repr=False, compare=False)
    row: int = 0

    def read(self) -> bytes:
        """The encoded bytes."""
        value: bytes = self.column[self.row].as_py()
        return value

    def num_bytes(self) -> int:
        """Length of the encoded image, without copying it."""
        return int(self.column[self.row].as_buffer().size)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling the column would send the whole table to another process with each image.
        return ImageSource, (None, self.read(), self.name)


def read_parquet(files: list[Path], mapper: ColumnMapper, name: str) -> Source:
    """Open parquet files as one split. The features that `datasets` wrote into them are honored."""
    paths = [str(file) for file in files]
    splits = _load(lambda datasets: datasets.load_dataset("parquet", data_files=paths), mapper.data, name, "parquet")
    return _open(splits, mapper, name, "parquet", files[0].parent)


def read_hub_folder(folder: Path, mapper: ColumnMapper) -> Source:
    """Open a local folder in the hub's layout: `README.md` with features, `data/train-00000-of-00001.parquet`."""
    name, data = str(folder), mapper.data
    splits = _load(lambda datasets: datasets.load_dataset(name, name=data.subset), data, name, "datasets folder")
    return _open(splits, mapper, name, "datasets folder", folder)


def read_saved_folder(folder: Path, mapper: ColumnMapper) -> Source:
    """Open what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    name, kind = str(folder), "datasets folder (Arrow)"
    splits = _load(lambda datasets: datasets.load_from_disk(name), mapper.data, name, kind)
    return _open(splits, mapper, name, kind, folder)


def read_hub(name: str, mapper: ColumnMapper) -> Source:
    """Open a data set of the Hugging Face hub, at ``data.revision``; it is downloaded once and kept in the cache."""
    subset, revision = mapper.data.subset, mapper.data.revision
    splits = _load(
        lambda datasets: datasets.load_dataset(name, name=subset, revision=revision), mapper.data, name, "hub"
    )
    return _open(splits, mapper, name, "hub", None)


def load_data_set(name: str, revision: str | None = None) -> dict[str, Any]:
    """The splits of a hub data set, or of a local folder in the hub's layout, as `datasets` has them.

    For conversions into another data set. Raises DataError.
    """
    folder = Path(name).expanduser()
    data = DataSection(source=name, revision=revision)
    if folder.is_dir():
        return _load(lambda datasets: datasets.load_dataset(str(folder)), data, name, "datasets folder")
    return _load(lambda datasets: datasets.load_dataset(name, revision=revision), data, name, "hub")


def _load(load: Callable[[Any], Any], data: DataSection, name: str, kind: str) -> dict[str, Any]:
    import datasets

    try:
        loaded = load(datasets)
    # datasets raises ValueError, OSError, Arrow's, pandas' and the hub's errors, depending on the fault in the files.
    except Exception as error:
        raise DataError(_why(error, data, name, kind)) from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}


def _open(splits: dict[str, Any], mapper: ColumnMapper, name: str, kind: str, folder: Path | None) -> Source:
    import datasets

    first = next(iter(splits.values()), None)
    if first is None:
        raise DataError(f"{name}: this data set has no splits.")
    features = first.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image_column = mapper.image_column(list(features), name, images)
    class_names = {
        column: tuple(clean_label(text) for text in feature.names)
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    mapping = mapper.choose([column for column in features if column != image_column], name, class_names)
    source = Source(name, kind, {}, revision=_revision(first) or mapper.data.revision)
    if (label := mapping.columns.get("label")) is not None:
        if not isinstance(features[label], datasets.Value | datasets.ClassLabel):
            raise DataError(
                f"{name}: the column '{label}' holds {features[label]}, not one label an image. Expected text, whole "
                "numbers or ClassLabel. Set data.label_column."
            )
        source.class_names = class_names.get(label)
    for split, dataset in splits.items():
        source.splits[str(split)] = partial(_read_split, dataset, str(split), image_column, mapping, source, folder)
    return source


def _read_split(
    dataset: Any, split: str, image_column: str, mapping: RowMapping, source: Source, folder: Path | None
) -> list[Example]:
    table = dataset.with_format("arrow")[:]
    where = f"{source.name}, split '{split}'"
    rows = _rows(table, split, image_column, mapping, folder, where)
    return mapping.map_rows(rows, source, where, Counter())


def _rows(
    table: Any, split: str, image_column: str, mapping: RowMapping, folder: Path | None, where: str
) -> Iterator[TableRow]:
    cells = {name: _values(table.column(name)) for name in mapping.columns.values()}
    images, problems = _images(table.column(image_column), image_column, where, folder, mapping.may_lack_image)
    image_ids = [""] * len(images)
    if mapping.has_questions:
        present = {number: image for number, image in enumerate(images) if image is not None}
        id_column = mapping.columns.get("image_id")
        written = None if id_column is None else [cells[id_column][number] for number in present]
        # Questions about one image share one source, so that it is read and encoded once.
        first_of: dict[str, ImageSource] = {}
        same = _same_images(list(present.values()), split, written)
        for (number, image), image_id in zip(present.items(), same, strict=True):
            image_ids[number] = image_id
            images[number] = first_of.setdefault(image_id, image)
    for number, shared in enumerate(images):
        row = {name: values[number] for name, values in cells.items()}
        origin = f"{where}, row {number}"
        yield TableRow(f"{split}/{number}", origin, row, shared, image_ids[number], problem=problems.get(number, ""))


def _values(column: Any) -> list[Any]:
    """A column as Python values. Annotators' records are reduced to answers: VQAv2 has four million."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _values(chunk)]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("answer") >= 0:
        # The Sequence feature of older data sets holds a record of lists instead of a list of records.
        return list(pc.struct_field(column, "answer").to_pylist())
    if (
        pa.types.is_list(kind)
        and pa.types.is_struct(kind.value_type)
        and kind.value_type.get_field_index("answer") >= 0
    ):
        # `flatten` honors a sliced array's offsets, and skips values hidden under null lists.
        answers = pc.struct_field(column.flatten(), "answer").to_pylist()
        ends = pc.fill_null(column.value_lengths(), 0).to_numpy(zero_copy_only=False).cumsum().tolist()
        return [answers[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return list(column.to_pylist())


def _same_images(images: Sequence[ImageSource], split: str, written: list[Any] | None) -> list[str]:
    """For each row the id of its image: as given if rows of one id hold files of equal length, else by content."""
    if written is not None and all(value is not None for value in written):
        ids = [str(value) for value in written]
        lengths: dict[str, int | None] = {}
        sizes = [image.num_bytes() for image in images]
        if all(lengths.setdefault(id_, size) == size for id_, size in zip(ids, sizes, strict=True)):
            return ids
    return [f"{split}/{first}" for first in group_identical_files(images)]


def _images(
    column: Any, column_name: str, where: str, folder: Path | None, may_lack: bool
) -> tuple[list[ImageSource | None], dict[int, str]]:
    """One source per row, from struct{bytes, path}, plain bytes, or text that names a file.

    Returns the sources (None if missing) and, by row, the problems.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    paths: list[str | None] = [None] * len(column)
    content = None
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        content = pc.struct_field(column, "bytes")
        if kind.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").to_pylist()
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        content = column
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        paths = column.to_pylist()
    else:
        raise DataError(
            f"{where}: the column '{column_name}' holds {kind}, not images. Expected the Image feature "
            f"(bytes and path), bytes, or file names. Set data.image_column."
        )
    absent = pc.is_null(content).to_pylist() if content is not None else [True] * len(column)
    sources: list[ImageSource | None] = []
    problems: dict[int, str] = {}
    for row, (path, is_absent) in enumerate(zip(paths, absent, strict=True)):
        source: ImageSource | None = None
        if not is_absent:
            source = ArrowImageSource(name=f"{where}, row {row}", column=content, row=row)
        elif path:
            file = Path(path) if folder is None else folder / path
            if file.is_file():
                source = ImageSource(path=file, name=str(file))
            else:
                problems[row] = (
                    f"the column '{column_name}' names the file {file}, which does not exist. Put the file there, or "
                    "embed the image's bytes."
                )
        elif not may_lack:
            problems[row] = f"there is no image in the column '{column_name}'. Remove the row."
        sources.append(source)
    return sources, problems


def _revision(dataset: Any) -> str | None:
    """The commit that a hub data set was read from: its files are recorded as hf://datasets/NAME@COMMIT/FILE."""
    for address in dataset.info.download_checksums or {}:
        if address.startswith("hf://") and "@" in address:
            return str(address.split("@", 1)[1].split("/", 1)[0])
    return None


def _why(error: Exception, data: DataSection, name: str, kind: str) -> str:
    """What went wrong and what to do, from the chain of errors that `datasets` raises."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    reason = str(error if kind == "hub" else root).strip() or type(root).__name__
    lines = [line for line in reason.splitlines() if line.strip()]
    reason = " ".join(lines[:4])[:600]
    if isinstance(error, PermissionError):
        advice = "Make the folder readable and the cache (HF_HOME) writable."
    elif kind != "hub":
        advice = "Check that the files are complete and of one schema."
        if "BuilderConfig" in reason or "onfig name" in reason:
            advice = "Set data.subset to one of them."
    elif "onfig name" in reason or "BuilderConfig" in reason:
        advice = "Set data.subset to one of them."
    elif "gated" in reason.lower():
        advice = "Accept its terms on the hub, then log in: hf auth login."
    else:
        revision = f", data.revision ({data.revision})" if data.revision else ""
        advice = (
            f"Check the name{revision} and the connection (HF_TOKEN for private sets). "
            f"If a local folder was meant: {Path(name).expanduser().absolute()} does not exist."
        )
    return f"{name}: cannot load this data set ({type(error).__name__}: {reason}). {advice}"
