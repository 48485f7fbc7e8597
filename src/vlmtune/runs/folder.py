"""A run's folder: created once, never written over, readable without the rest of the system."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vlmtune.config.load import dump, load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.files import append_json_line, read_json_lines, to_json, write_text
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.record import RunResult, read_record_if_exists
from vlmtune.runs.resume import differing_images, differing_keys


class MetricsWatcher(Protocol):
    """Receives what is written to `metrics.jsonl` (see `tracking`)."""

    def log(self, record: Mapping[str, Any]) -> None: ...

    def rewind(self, step: int) -> None: ...


class RunFolder(RunLayout):
    """A run folder that training writes into.

    Attributes:
        watchers: receive every line of metrics.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
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
        path, has_run = folder.path, folder.is_run
        if resume and not has_run:
            raise RunFolderError(f"{path}: there is no run to resume. Omit --resume to start one.")
        if resume:
            folder._check_same(experiment, data)
        elif folder.result() is not None:
            raise RunFolderError(
                f"{path}: this run is finished; its report is {folder.report}. For another run choose another "
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
                f"{path}: cannot write here ({error.strerror}). Choose another folder: --set output_dir=FOLDER."
            ) from error
        return folder

    def _foreign(self) -> list[str]:
        """Names of what is in the folder but does not come from `evaluate`, `baselines` or `report` before the run."""
        written_before = (self.evaluations, self.baselines, self.baseline_evaluations, self.charts, self.report)
        reports = {self.report.with_suffix(suffix).name for suffix in (".md", ".json")}
        return sorted({item.name for item in self.path.glob("*")} - {path.name for path in written_before} - reports)

    def _check_same(self, experiment: Experiment, data: Mapping[str, Any] | None) -> None:
        differing = differing_keys(load_experiment(self.path, must_exist=False), experiment)
        if data is not None and self.record.exists():
            differing += differing_images(read_record_if_exists(self.path).data, data)
        if differing:
            raise RunFolderError(
                f"{self.path}: --resume continues the same experiment, but this differs:\n  "
                + "\n  ".join(differing)
                + "\nTake the changes back, or start another run (--set name=NAME)."
            )

    def begin(self, experiment: Experiment) -> None:
        """Write the experiment: from now on the folder is a run. A run that failed its preflight leaves none."""
        write_text(self.config, dump(experiment))

    def result(self) -> RunResult | None:
        """What the run reached; None while something is left to do."""
        return read_record_if_exists(self.path).result

    def append_metrics(self, **values: Any) -> None:
        """One line of `metrics.jsonl`."""
        append_json_line(self.metrics, values)
        for watcher in self.watchers:
            watcher.log(values)

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics after ``step``: a resumed run measures them again."""
        if self.metrics.exists():
            lines = [line for line in read_json_lines(self.metrics) if line["step"] <= step]
            write_text(self.metrics, "".join(to_json(line, indent=None) + "\n" for line in lines))
        for watcher in self.watchers:
            watcher.rewind(step)
