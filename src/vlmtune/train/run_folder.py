"""A run's folder: created once, never written over, readable without the rest of the system."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vlmtune.config.load import dump
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError

_PACKAGES = ("vlmtune", "torch", "safetensors", "tokenizers", "datasets", "numpy", "pillow")


class RunFolder:
    """`runs/NAME/` with `config.yaml`, `run.json`, `preflight.json`, `metrics.jsonl`, `checkpoints/`, `evaluation/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def claim(cls, experiment: Experiment, *, resume: bool) -> RunFolder:
        """The experiment's folder, found free and writable (or, resuming, found) but not begun: see `begin`.

        Raises RunFolderError if it exists (resuming: does not), or is not writable.
        """
        assert experiment.name is not None
        path = Path(experiment.output_dir) / experiment.name
        has_run = (path / "config.yaml").exists()
        if resume and not has_run:
            raise RunFolderError(f"{path}: there is no run to resume. Leave --resume away to start one.")
        if not resume and path.exists() and any(path.iterdir()):
            raise RunFolderError(
                f"{path}: this run exists. Continue it with --resume, or choose another name (--set name=NAME)."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".writable.tmp"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise RunFolderError(
                f"{path}: cannot write here ({error.strerror}). Choose another place: --set output_dir=FOLDER."
            ) from error
        return cls(path)

    def begin(self, experiment: Experiment) -> None:
        """Write the experiment: from here on the folder is a run. A run that failed its preflight leaves none."""
        if not (self.path / "config.yaml").exists():
            self.write_text("config.yaml", dump(experiment))

    def write_text(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        target = self.path / name
        temporary = target.with_name(f".{target.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        return temporary.replace(target)

    def write_json(self, name: str, value: Any) -> Path:
        return self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        return value

    def append_metrics(self, **values: Any) -> None:
        """One line of `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics after ``step``: a resumed run measures them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            self.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they decide whether a run can be repeated."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cpus": os.cpu_count(),
        "versions": versions,
    }


def now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
