"""A run's folder: created once, never written over, readable without the rest of the system."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from vlmtune.config.load import dump, load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.runs.resume import differing_images, differing_keys

_PACKAGES = ("vlmtune", "torch", "safetensors", "tokenizers", "datasets", "numpy", "pillow")
_MADE_BEFORE = ("evaluation", "baselines", "baselines.json", "charts", "report.html", "report.md", "report.json")
"""What `evaluate`, `baselines` and `report` write into the folder of an experiment that has no run yet."""


class MetricsWatcher(Protocol):
    """Is told what is written to `metrics.jsonl` (see `tracking`)."""

    def log(self, record: Mapping[str, Any]) -> None: ...

    def rewind(self, step: int) -> None: ...


class RunFolder:
    """`runs/NAME/` with `config.yaml`, `run.json`, `preflight.json`, `metrics.jsonl`, `checkpoints/`, `evaluation/`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watchers: list[MetricsWatcher] = []

    @classmethod
    def claim(cls, experiment: Experiment, *, resume: bool, data: Mapping[str, Any] | None = None) -> RunFolder:
        """The experiment's folder, free (or, resuming, there and fitting) and writable; see `begin`.

        Args:
            data: `Splits.description`, to be compared with that of the run.

        Raises RunFolderError if the run exists (resuming: does not, or is of another experiment), something else is in
        its place, or it is not writable.
        """
        assert experiment.name is not None
        folder = cls(Path(experiment.output_dir) / experiment.name)
        path = folder.path
        has_run = (path / "config.yaml").exists()
        if resume and not has_run:
            raise RunFolderError(f"{path}: there is no run to resume. Leave --resume away to start one.")
        if resume:
            folder._check_same(experiment, data)
        elif folder.result() is not None:
            raise RunFolderError(
                f"{path}: this run is finished; its report is {path / 'report.html'}. For another run choose another "
                "name (--set name=NAME)."
            )
        elif has_run:
            raise RunFolderError(
                f"{path}: this run exists. Continue it with --resume, or choose another name (--set name=NAME)."
            )
        elif foreign := folder._foreign():
            raise RunFolderError(
                f"{path}: this folder is in use, it holds {', '.join(foreign[:5])}{' …' * (len(foreign) > 5)}. Choose "
                "another name (--set name=NAME), or move that away."
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
        return folder

    def _foreign(self) -> list[str]:
        """Names in the folder of what is not of an experiment before its run."""
        return sorted({item.name for item in self.path.glob("*")} - set(_MADE_BEFORE))

    def _check_same(self, experiment: Experiment, data: Mapping[str, Any] | None) -> None:
        differing = differing_keys(load_experiment(self.path, must_exist=False), experiment)
        if data is not None and (self.path / "run.json").exists():
            differing += differing_images(self.read_json("run.json").get("data", {}), data)
        if differing:
            raise RunFolderError(
                f"{self.path}: --resume continues the same experiment, but this differs:\n  "
                + "\n  ".join(differing)
                + "\nTake the changes back, or start another run (--set name=NAME)."
            )

    def begin(self, experiment: Experiment) -> None:
        """Write the experiment: from here on the folder is a run. A run that failed its preflight leaves none."""
        self.write_text("config.yaml", dump(experiment))

    def result(self) -> dict[str, Any] | None:
        """What the run came to, as `train --json` prints it; None while something of it is still to be done."""
        if not (self.path / "run.json").exists():
            return None
        result: dict[str, Any] | None = self.read_json("run.json").get("result")
        return result

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
        for watcher in self.watchers:
            watcher.log(values)

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics after ``step``: a resumed run measures them again."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
            self.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))
        for watcher in self.watchers:
            watcher.rewind(step)


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
