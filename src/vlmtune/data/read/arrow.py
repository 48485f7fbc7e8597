"""Parquet files, `datasets` folders and hub data sets: Arrow columns of encoded images, read with `datasets`.

A row is an image with its label or, with ``ask``, a question about an image with its answers.

Images are never decoded here, and stay in the memory-mapped Arrow file until one is opened. No remote code is run:
`datasets` has no loading scripts since version 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.duplicates import group_identical_files, num_bytes
from vlmtune.data.read.columns import find_column
from vlmtune.data.read.conversations import CaptionColumns, ConversationColumns, choose_columns
from vlmtune.data.read.rows import Row, Source, refuse_problems
from vlmtune.data.read.vqa_rows import QuestionColumns
from vlmtune.errors import DataError
from vlmtune.records import ImageSource, clean_label


@dataclass(frozen=True, slots=True)
class ArrowImageSource(ImageSource):
    """An image's encoded bytes in row ``row`` of a memory-mapped binary column, fetched when asked for."""

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


def read_parquet(files: list[Path], data: DataSection, name: str, *, ask: bool = False) -> Source:
    """Open parquet files as one split. The features that `datasets` wrote into them are honored."""
    return _open(
        lambda datasets: datasets.load_dataset("parquet", data_files=[str(file) for file in files]),
        data, name, "parquet", files[0].parent, ask,
    )  # fmt: skip


def read_hub_folder(folder: Path, data: DataSection, *, ask: bool = False) -> Source:
    """Open a local folder in the hub's layout: `README.md` with features, `data/train-00000-of-00001.parquet`."""
    return _open(
        lambda datasets: datasets.load_dataset(str(folder), name=data.subset),
        data, str(folder), "datasets folder", folder, ask,
    )  # fmt: skip


def read_saved_folder(folder: Path, data: DataSection, *, ask: bool = False) -> Source:
    """Open what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return _open(
        lambda datasets: datasets.load_from_disk(str(folder)),
        data, str(folder), "datasets folder (Arrow)", folder, ask,
    )  # fmt: skip


def read_hub(name: str, data: DataSection, *, ask: bool = False) -> Source:
    """Open a data set of the Hugging Face hub, at ``data.revision``; it is downloaded once and kept in the cache."""
    return _open(
        lambda datasets: datasets.load_dataset(name, name=data.subset, revision=data.revision),
        data, name, "hub", None, ask,
    )  # fmt: skip


def load_data_set(name: str, revision: str | None = None) -> dict[str, Any]:
    """The splits of a hub data set, or of a local folder in the hub's layout, as `datasets` has them.

    For recipes that make another set of one. Raises DataError.
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
    # datasets raises ValueError, OSError, Arrow's, pandas' and the hub's errors, by what is wrong with the files.
    except Exception as error:
        raise DataError(_why(error, data, name, kind)) from error
    return dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "all"): loaded}


def _open(
    load: Callable[[Any], Any], data: DataSection, name: str, kind: str, folder: Path | None, ask: bool
) -> Source:
    import datasets

    splits = _load(load, data, name, kind)
    first = next(iter(splits.values()), None)
    if first is None:
        raise DataError(f"{name}: this data set has no splits.")

    features = first.features
    columns = list(features)
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    image_column = find_column("image", data.image_column, columns, name, images)
    source = Source(name, kind, {}, revision=_revision(first) or data.revision)
    may_lack = False
    if ask:
        questions = choose_columns(data, [column for column in columns if column != image_column], name)
        to_rows = partial(_question_rows, questions, source)
        # Lists of instructions hold conversations about nothing to be seen; they are counted and left out.
        may_lack = isinstance(questions, ConversationColumns)
    else:
        label_column = find_column("label", data.label_column, columns, name, classes)
        if label_column in classes:
            source.class_names = tuple(clean_label(text) for text in features[label_column].names)
        to_rows = partial(_label_rows, label_column, source)
    for split, dataset in splits.items():
        source.splits[str(split)] = partial(
            _read_split, dataset, str(split), image_column, source.name, folder, to_rows, may_lack
        )
    return source


def _read_split(
    dataset: Any,
    split: str,
    image_column: str,
    name: str,
    folder: Path | None,
    to_rows: Callable[[Any, str, list[Any]], list[Row]],
    may_lack: bool,
) -> list[Row]:
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    table = dataset.data
    images = _images(table.column(image_column), image_column, name, split, folder, may_lack)
    return to_rows(table, split, images)


def _label_rows(label_column: str, source: Source, table: Any, split: str, images: list[ImageSource]) -> list[Row]:
    labels = _labels(table.column(label_column), label_column, source.class_names, source.name, split)
    return [
        Row(f"{split}/{row}", image, (label,), f"{source.name}, split '{split}', row {row}")
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def _question_rows(
    columns: QuestionColumns | ConversationColumns | CaptionColumns,
    source: Source,
    table: Any,
    split: str,
    images: list[ImageSource | None],
) -> list[Row]:
    cells = {name: _texts(table.column(name)) for name in columns.names}
    id_column = columns.image_id if isinstance(columns, QuestionColumns) else None
    present = [image for image in images if image is not None]
    ids = iter(_same_images(present, split, cells[id_column] if id_column else None))
    image_ids = ["" if image is None else next(ids) for image in images]
    first_of: dict[str, ImageSource] = {}
    rows: list[Row] = []
    problems: list[str] = []
    for number, (image, image_id) in enumerate(zip(images, image_ids, strict=True)):
        origin = f"{source.name}, split '{split}', row {number}"
        try:
            # Questions about one image share one source, so that it is read and encoded once.
            shared = None if image is None else first_of.setdefault(image_id, image)
            own = columns.rows(origin, {name: values[number] for name, values in cells.items()}, shared, image_id)
            for place, row in enumerate(own):
                id_ = f"{split}/{number}" if place == 0 else f"{split}/{number}#{place + 1}"
                rows.append(replace(row, id=row.id or id_, image_id=image_id))
        except ValueError as problem:
            problems.append(f"{origin}: {problem}")
    refuse_problems(problems, f"{source.name}, split '{split}'")
    columns.check(rows, source, f"{source.name}, split '{split}'")
    return rows


def _texts(column: Any) -> list[Any]:
    """A column as Python values. Of annotators' records only the answers are made: VQAv2 has four million of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _texts(chunk)]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("answer") >= 0:
        # The Sequence feature of older data sets holds a record of lists instead of a list of records.
        return list(pc.struct_field(column, "answer").to_pylist())
    if (
        pa.types.is_list(kind)
        and pa.types.is_struct(kind.value_type)
        and kind.value_type.get_field_index("answer") >= 0
    ):
        # `flatten` honors a sliced array's offsets, and leaves out what null lists may hide.
        answers = pc.struct_field(column.flatten(), "answer").to_pylist()
        ends = pc.fill_null(column.value_lengths(), 0).to_numpy(zero_copy_only=False).cumsum().tolist()
        return [answers[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return list(column.to_pylist())


def _same_images(images: list[ImageSource], split: str, written: list[Any] | None) -> list[str]:
    """For each row the id of its image: as written if rows of one id hold equally long files, else by content."""
    if written is not None and all(value is not None for value in written):
        ids = [str(value) for value in written]
        lengths: dict[str, int | None] = {}
        sizes = [num_bytes(image) for image in images]
        if all(lengths.setdefault(id_, size) == size for id_, size in zip(ids, sizes, strict=True)):
            return ids
    return [f"{split}/{first}" for first in group_identical_files(images)]


def _images(
    column: Any, column_name: str, name: str, split: str, folder: Path | None, may_lack: bool
) -> list[ImageSource | None]:
    """One source a row, from struct{bytes, path}, plain bytes, or text that names a file; None where a row that may
    lack its image does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    paths: list[str | None] = [None] * len(column)
    content = None
    if pa.types.is_struct(kind) and "bytes" in {kind.field(i).name for i in range(kind.num_fields)}:
        content = pc.struct_field(column, "bytes")
        if "path" in {kind.field(i).name for i in range(kind.num_fields)}:
            paths = pc.struct_field(column, "path").to_pylist()
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        content = column
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        paths = column.to_pylist()
    else:
        raise DataError(
            f"{name}: the column '{column_name}' holds {kind}, not images. Expected the Image feature "
            f"(bytes and path), bytes, or file names. Set data.image_column."
        )
    absent = pc.is_null(content).to_pylist() if content is not None else [True] * len(column)
    sources: list[ImageSource | None] = []
    for row, (path, is_absent) in enumerate(zip(paths, absent, strict=True)):
        origin = f"{name}, split '{split}', row {row}"
        if not is_absent:
            sources.append(ArrowImageSource(name=origin, column=content, row=row))
            continue
        if not path and may_lack:
            sources.append(None)
            continue
        if not path:
            raise DataError(f"{origin}: there is no image in the column '{column_name}'. Remove the row.")
        file = Path(path) if folder is None else folder / path
        if not file.is_file():
            raise DataError(
                f"{origin}: the column '{column_name}' names the file {file}, which does not exist. "
                f"Put the file there, or embed the image's bytes."
            )
        sources.append(ImageSource(path=file, name=str(file)))
    return sources


def _labels(column: Any, column_name: str, class_names: tuple[str, ...] | None, name: str, split: str) -> list[str]:
    import pyarrow as pa

    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_text or is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"{name}: the column '{column_name}' holds {kind}, not one label an image. "
            f"Expected text, whole numbers or ClassLabel. Set data.label_column."
        )
    labels: list[str] = []
    for row, value in enumerate(column.to_pylist()):
        problem = None
        if value is None or (isinstance(value, str) and not value.strip()) or value != value:
            problem = "the label is empty"
        elif isinstance(value, bool):
            labels.append("true" if value else "false")
        elif isinstance(value, str):
            labels.append(clean_label(value))
        elif int(value) != value:
            problem = f"the label is {value}, not a whole number"
        elif class_names is None:
            labels.append(str(int(value)))
        elif 0 <= value < len(class_names):
            labels.append(class_names[int(value)])
        elif value == -1:
            problem = "the label is -1, which means unlabeled"
        else:
            problem = f"the label is {value}, and ClassLabel has names for 0 to {len(class_names) - 1} only"
        if problem:
            raise DataError(
                f"{name}, split '{split}', row {row}: {problem} (column '{column_name}'). Correct the row, or "
                f"choose other splits with data.train_split, data.validation_split and data.test_split."
            )
    return labels


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
