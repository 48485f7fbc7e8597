"""CSV, TSV and JSONL files whose rows name an image file with its label, or with a question and its answers.

Image paths are relative to the file.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.read.columns import SPLIT_NAMES, find_column
from vlmtune.data.read.conversations import choose_columns
from vlmtune.data.read.rows import Row, Source, refuse_problems
from vlmtune.errors import DataError
from vlmtune.records import ImageSource, clean_label

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
LIST_SUFFIX = ".json"
"""A file that is one JSON list of rows, as LLaVA's conversations are published."""


@dataclass(frozen=True, slots=True)
class _Table:
    columns: list[str]
    rows: list[tuple[int, dict[str, Any]]]  # (line in the file, from 1; cells by column)


def read_text_tables(files: dict[str, Path], data: DataSection, name: str, *, ask: bool = False) -> Source:
    """Open one table a split. A table alone may have a column `split` that says each row's split.

    With ``ask`` the rows are questions with their answers, else images with their labels.

    Raises DataError naming file and line for a row that cannot be used, up to five at once.
    """
    source = Source(name, "table of files", {})
    root = min((path.parent for path in files.values()), key=lambda path: len(path.parts))
    counts: dict[str, int] = {}
    read = partial(_questions, source=source) if ask else _rows
    for split, path in files.items():
        table = _read_table(path)
        if not table.rows:
            raise DataError(f"{path}: this table has no rows. Expected one row an image.")
        by_name = {column.strip().casefold(): column for column in table.columns}
        split_column = next((by_name[n] for n in SPLIT_NAMES if n in by_name), None) if len(files) == 1 else None
        if split_column is None:
            source.splits[split] = partial(list, read(path, table, table.rows, data, root, counts))
            continue
        source.notes.append(f"the column '{split_column}' of {path.name} says each image's split")
        groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for line, cells in table.rows:
            value = str(cells.get(split_column) or "").strip()
            if not value:
                raise DataError(
                    f"{path}, line {line}: the column '{split_column}' is empty. Write the row's split, "
                    f"or rename the column if it means something else."
                )
            groups.setdefault(value, []).append((line, cells))
        for value, members in groups.items():
            source.splits[value] = partial(list, read(path, table, members, data, root, counts))
    return source


def _rows(
    path: Path,
    table: _Table,
    lines: Iterable[tuple[int, dict[str, Any]]],
    data: DataSection,
    root: Path,
    counts: dict[str, int],
) -> list[Row]:
    image_column = find_column("image", data.image_column, table.columns, str(path))
    label_column = find_column("label", data.label_column, table.columns, str(path))
    if image_column == label_column:
        raise DataError(f"{path}: data.image_column and data.label_column are both '{image_column}'.")
    rows: list[Row] = []
    problems: list[str] = []
    for line, cells in lines:
        try:
            label = _label(cells.get(label_column), label_column)
            file = _image(path.parent, cells.get(image_column), image_column)
        except ValueError as problem:
            problems.append(f"{path}, line {line}: {problem}")
            continue
        id_ = _numbered(_relative(file, root), counts)
        rows.append(Row(id_, ImageSource(path=file, name=str(file)), (label,), f"{path}, line {line}"))
    refuse_problems(problems, path.name)
    return rows


def _questions(
    path: Path,
    table: _Table,
    lines: Iterable[tuple[int, dict[str, Any]]],
    data: DataSection,
    root: Path,
    counts: dict[str, int],
    source: Source,
) -> list[Row]:
    image_column = find_column("image", data.image_column, table.columns, str(path))
    columns = choose_columns(data, table.columns, str(path))
    folder = Path(data.image_folder).expanduser() if data.image_folder else path.parent
    images: dict[Path, ImageSource] = {}
    rows: list[Row] = []
    problems: list[str] = []
    for line, cells in lines:
        try:
            image, name = None, ""
            if cells.get(image_column) is not None:
                file = _image(folder, cells[image_column], image_column)
                # Questions about one file share one source, so that its image is read and encoded once.
                image = images.setdefault(file, ImageSource(path=file, name=str(file)))
                name = _relative(file, root)
            found = columns.rows(f"{path}, line {line}", cells, image, image_id=name)
            rows += [row if row.id else replace(row, id=_numbered(name, counts)) for row in found]
        except ValueError as problem:
            problems.append(f"{path}, line {line}: {problem}")
    refuse_problems(problems, path.name)
    columns.check(rows, source, str(path))
    return rows


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _numbered(name: str, counts: dict[str, int]) -> str:
    """One image on several lines stays several examples; an id must tell them apart."""
    counts[name] = counts.get(name, 0) + 1
    return name if counts[name] == 1 else f"{name}#{counts[name]}"


def _label(value: Any, column: str) -> str:
    """A cell as a stored label. Text stays text: `yes`, `no`, `0` and `1` are labels like any other."""
    if isinstance(value, bool):
        return "true" if value else "false"  # as JSON writes it
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return clean_label(value)
    if value is None or isinstance(value, str):
        raise ValueError(f"the label (column '{column}') is empty. Write a label, or remove the row.")
    raise ValueError(
        f"the label (column '{column}') is {value!r}, a {type(value).__name__}. Expected text or a whole number."
    )


def _image(folder: Path, value: Any, column: str) -> Path:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the image's path (column '{column}') is empty. Write a path, or remove the row.")
    if value.startswith(("http://", "https://", "s3://", "gs://")):
        raise ValueError(f"the image is an address ({value}). Download it and write its path instead.")
    # A path as written first: a file name may begin or end with a space.
    for text in (value, value.strip(), value.strip().replace("\\", "/")):
        file = folder / Path(text).expanduser()
        if file.is_file():
            return file
    raise ValueError(
        f"there is no image file {folder / value.strip()}. "
        f"Paths in column '{column}' are relative to the table's folder."
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: this is not UTF-8 text (byte {error.start}: {error.reason}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot read this file ({error.strerror}).") from error


def _read_table(path: Path) -> _Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path)
    return _read_json_list(path) if suffix == LIST_SUFFIX else _read_jsonl(path)


def _read_csv(path: Path) -> _Table:
    text = _read_text(path)
    header = text.split("\n", 1)[0]
    # Spreadsheets in many countries write ';' where the name says comma.
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: list[tuple[int, dict[str, Any]]] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                twice = sorted({name for name in columns if columns.count(name) > 1})
                if twice:
                    raise DataError(f"{path}, line {start}: the header names a column twice: {', '.join(twice)}.")
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}, line {start}: this row has {len(cells)} cells, the header has {len(columns)} "
                    f"({', '.join(columns)}). Put text that holds '{delimiter}' in double quotes."
                )
            rows.append((start, dict(zip(columns, cells, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: this is not valid CSV ({error}).") from error
    return _Table(columns, rows)


def _read_jsonl(path: Path) -> _Table:
    columns: dict[str, None] = {}
    rows: list[tuple[int, dict[str, Any]]] = []
    # Not splitlines(): it also cuts at U+2028 and its like, which JSON allows inside text.
    for line, text in enumerate(_read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            cells = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {line}: this is not valid JSON ({error.msg}, column {error.colno}). "
                f"Expected one JSON object a line."
            ) from error
        if not isinstance(cells, dict):
            raise DataError(f"{path}, line {line}: expected a JSON object, found a {type(cells).__name__}.")
        columns.update(dict.fromkeys(cells))
        rows.append((line, cells))
    return _Table(list(columns), rows)


def _read_json_list(path: Path) -> _Table:
    """Level are numbered from 1, for a list has no lines."""
    try:
        items = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: this is not valid JSON ({error.msg}).") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{path}: expected a JSON list of objects, one for each image.")
    columns: dict[str, None] = {}
    for item in items:
        columns.update(dict.fromkeys(item))
    return _Table(list(columns), list(enumerate(items, start=1)))
