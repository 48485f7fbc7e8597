"""From `data.source` to an opened `Source`, by the right reader."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from vlmtune.config.schema import DataSection
from vlmtune.data.read import text_table
from vlmtune.data.read.builtin import read_built_in
from vlmtune.data.read.cifar_binary import is_cifar_binary, read_cifar_binary
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.image_folder import class_folders, is_image_name, read_image_folder, sub_folders
from vlmtune.data.read.source import Source
from vlmtune.data.read.vqa_json import question_files, read_official_files
from vlmtune.data.split_names import SPLIT_ROLES, split_names
from vlmtune.errors import DataError

KINDS = (
    "a folder of class folders, a .csv, .tsv, .jsonl or .parquet file, a `datasets` folder, CIFAR-100's binary "
    "version, a hub id (owner/name), or builtin:digits; for questions also a folder with VQA's official JSON files, "
    "a .json list of conversations, builtin:drawn-vqa or builtin:drawn-captions"
)


def open_source(data: DataSection, has_questions: bool = False) -> Source:
    """Find the reader for ``data.source`` and open it. Relative paths are relative to the working directory.

    Args:
        data: the experiment's section.
        has_questions: whether images have their own questions instead of labels.

    Raises DataError: nothing there, an unknown kind of file, or an error in the data.
    """
    name = data.source.strip()
    mapper = ColumnMapper(data, has_questions)
    if name.startswith("builtin:"):
        return read_built_in(name, mapper)
    if not name:
        raise DataError(f"data.source is empty. Expected {KINDS}.")
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, mapper)
    if path.is_file():
        return _open_files([path], mapper, name)
    if any(sign in name for sign in "*?["):
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not files:
            raise DataError(f"{name}: no file matches this pattern.")
        return _open_files(files, mapper, name)
    if is_hub_id(name):
        from vlmtune.data.read.arrow import read_hub

        return read_hub(name, mapper)
    raise DataError(f"{name}: there is no such file or folder (looked for {path.absolute()}). Expected {KINDS}.")


def is_hub_id(name: str) -> bool:
    """Whether a source that is no local path reads as `owner/name` or `name` on the hub."""
    suffix = Path(name).suffix.lower()
    if suffix in (*text_table.SUFFIXES, ".parquet", ".json", ".yaml", ".yml", ".zip") or is_image_name(name):
        return False
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def _open_files(files: list[Path], mapper: ColumnMapper, name: str) -> Source:
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".parquet"}:
        from vlmtune.data.read.arrow import read_parquet

        return read_parquet(files, mapper, name)
    if len(files) == 1 and suffixes <= set(text_table.SUFFIXES):
        return text_table.read_text_tables({"all": files[0]}, mapper, name)
    if mapper.has_questions and suffixes == {".json"} and all(file.name.endswith("_questions.json") for file in files):
        return read_official_files(files, mapper)
    if mapper.has_questions and suffixes == {text_table.LIST_SUFFIX} and len(files) == 1:
        return text_table.read_text_tables({"all": files[0]}, mapper, name)
    advice = " Write one JSON object a line and name it .jsonl." if suffixes == {".json"} else ""
    raise DataError(f"{name}: no reader for files ending in {', '.join(sorted(suffixes))}.{advice} Expected {KINDS}.")


def _open_folder(folder: Path, mapper: ColumnMapper) -> Source:
    if mapper.has_questions and (files := question_files(folder)):
        return read_official_files(files, mapper)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from vlmtune.data.read.arrow import read_saved_folder

        return read_saved_folder(folder, mapper)
    if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")) or any(folder.glob("*/*/*.parquet")):
        from vlmtune.data.read.arrow import read_hub_folder

        return read_hub_folder(folder, mapper)
    if is_cifar_binary(folder) and not mapper.has_questions:
        return read_cifar_binary(folder, mapper)
    names = split_names(mapper.data)
    tables = _tables(folder, names)
    if tables:
        return text_table.read_text_tables(tables, mapper, str(folder))
    if mapper.has_questions:
        raise DataError(
            f"{folder}: there are no questions in it. Expected VQA's *_questions.json files, parquet files or a "
            "table with a column for the question."
        )
    return read_image_folder(folder, names)


def _tables(folder: Path, names: set[str]) -> dict[str, Path]:
    """Tables that describe a folder's images: train.csv and test.csv, metadata.jsonl here or in split folders."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in text_table.SUFFIXES and path.is_file()]
    tables: dict[str, Path] = {}
    for path in files:
        if path.stem.lower() in SPLIT_ROLES or path.stem in names:
            _add(tables, path.stem, path)
    if tables:
        return tables
    for split in sub_folders(folder):
        for path in sorted(split.glob("metadata.*")):
            if path.suffix.lower() in text_table.SUFFIXES and split.name.lower() in SPLIT_ROLES:
                _add(tables, split.name, path)
    if tables:
        return tables
    # One table beside `images/` describes it; beside class folders it is unrelated.
    named = [path for path in files if path.stem.lower() in ("metadata", "labels")]
    if len(named) == 1:
        return {"all": named[0]}
    return {"all": files[0]} if len(files) == 1 and len(class_folders(folder)) < 2 else {}


def _add(tables: dict[str, Path], split: str, path: Path) -> None:
    if split in tables:
        raise DataError(f"{path} and {tables[split]}: two tables for the split '{split}'. Keep one.")
    tables[split] = path
