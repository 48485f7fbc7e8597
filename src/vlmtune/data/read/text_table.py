"""CSV, TSV, JSONL and JSON files whose rows name an image file, with a label, a question, a caption or a conversation.

Image paths are relative to the file. Columns are mapped by `columns`.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmtune.data.read.columns import ColumnMapper, usual_column
from vlmtune.data.read.rows import TableRow, short_text
from vlmtune.data.read.source import Source
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
LIST_SUFFIX = ".json"
"""A file that is one JSON list of rows, as LLaVA's conversations are published."""

Line = tuple[int, dict[str, Any]]
"""A row's line in the file, from 1, and its cells by column."""


@dataclass(frozen=True, slots=True)
class _Table:
    path: Path
    columns: list[str]
    lines: list[Line]


def read_text_tables(files: dict[str, Path], mapper: ColumnMapper, name: str) -> Source:
    """Open one table per split. A single table may have a column `split`.

    Raises DataError naming file and line for a row that cannot be used, up to five at once.
    """
    source = Source(name, "table of files", {})
    root = min((path.parent for path in files.values()), key=lambda path: len(path.parts))
    counts: Counter[str] = Counter()
    for split, path in files.items():
        table = _read_table(path)
        if not table.lines:
            raise DataError(f"{path}: this table has no rows. Expected one row an image.")
        split_column = usual_column("split", table.columns) if len(files) == 1 else None
        if split_column is not None:
            source.notes.append(f"the column '{split_column}' of {path.name} says each image's split")
        for part, lines in _by_split(table, split_column, split).items():
            source.splits[part] = partial(list, _examples(table, lines, mapper, root, counts, source))
    return source


def _by_split(table: _Table, column: str | None, split: str) -> dict[str, list[Line]]:
    """The lines of each split, by a column, or all of one."""
    if column is None:
        return {split: table.lines}
    parts: dict[str, list[Line]] = {}
    for line, cells in table.lines:
        value = str(cells.get(column) or "").strip()
        if not value:
            raise DataError(
                f"{table.path}, line {line}: the column '{column}' is empty. Write the row's split, "
                f"or rename the column if it means something else."
            )
        parts.setdefault(value, []).append((line, cells))
    return parts


def _examples(
    table: _Table, lines: Iterable[Line], mapper: ColumnMapper, root: Path, counts: Counter[str], source: Source
) -> list[Example]:
    path, image_column = table.path, mapper.image_column(table.columns, str(table.path))
    mapping = mapper.choose(table.columns, str(path))
    if mapping.columns.get("label") == image_column:
        raise DataError(f"{path}: data.image_column and data.label_column are both '{image_column}'.")
    folder = Path(mapper.data.image_folder).expanduser() if mapper.data.image_folder else path.parent
    id_column = mapping.columns.get("image_id")
    images: dict[Path, ImageSource] = {}

    def rows() -> Iterator[TableRow]:
        for line, cells in lines:
            image, name, problem = None, "", ""
            if cells.get(image_column) is not None or not mapping.may_lack_image:
                try:
                    file = _image_file(folder, cells.get(image_column), image_column)
                    # Questions about one file share one source, so that its image is read and encoded once.
                    image = images.setdefault(file, ImageSource(path=file, name=str(file)))
                    name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
                except ValueError as error:
                    problem = str(error)
            image_id = (short_text(cells.get(id_column)) if id_column else None) or name
            yield TableRow(name, f"{path}, line {line}", cells, image, image_id, problem=problem)

    return mapping.map_rows(rows(), source, str(path), counts)


def _image_file(folder: Path, value: Any, column: str) -> Path:
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


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises DataError, with the line, for invalid JSON."""
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: this is not valid JSON ({error.msg}).") from error


def _read_table(path: Path) -> _Table:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return _read_csv(path)
    return _read_json_list(path) if suffix == LIST_SUFFIX else _read_jsonl(path)


def _read_csv(path: Path) -> _Table:
    text = _read_text(path)
    header = text.split("\n", 1)[0]
    # In many locales, spreadsheets write ';' into CSV files.
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: list[Line] = []
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
    return _Table(path, columns, rows)


def _read_jsonl(path: Path) -> _Table:
    columns: dict[str, None] = {}
    rows: list[Line] = []
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
    return _Table(path, list(columns), rows)


def _read_json_list(path: Path) -> _Table:
    """The items of a list are numbered from 1 in place of lines."""
    items = read_json(path)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"{path}: expected a JSON list of objects, one for each image.")
    columns: dict[str, None] = {}
    for item in items:
        columns.update(dict.fromkeys(item))
    return _Table(path, list(columns), list(enumerate(items, start=1)))
