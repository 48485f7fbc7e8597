"""From `data.source` to an opened `Source`: which reader understands it."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from vlmtune.config.schema import DataSection
from vlmtune.data.read import text_table
from vlmtune.data.read.cifar_binary import is_cifar_binary, read_cifar_binary
from vlmtune.data.read.image_folder import class_folders, is_image_name, read_image_folder, sub_folders
from vlmtune.data.read.rows import Source
from vlmtune.data.read.vqa_json import question_files, read_official_files
from vlmtune.data.split_names import SPLIT_ROLES, split_names
from vlmtune.errors import DataError, unknown_name

BUILT_IN = {"builtin:digits": False, "builtin:drawn-vqa": True, "builtin:drawn-captions": True}
"""Name -> whether each image comes with questions of its own (`task.question_from: data`)."""
KINDS = (
    "a folder of class folders, a .csv, .tsv, .jsonl or .parquet file, a `datasets` folder, CIFAR-100's binary "
    "version, a hub id (owner/name), or builtin:digits; for questions also a folder with VQA's official JSON files, "
    "a .json list of conversations, builtin:drawn-vqa or builtin:drawn-captions"
)


def open_source(data: DataSection, ask: bool = False) -> Source:
    """Find the reader for ``data.source`` and open it. Relative paths are relative to the working directory.

    Args:
        data: the experiment's section.
        ask: whether a row is a question about an image with its answers, or an image with its label.

    Raises DataError: nothing there, a kind of file that no reader knows, or what the reader found wrong.
    """
    name = data.source.strip()
    if name.startswith("builtin:"):
        return _open_built_in(name, ask, data)
    if not name:
        raise DataError(f"data.source is empty. Expected {KINDS}.")
    path = Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, data, ask)
    if path.is_file():
        return _open_files([path], data, name, ask)
    if any(sign in name for sign in "*?["):
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute patterns)
        if not files:
            raise DataError(f"{name}: no file matches this pattern.")
        return _open_files(files, data, name, ask)
    if is_hub_id(name):
        from vlmtune.data.read.arrow import read_hub

        return read_hub(name, data, ask=ask)
    raise DataError(f"{name}: there is no such file or folder (looked for {path.absolute()}). Expected {KINDS}.")


def is_hub_id(name: str) -> bool:
    """Whether a source that is no local path reads as `owner/name` or `name` on the hub."""
    suffix = Path(name).suffix.lower()
    if suffix in (*text_table.SUFFIXES, ".parquet", ".json", ".yaml", ".yml", ".zip") or is_image_name(name):
        return False
    return re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None


def _open_built_in(name: str, ask: bool, data: DataSection) -> Source:
    if name not in BUILT_IN:
        raise DataError(unknown_name("built-in data set", name, BUILT_IN))
    if BUILT_IN[name] != ask:
        fitting = ", ".join(known for known, has_questions in BUILT_IN.items() if has_questions == ask)
        needed, given = ("data", "prompt") if BUILT_IN[name] else ("prompt", "data")
        raise DataError(
            f"data.source: {name} is made for task.question_from: {needed}, found {given} (the "
            f"default of text is data, of the other types prompt). Set task.question_from: {needed}, or use {fitting}."
        )
    if name == "builtin:drawn-captions":
        from vlmtune.data.read.drawn import read_drawn_captions

        return read_drawn_captions(data.caption_question)
    if ask:
        from vlmtune.data.read.drawn import read_drawn_vqa

        return read_drawn_vqa()
    from vlmtune.data.read.digits import read_digits

    return read_digits()


def _open_files(files: list[Path], data: DataSection, name: str, ask: bool) -> Source:
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".parquet"}:
        from vlmtune.data.read.arrow import read_parquet

        return read_parquet(files, data, name, ask=ask)
    if len(files) == 1 and suffixes <= set(text_table.SUFFIXES):
        return text_table.read_text_tables({"all": files[0]}, data, name, ask=ask)
    if ask and suffixes == {".json"} and all(file.name.endswith("_questions.json") for file in files):
        return read_official_files(files, data)
    if ask and suffixes == {text_table.LIST_SUFFIX} and len(files) == 1:
        return text_table.read_text_tables({"all": files[0]}, data, name, ask=ask)
    advice = " Write one JSON object a line and name it .jsonl." if suffixes == {".json"} else ""
    raise DataError(f"{name}: no reader for files ending in {', '.join(sorted(suffixes))}.{advice} Expected {KINDS}.")


def _open_folder(folder: Path, data: DataSection, ask: bool) -> Source:
    if ask and (files := question_files(folder)):
        return read_official_files(files, data)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        from vlmtune.data.read.arrow import read_saved_folder

        return read_saved_folder(folder, data, ask=ask)
    if any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet")) or any(folder.glob("*/*/*.parquet")):
        from vlmtune.data.read.arrow import read_hub_folder

        return read_hub_folder(folder, data, ask=ask)
    if is_cifar_binary(folder) and not ask:
        return read_cifar_binary(folder, data)
    asked = split_names(data)
    tables = _tables(folder, asked)
    if tables:
        return text_table.read_text_tables(tables, data, str(folder), ask=ask)
    if ask:
        raise DataError(
            f"{folder}: there are no questions in it. Expected VQA's *_questions.json files, parquet files or a "
            "table with a column for the question."
        )
    return read_image_folder(folder, asked)


def _tables(folder: Path, asked: set[str]) -> dict[str, Path]:
    """Tables that describe a folder's images: train.csv and test.csv, metadata.jsonl here or in split folders."""
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
