"""Where everything of a run folder is: every name in it is spelled here and nowhere else.

In: the path of a run folder. Out: paths inside it. Called by whatever reads or writes a run; no torch.
"""

from __future__ import annotations

from pathlib import Path

from vlmtune.config.load import CONFIG_FILE

_STEP_PREFIX = "step-"
_AVERAGE_PREFIX = "average-of-"


class RunLayout:
    """The paths of a run folder, `OUTPUT_DIR/NAME`, whether it exists yet or not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> Path:
        """The resolved experiment. A folder with this file is a run."""
        return self.path / CONFIG_FILE

    @property
    def record(self) -> Path:
        """What is known about the run besides its experiment: see `record.RunRecord`."""
        return self.path / "run.json"

    @property
    def preflight(self) -> Path:
        """The findings of the checks before the first step."""
        return self.path / "preflight.json"

    @property
    def metrics(self) -> Path:
        """A line of JSON for every logged step and every validation."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """A link to the checkpoint with the best validation."""
        return self.path / "best"

    @property
    def evaluations(self) -> Path:
        """The folder of the evaluations."""
        return self.path / "evaluation"

    @property
    def baselines(self) -> Path:
        """The figures of `vlmtune baselines`."""
        return self.path / "baselines.json"

    @property
    def baseline_evaluations(self) -> Path:
        """The folder of the evaluations behind the baselines."""
        return self.path / "baselines"

    @property
    def checkpoint_curve(self) -> Path:
        """The folder of `vlmtune checkpoints`: figures, charts and an evaluation for each checkpoint."""
        return self.path / "checkpoint_curve"

    @property
    def report(self) -> Path:
        """The report's page; its Markdown and JSON are beside it under the same name."""
        return self.path / "report.html"

    @property
    def charts(self) -> Path:
        """The folder of the report's charts as image files."""
        return self.path / "charts"

    @property
    def is_run(self) -> bool:
        """Whether training began here."""
        # An adapter from elsewhere may come with a config.yaml that is not ours.
        return self.config.is_file() and not (self.path / "adapter_config.json").is_file()

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after an optimizer step."""
        return self.checkpoints / f"{_STEP_PREFIX}{step:06d}"

    def average(self, num: int) -> Path:
        """The mean of the weights of ``num`` checkpoints."""
        return self.checkpoints / f"{_AVERAGE_PREFIX}{num}"

    def list_checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return _numbered(self.checkpoints, _STEP_PREFIX)

    def list_averages(self) -> list[Path]:
        """The averaged checkpoints, the mean of the fewest first."""
        return _numbered(self.checkpoints, _AVERAGE_PREFIX)

    def evaluation(self, split: str, name: str) -> Path:
        """The evaluation called ``name`` on a split."""
        return self.evaluations / f"{split}-{name}"

    def export(self, name: str) -> Path:
        """The export of a format."""
        return self.path / "export" / name


def layout_of(folder: Path) -> RunLayout | None:
    """The run that a folder is, or that it is a checkpoint of; None for anything else."""
    resolved = folder.resolve()
    for path in (resolved, resolved.parent.parent):
        run = RunLayout(path)
        if run.is_run and (path == resolved or resolved.parent == run.checkpoints):
            return run
    return None


def _numbered(folder: Path, prefix: str) -> list[Path]:
    by_number = {path.name.removeprefix(prefix): path for path in folder.glob(f"{prefix}*")}
    return [by_number[number] for number in sorted(filter(str.isdigit, by_number), key=int)]
