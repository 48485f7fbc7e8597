"""Training and evaluation on a GPU rented from Modal: `modal run -m vlmtune.scale.modal_app::train --config FILE`.

The file's section `modal:` sets GPU, time limit, volumes and secrets. A container that is
preempted, or times out, is followed by another that resumes from the last checkpoint in the volume of runs.
Finished, the run folder is copied here. Needs `pip install 'vlmtune[modal]'` and, once, `modal setup`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import modal

from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment, ModalSection
from vlmtune.errors import UserError
from vlmtune.files import new_file
from vlmtune.scale.jobs import Job, Outcome, make_job, run_job

PYTHON = "3.12"
MODELS, RUNS, DATA = "/models", "/runs", "/data"
"""Where the volumes are in the container."""
DATA_VOLUME = "vlmtune-data"
_NOT_COPIED = ("optimizer.",)
"""Prefixes of files that only resuming needs; they stay in the volume."""


class RunsVolume(Protocol):
    """The part of `modal.Volume` that `download` needs."""

    def listdir(self, path: str, *, recursive: bool = ...) -> Iterable[Any]: ...

    def read_file_into_fileobj(self, path: str, fileobj: IO[bytes]) -> int: ...


def build_image() -> modal.Image:
    """Linux with the dependencies of our own project file, and this code on top."""
    # A container imports this module too, inside the built image, where the project file is not available.
    project = Path(__file__).parents[3] / "pyproject.toml"
    image = modal.Image.debian_slim(python_version=PYTHON)
    if modal.is_local():
        if not project.is_file():
            raise UserError(f"{project}: not found. Run this from a checkout, which the image is built from.")
        image = image.pip_install_from_pyproject(str(project), optional_dependencies=["track"])
    return image.env({"HF_HOME": f"{MODELS}/huggingface", "OMP_WAIT_POLICY": "PASSIVE"}).add_local_python_source(
        "vlmtune", ignore=["**/__pycache__/**"]
    )


def volumes_of(section: ModalSection) -> dict[str, modal.Volume]:
    """Mount point -> volume, created if there is none of that name."""
    names = {MODELS: section.models_volume, RUNS: section.runs_volume, DATA: DATA_VOLUME}
    return {path: modal.Volume.from_name(name, create_if_missing=True) for path, name in names.items()}


def options_of(section: ModalSection) -> dict[str, Any]:
    """The `modal` section as the options of a Modal function."""
    return {
        "gpu": section.gpu,
        "timeout": round(section.timeout_hours * 3600),
        "retries": modal.Retries(max_retries=section.retries, initial_delay=5.0),
        "volumes": volumes_of(section),
        "secrets": [modal.Secret.from_name(name) for name in section.secrets],
    }


app = modal.App("vlmtune")


@app.function(image=build_image(), single_use_containers=True, **options_of(ModalSection()))
def run_in_container(job: Job) -> Outcome:
    """One attempt at a job. Called again by Modal with the same job after pre-emption, a timeout or a failure."""
    try:
        return run_job(job, Path(RUNS))
    finally:
        if not modal.is_local():
            modal.Volume.from_name(_volume_of(job)).commit()


def _volume_of(job: Job) -> str:
    from ruamel.yaml import YAML

    section = YAML(typ="safe", pure=True).load(job.config).get("modal") or {}
    return str(ModalSection(**section).runs_volume)


@app.local_entrypoint()
def train(*arguments: str) -> None:
    """Fine-tune on a rented GPU: --config FILE [--set KEY=VALUE …] [--faithful] [--output FOLDER]."""
    _main("train", arguments)


@app.local_entrypoint()
def evaluate(*arguments: str) -> None:
    """Evaluate on a rented GPU: as `train`, and --checkpoint CHECKPOINT, --limit N."""
    _main("evaluate", arguments)


def _main(command: Literal["train", "evaluate"], arguments: Iterable[str]) -> None:
    try:
        options = _parse(command, list(arguments))
        experiment = load_experiment(
            options.config, options.set, must_exist=False, faithful=options.faithful, note=_say
        )
        further = [part for key in ("checkpoint", "limit") for part in _option(key, getattr(options, key, None))]
        run_remotely(make_job(command, experiment, DATA, further), experiment, options.output)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _parse(command: str, arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"modal run -m vlmtune.scale.modal_app::{command}")
    parser.add_argument("--config", required=True, help="an experiment's YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a value")
    parser.add_argument("--faithful", action="store_true", help="of an older repo's file, keep its loss and LoRA")
    parser.add_argument("--output", type=Path, help="where the run folder is copied to; default: output_dir")
    if command == "evaluate":
        parser.add_argument("--checkpoint", help="'base', or a folder in the container, as /runs/NAME")
        parser.add_argument("--limit", help="at most so many images")
    return parser.parse_args(arguments)


def _option(key: str, value: str | None) -> list[str]:
    return [] if value is None else [f"--{key}", value]


def run_remotely(
    job: Job,
    experiment: Experiment,
    output: Path | None = None,
    call: Callable[[ModalSection, Job], Outcome] | None = None,
) -> Path:
    """Run a job in Modal's cloud and copy its run folder here; returns it.

    Args:
        output: the folder of run folders. Default: `output_dir`.
        call: runs the job; for tests.

    Raises UserError if the command in the container ended with one.
    """
    section = experiment.modal or ModalSection()
    _say(f"{job.command} {job.name} on {section.gpu}, {section.timeout_hours:g} hours at most")
    outcome = (call or _call)(section, job)
    if outcome.exit_code:
        raise UserError(f"vlmtune {job.command} {job.name} failed in the container; its message is above.")
    volume = volumes_of(section)[RUNS]
    folder = download(volume, job.name, output or Path(experiment.output_dir), outcome.links)
    print(folder)
    return folder


def _call(section: ModalSection, job: Job) -> Outcome:
    outcome: Outcome = run_in_container.with_options(**options_of(section)).remote(job)
    return outcome


def download(volume: RunsVolume, name: str, output: Path, links: dict[str, str]) -> Path:
    """Copy a run folder out of the volume, except the optimizer's state; existing files are kept.

    Args:
        links: those of the run folder, which the volume does not list: name -> target.
    """
    folder = output / name
    for entry in volume.listdir(name, recursive=True):
        path = Path(entry.path)
        target = output / path
        is_file = entry.type.name == "FILE"
        if not is_file or ".." in path.parts or path.name.startswith(_NOT_COPIED):
            continue
        # Weights never change once they are written; everything else may have grown.
        if target.suffix == ".safetensors" and target.exists() and target.stat().st_size == entry.size:
            continue
        with new_file(target) as partial, partial.open("wb") as file:
            volume.read_file_into_fileobj(entry.path, file)
    for link, goal in links.items():
        with suppress(FileNotFoundError):
            (folder / link).unlink()
        (folder / link).symlink_to(goal)
    return folder


def _say(text: str) -> None:
    print(text, file=sys.stderr)
