"""Sends what a run writes to metrics.jsonl to Weights & Biases and TensorBoard as well. Called by `vlmtune train`.

Trackers watch the run's folder; the training loop does not know them. Each works in its own thread behind a
queue, so that a service that is slow, gone or broken neither stops nor changes a run: it costs one warning.
"""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from vlmtune.config.schema import Experiment, TrackingSection
from vlmtune.errors import MissingExtraError
from vlmtune.files import read_json_if_exists, write_json
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.layout import RunLayout

ID_FILE = "tracking.json"
"""In the run's folder: the W&B run that a resumed session continues."""

_INIT_TIMEOUT_S = 30.0
_FINISH_TIMEOUT_S = 60.0
_GIVE_UP_S = 90.0


class Tracker(Protocol):
    """One service."""

    def log(self, record: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def rewind(self, step: int) -> None:
        """The run resumes from ``step``: what was logged after it is measured again."""

    def finish(self, run: Path, result: Mapping[str, Any] | None) -> None:
        """Take the report and the run's figures and end; ``result`` is None for a run that was interrupted."""


class Tracking:
    """All trackers of a run; a context manager. Without a `tracking:` section it has none and does nothing.

    Args:
        folder: whose metrics are watched.
        experiment: resolved; sent along as the configuration.
        warn: called once for each tracker that is lost.
    """

    def __init__(self, folder: RunFolder, experiment: Experiment, warn: Callable[[str], None]) -> None:
        self._folder = folder
        self._sent: list[_InBackground] = []
        for name in experiment.tracking.to if experiment.tracking else ():
            self._sent.append(_InBackground(name, partial(_KINDS[name], folder, experiment, warn), warn))
        folder.watchers.extend(self._sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(None)

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Send the report and end. A second call does nothing."""
        for tracker in self._sent:
            tracker.finish(self._folder.path, result)
            self._folder.watchers.remove(tracker)
        self._sent = []


def check_installed(section: TrackingSection | None) -> None:
    """Raises MissingExtraError for a service whose package is not installed; called before anything else."""
    for name in section.to if section else ():
        if find_spec(name) is None:
            raise MissingExtraError(name, "track")


class _InBackground:
    """A tracker behind a queue: never blocks, never raises."""

    def __init__(self, name: str, start: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self._name, self._start, self._warn = name, start, warn
        self._work: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        self._work.put(lambda tracker: tracker.log(record))

    def rewind(self, step: int) -> None:
        self._work.put(lambda tracker: tracker.rewind(step))

    def finish(self, run: Path, result: Mapping[str, Any] | None) -> None:
        self._work.put(lambda tracker: tracker.finish(run, result))
        self._work.put(None)
        self._thread.join(_GIVE_UP_S)
        if self._thread.is_alive():
            self._lose(TimeoutError(f"no answer for {_GIVE_UP_S:.0f} s"))

    def _run(self) -> None:
        try:
            tracker = self._start()
            while (work := self._work.get()) is not None:
                work(tracker)
        except Exception as error:  # whatever a service does, the run continues
            self._lose(error)
            while self._work.get() is not None:
                pass

    def _lose(self, error: Exception) -> None:
        reason = str(error).strip() or type(error).__name__
        self._warn(f"Warning: {self._name} is lost ({reason}). The run goes on; its folder has everything.")


class WandbTracker:
    """A run of Weights & Biases, offline where it cannot be reached. Its files are in RUN/wandb."""

    def __init__(self, folder: RunFolder, experiment: Experiment, warn: Callable[[str], None]) -> None:
        import wandb

        assert experiment.tracking is not None
        section = experiment.tracking
        options: dict[str, Any] = {
            "project": section.project,
            "entity": section.entity,
            "group": section.group,
            "tags": section.tags,
            "name": experiment.name,
            "id": _wandb_id(folder),
            "resume": "allow",
            "dir": str(folder.path),
            "config": experiment.model_dump(mode="json", exclude_none=True),
            "settings": wandb.Settings(
                console="off", silent=True, init_timeout=_INIT_TIMEOUT_S, finish_timeout=_FINISH_TIMEOUT_S
            ),
        }
        try:
            self._run = wandb.init(mode=section.mode, **options)
        except Exception as error:  # not logged in, no network, a service that answers nonsense
            with suppress(Exception):
                wandb.teardown()  # its service holds the run's id for the attempt, or died in an earlier run
            self._run = wandb.init(mode="offline", **options)
            if section.mode != "offline":
                warn(
                    f"Warning: wandb cannot be reached ({_first_line(error)}). It is kept offline; "
                    f"afterwards: wandb sync {Path(self._run.dir).parent}"
                )
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Mapping[str, Any]) -> None:
        self._run.log({"step": record["step"], "epoch": record["epoch"], **dict(_figures(record))})

    def rewind(self, step: int) -> None:
        """Do nothing: points are drawn by their `step`, so repeated ones are only drawn again."""

    def finish(self, run: Path, result: Mapping[str, Any] | None) -> None:
        import wandb

        if result is not None:
            self._run.summary.update({f"result/{key}": value for key, value in _numbers(result)})
            report = wandb.Artifact(f"report-{self._run.id}", type="report")
            for path in _report_files(run):
                report.add_file(str(path), name=str(path.relative_to(run)))
            self._run.log_artifact(report)
            pages = {f"charts/{path.stem}": path for path in _charts(run)} | {"report": RunLayout(run).report}
            panels = {
                name: wandb.Html(path.read_text(encoding="utf-8"), inject=False, data_is_not_path=True)
                for name, path in pages.items()
                if path.exists()
            }
            self._run.log(panels)
        self._run.finish(exit_code=0 if result is not None else 1)


class TensorBoardTracker:
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`, or a folder of runs."""

    def __init__(self, folder: RunFolder, experiment: Experiment, warn: Callable[[str], None]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._open: Callable[..., SummaryWriter] = SummaryWriter
        self._folder = str(folder.path / "tensorboard")
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        for name, value in _figures(record):
            self._opened().add_scalar(name, value, record["step"])
        self._opened().flush()

    def rewind(self, step: int) -> None:
        self._purge_step = step + 1

    def finish(self, run: Path, result: Mapping[str, Any] | None) -> None:
        writer = self._opened()
        if result is not None:
            last = int(result["steps"])
            for key, value in _numbers(result):
                writer.add_scalar(f"result/{key}", value, last)
            text = RunLayout(run).report.with_suffix(".md")
            if text.exists():
                # TensorBoard draws the curves itself and shows no SVG: only tables go into the text.
                writer.add_text("report", text.read_text(encoding="utf-8"), last)
        writer.close()

    def _opened(self) -> Any:
        """The writer; opened on the first write, since a resumed run must say from which step it rewinds."""
        if self._writer is None:
            self._writer = self._open(self._folder, purge_step=self._purge_step)
        return self._writer


_KINDS: dict[str, Callable[[RunFolder, Experiment, Callable[[str], None]], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
}


def _wandb_id(folder: RunFolder) -> str:
    """The W&B run of this folder, the same for every session of it."""
    path = folder.path / ID_FILE
    known = read_json_if_exists(path)
    if "wandb" not in known:
        known["wandb"] = secrets.token_hex(8)
        write_json(path, known)
    return str(known["wandb"])


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(`train/loss`, value) for the numbers of a line of metrics.jsonl."""
    for key, value in _numbers(record):
        if key not in ("step", "epoch"):
            yield f"{record['kind']}/{key}", value


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value


def _charts(run: Path) -> list[Path]:
    return sorted(RunLayout(run).charts.glob("*.svg"))


def _report_files(run: Path) -> list[Path]:
    layout = RunLayout(run)
    reports = [layout.report.with_suffix(suffix) for suffix in (".html", ".md", ".json")]
    files = [*reports, layout.config, layout.record, layout.metrics]
    return [path for path in files if path.exists()] + _charts(run)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
