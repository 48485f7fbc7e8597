"""Files and folders that are written whole or not at all, and JSON with helpful errors.

In: paths and values. Out: files. Called by whatever writes into a run folder, an export or a cache; no torch.

A file or folder is written under a temporary name beside its own, `.NAME.tmp`, and renamed when it is complete. So a
reader never sees half of it, and what a killed process left behind is removed by the next writer of the same name.
There is one writer of a name at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlmtune.errors import RunFolderError, UserError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` when the block ends well and vanishes otherwise.

    Missing parent folders are made. Raises UserError, naming the path, if the disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes ``path`` when the block ends well and vanishes otherwise.

    Args:
        path: an empty folder there is taken over.
        replace: take the place of an older folder, which stays until the new one is complete.

    Raises UserError if something is there already (without ``replace``), or the disk is full or read-only.
    """
    if not replace and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not empty. Nothing was written; choose another folder.")
    with explain_write_errors(path), temporary_folder(path) as temporary:
        yield temporary
        replace_folder(temporary, path)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``, for the caller to rename; it is removed if it was not.

    Raises UserError if it cannot be made. Errors inside the block are not translated: they need not come from writing.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with explain_write_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Rename a folder to ``path``; an older one there is moved aside first, and back if that fails."""
    if not path.exists():
        temporary.replace(path)
        return
    old = path.with_name(f".{path.name}.old")  # a folder with content cannot be renamed over
    shutil.rmtree(old, ignore_errors=True)
    path.replace(old)
    try:
        temporary.replace(path)
    except OSError:
        old.replace(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a UserError that names the path."""
    try:
        yield
    except Exception as error:
        # The writer of tensors wraps the system's error in one of its own, which cannot be imported without torch.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise RunFolderError(f"{path}: cannot write ({reason}). Free some space or choose another folder.") from error


def write_text(path: Path, text: str) -> Path:
    """Write a text file, in UTF-8; returns its path. Raises UserError: see `new_file`."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


# ── JSON ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def to_json(value: Any, indent: int | None = 1) -> str:
    """A value as JSON text. What JSON cannot express (the NaN of a diverged run) becomes null."""
    return json.dumps(_without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: Path, value: Any, indent: int | None = 1) -> Path:
    """Write a value as a JSON file; returns its path. Raises UserError: see `new_file`."""
    return write_text(path, to_json(value, indent) + "\n")


def read_json(
    path: Path, error: type[UserError] = RunFolderError, advice: str = "Restore or remove the file."
) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        error: raised for a file that is missing, unreadable, not JSON or not an object.
        advice: a sentence on what the user should do.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{path}: no such file. {advice}") from cause
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise error(f"{path}: not readable as JSON ({reason}). {advice}") from cause
    if not isinstance(content, dict):
        raise error(f"{path}: expected a JSON object, found {type(content).__name__}. {advice}")
    return content


def read_json_if_exists(
    path: Path, error: type[UserError] = RunFolderError, advice: str = "Restore or remove the file."
) -> dict[str, Any]:
    """`read_json`; empty where there is no such file."""
    return read_json(path, error, advice) if path.exists() else {}


def append_json_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add one object to a file of JSON lines. A process killed meanwhile leaves an unfinished last line."""
    with explain_write_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(to_json(value, indent=None) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without an unfinished last one; empty where there is no such file.

    Raises RunFolderError, with the line, for damage anywhere else.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    values = []
    for index, line in enumerate(lines):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if index == len(lines) - 1 and not line.endswith("\n"):
                break
            raise RunFolderError(f"{path}:{index + 1}: not readable as JSON ({error}). Remove this line.") from error
    return values


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
