"""One vlmtune command as a job on a rented machine that may be preempted at any time: described here, run there.

In: an experiment. Out: a `Job`, plain data that travels. There it is an ordinary command line in another process; an
existing run is resumed. Independent of the provider.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlmtune.config.load import dump
from vlmtune.config.schema import Experiment
from vlmtune.errors import UserError
from vlmtune.files import write_text
from vlmtune.runs.layout import RunLayout

USER_ERRORS = (1, 2)
"""Exit codes of user errors: retrying would not help."""


@dataclass(frozen=True)
class Job:
    """A command to run on a rented machine.

    Attributes:
        command: of `vlmtune`. config: the experiment as YAML, all of it. arguments: further ones of the command line.
    """

    command: Literal["train", "evaluate"]
    name: str
    config: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job.

    Attributes:
        exit_code: of the command. result: what it printed with `--json`. links: link in the run folder -> its target.
    """

    exit_code: int
    result: dict[str, Any] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)


def make_job(
    command: Literal["train", "evaluate"], experiment: Experiment, data_folder: str, arguments: Sequence[str] = ()
) -> Job:
    """Describe a job.

    Args:
        experiment: as loaded here, overrides included.
        data_folder: location there of data that are not on the hub.

    Raises UserError for data, a base or a checkpoint that exist only on this machine.
    """
    connector = experiment.model.connector
    for key, value in (
        ("data.source", experiment.data.source),
        ("data.image_folder", experiment.data.image_folder),
        ("model.base", experiment.model.base),
        ("model.connector.start", connector.start if connector is not None else None),
        ("evaluate.checkpoint", experiment.evaluate.checkpoint),
    ):
        if value is not None and Path(value).expanduser().exists():
            raise UserError(
                f"{key}: {value} is on this machine only. Put it into the volume first and name it as it is there: "
                f"--set {key}={data_folder}/{Path(value).name}"
            )
    assert experiment.name is not None
    return Job(command, experiment.name, dump(experiment, brief=True), tuple(arguments))


def run_job(job: Job, runs: Path) -> Outcome:
    """Run a job's command in a separate process; progress goes to this one's stderr.

    A run that was cut off is resumed from its last checkpoint; one cut off before its first starts over.

    Args:
        runs: the folder of run folders, which outlasts the machine.

    Raises RuntimeError, to be retried, if the process was killed or failed other than by a user error.
    """
    config = runs / ".configs" / f"{job.name}.yaml"
    write_text(config, job.config)
    run = RunLayout(runs / job.name)
    command = [sys.executable, "-m", "vlmtune.cli.main", job.command, str(config), "--set", f"output_dir={runs}"]
    command += [*job.arguments, "--json"]
    if job.command == "train" and run.is_run:
        if run.list_checkpoints():
            command.append("--resume")
        else:
            shutil.rmtree(run.path)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, *USER_ERRORS):
        raise RuntimeError(f"{job.name}: vlmtune {job.command} ended with exit code {done.returncode}.")
    result = json.loads(done.stdout) if done.returncode == 0 else {}
    links = {path.name: str(path.readlink()) for path in run.path.glob("*") if path.is_symlink()}
    return Outcome(done.returncode, result, links)
