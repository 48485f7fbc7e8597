"""From `data.source` to an opened `Source`: which reader understands it."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from vlmtune.config.schema import DataSection
from vlmtune.data import text_table
from vlmtune.data.image_folder import class_folders, is_image_name, read_image_folder, sub_folders
from vlmtune.data.rows import Source
from vlmtune.data.split_names import SPLIT_ROLES
from vlmtune.errors import DataError, unknown_name

BUILT_IN = ("builtin:digits",)
KINDS = (
    "a folder of class folders, a .csv, .tsv, .jsonl or .parquet file, a `datasets` folder, a hub id (owner/name), "
    "or builtin:digits"
)


def open_source(data: DataSection) -> Source:
    """Find the reader for ``data.source`` and open it. Relative paths are relative to the working directory.

    Raises DataError: nothing there, a kind of file that no reader knows, or what the reader found wrong.
    """
    name = data.source.strip()
    if name.startswith("builtin:"):
        if name not in BUILT_IN:
            raise DataError(unknown_name("built-in data set", name, BUILT_IN))
        from vlmtune.data.digits import read_digits

        return read_digits()
    if not name:
        raise DataError(f"data.source is empty. Expected {KINDS}.")
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, data)
    if path.is_file():
        return _open_files([path], data, name)
    if any(sign in name for sign in "*?["):
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not files:
            raise DataError(f"{name}: no file matches this pattern.")
        return _open_files(files, data, name)
    if is_hub_id(name):
        from vlmtune.data.arrow import read_hub

        return read_hub(name, data)
    raise DataError(f"{name}: there is no such file or folder (looked for {path.absolute()}). Expected {KINDS}.")


def is_hub_id(name: str) -> bool:
    """Whether a source that is no local path reads as `owner/name` or `name` on the hub."""
    suffix = Path(name).suffix.lower()
    if suffix in (*text_table.SUFFIXES, ".parquet", ".json", ".yaml", ".yml", ".zip") or is_image_name(name):
        return False
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def _open_files(files: list[Path], data: DataSection, name: str) -> Source:
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".parquet"}:
        from vlmtune.data.arrow import read_parquet

        return read_parquet(files, data, name)
    if len(files) == 1 and suffixes <= set(text_table.SUFFIXES):
        return text_table.read_text_tables({"all": files[0]}, data, name)
    advice = " Write one JSON object a line and name it .jsonl." if suffixes == {".json"} else ""
    raise DataError(f"{name}: no reader for files ending in {', '.join(sorted(suffixes))}.{advice} Expected {KINDS}.")


def _open_folder(folder: Path, data: DataSection) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from vlmtune.data.arrow import read_saved_folder

        return read_saved_folder(folder, data)
    if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")) or any(folder.glob("*/*/*.parquet")):
        from vlmtune.data.arrow import read_hub_folder

        return read_hub_folder(folder, data)
    tables = _tables(folder, {data.train_split, data.validation_split, data.test_split})
    if tables:
        return text_table.read_text_tables(tables, data, str(folder))
    return read_image_folder(
        folder,
        train_split=data.train_split,
        validation_split=data.validation_split,
        test_split=data.test_split,
    )


def _tables(folder: Path, asked: set[str | None]) -> dict[str, Path]:
    """Tables that describe a folder's pictures: train.csv and test.csv, metadata.jsonl here or in split folders."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in text_table.SUFFIXES and path.is_file()]
    tables: dict[str, Path] = {}
    for path in found:
        if path.stem.lower() in SPLIT_ROLES or path.stem in asked:
            _add(tables, path.stem, path)
    if tables:
        return tables
    for split in sub_folders(folder):
        for path in sorted(split.glob("metadata.*")):
            if path.suffix.lower() in text_table.SUFFIXES and split.name.lower() in SPLIT_ROLES:
                _add(tables, split.name, path)
    if tables:
        return tables
    # One table beside `images/` describes it; beside two class folders it is a by-product of somebody's work.
    named = [path for path in found if path.stem.lower() in ("metadata", "labels")]
    if len(named) == 1:
        return {"all": named[0]}
    return {"all": found[0]} if len(found) == 1 and len(class_folders(folder)) < 2 else {}


def _add(tables: dict[str, Path], split: str, path: Path) -> None:
    if split in tables:
        raise DataError(f"{path} and {tables[split]}: two tables for the split '{split}'. Keep one.")
    tables[split] = path
