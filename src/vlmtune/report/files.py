"""Reading and writing the files of run folders and reports: whole or not at all, with messages that name the file."""

from __future__ import annotations

import json
import math
import re
from importlib import resources
from pathlib import Path
from typing import Any

from vlmtune.errors import RunFolderError


def read_json(path: Path) -> dict[str, Any]:
    """An object; empty where there is no such file. Raises RunFolderError for a damaged one."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path}: not readable as JSON ({error}). Restore or remove the file.") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def write_json(path: Path, value: Any) -> None:
    """Indented; what JSON cannot say (the NaN of a diverged run) becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Under a temporary name first, then renamed. Raises RunFolderError where it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunFolderError(f"Cannot write {path}: {error.strerror}. Free the disk or name another place.") from error


def style(name: str) -> str:
    """A file of ours that stands inside the page."""
    return (resources.files("vlmtune.report") / "templates" / name).read_text(encoding="utf-8")


def palette() -> dict[str, str]:
    """The light theme's colors by name, for what cannot read a style sheet: {"s2": "#2563a8", …}."""
    return dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", style("chart.css")))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
