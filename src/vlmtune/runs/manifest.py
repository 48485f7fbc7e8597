"""`vlmtune.json` in an exported folder: the task it was trained for, so that it opens again with labels and prompts.

`export` writes it; `runs.open` reads it; `push` compares the files with what it lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlmtune.config.schema import TaskSection
from vlmtune.errors import RunFolderError
from vlmtune.files import read_json, write_json

MANIFEST_FILE = "vlmtune.json"


@dataclass(frozen=True)
class Manifest:
    """What an exported folder says about itself.

    Attributes:
        format: peft, merged or gguf.
        task: as in every epoch after the first.
        labels: the stored labels in order; None for open answers.
        image: settings of the image processor that the experiment changed. An adapter's folder holds no processor;
            the other formats have them in their own files.
        origin: run, checkpoint, base, revision, dtype, versions, created.
        gate: the export gate's figures.
        files: name -> SHA-256 of every file that the gate judged.
    """

    format: str
    task: TaskSection
    labels: tuple[str, ...] | None
    image: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `vlmtune.json`. Raises UserError if the folder cannot be written."""
    values = {
        "format": manifest.format,
        "task": manifest.task.model_dump(mode="json", exclude_none=True),
        "labels": None if manifest.labels is None else list(manifest.labels),
        "image": {name: value for name, value in manifest.image.items() if value is not None},
        "origin": manifest.origin,
        "gate": manifest.gate,
        "files": manifest.files,
    }
    write_json(folder / MANIFEST_FILE, values)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an exported folder; None for a folder without one. Raises RunFolderError if it is damaged."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return None
    values = read_json(path, advice="Export the run again.")
    try:
        labels = values["labels"]
        return Manifest(
            format=str(values["format"]),
            task=TaskSection.model_validate(values["task"]),
            labels=None if labels is None else tuple(map(str, labels)),
            image=dict(values.get("image", {})),
            origin=dict(values.get("origin", {})),
            gate=dict(values.get("gate", {})),
            files=dict(values.get("files", {})),
        )
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"{path}: not a readable export manifest ({reason}). Export the run again.") from error
