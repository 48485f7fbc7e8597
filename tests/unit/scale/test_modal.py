"""Jobs on rented GPUs, and the Modal app, without an account: what would be asked for, run and copied."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import yaml

from vlmtune.config.load import load_experiment
from vlmtune.config.schema import ModalSection
from vlmtune.errors import UserError
from vlmtune.scale.jobs import Job, Outcome, make_job, run_job

pytestmark = pytest.mark.unit

REPO = Path(__file__).parents[3]


@pytest.fixture
def modal_app() -> Any:
    pytest.importorskip("modal")
    from vlmtune.scale import modal_app

    return modal_app


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pets.yaml"
    path.write_text(
        "data: microsoft/cats_vs_dogs\nmodel: LiquidAI/LFM2-VL-450M\n"
        "modal: {gpu: H100, timeout_hours: 2.5, retries: 5, runs_volume: mine, secrets: [huggingface, wandb]}\n"
    )
    return path


def spec_of(function: Any) -> Any:
    """What Modal would be asked for: of a function, whatever its options."""
    from modal._utils.async_utils import synchronizer

    return synchronizer._translate_in(function)


# ── what runs in the container ──────────────────────────────────────────────────────────────────────────────────────


def test_a_job_holds_the_whole_experiment(config: Path) -> None:
    job = make_job("train", load_experiment(config, ["train.epochs=2"]), "/data")
    values = yaml.safe_load(job.config)
    assert (job.name, values["train"]["epochs"], values["data"]["source"]) == ("pets", 2, "microsoft/cats_vs_dogs")


@pytest.mark.parametrize("key", ["data.source", "model.base", "evaluate.checkpoint"])
def test_local_only_inputs_are_refused_with_advice(config: Path, tmp_path: Path, key: str) -> None:
    (tmp_path / "mine").mkdir()
    experiment = load_experiment(config, [f"{key}={tmp_path / 'mine'}"])
    with pytest.raises(UserError, match=rf"{key}: .*mine is on this machine only.*--set {key}=/data/mine"):
        make_job("train", experiment, "/data")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that `run_job` would run; each prints {"steps": 2}."""
    called: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        called.append(command[3:])
        return SimpleNamespace(returncode=0, stdout='{"steps": 2}')

    monkeypatch.setattr(subprocess, "run", run)
    return called


def test_a_cut_run_is_resumed_or_begun_anew(tmp_path: Path, commands: list[list[str]]) -> None:
    job = Job("train", "pets", "data: builtin:digits\n", ("--limit", "5"))
    assert run_job(job, tmp_path).result == {"steps": 2}
    config = str(tmp_path / ".configs" / "pets.yaml")
    started = ["train", config, "--set", f"output_dir={tmp_path}", "--limit", "5", "--json"]
    assert commands[-1] == started and Path(config).read_text() == job.config
    run = tmp_path / "pets"
    run.mkdir()
    (run / "config.yaml").write_text("")
    run_job(job, tmp_path)  # cut off before its first checkpoint
    assert commands[-1] == started and not run.exists()
    (run / "checkpoints" / "step-000010").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    (run / "best").symlink_to("checkpoints/step-000010")
    outcome = run_job(job, tmp_path)
    assert commands[-1] == [*started, "--resume"] and outcome.links == {"best": "checkpoints/step-000010"}
    run_job(Job("evaluate", "pets", job.config), tmp_path)
    assert "--resume" not in commands[-1]


def test_only_killed_jobs_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("train", "pets", "data: builtin:digits\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=-9, stdout=""))
    with pytest.raises(RuntimeError, match="ended with exit code -9"):
        run_job(job, tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stdout=""))
    assert run_job(job, tmp_path) == Outcome(1)


# ── the app ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_container_has_the_gpu_the_volumes_and_our_code(modal_app: Any) -> None:
    spec = spec_of(modal_app.run_in_container)._spec
    assert spec.gpus == "L40S"
    assert {place: volume.name for place, volume in spec.volumes.items()} == {
        "/models": "vlmtune-models",
        "/runs": "vlmtune-runs",
        "/data": "vlmtune-data",
    }
    assert spec_of(spec.image)._added_python_source_set == {"vlmtune"}
    assert modal_app.app.name == "vlmtune"
    assert callable(modal_app.train) and callable(modal_app.evaluate)


def test_the_image_is_built_from_our_project_file(modal_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import modal

    asked: list[tuple[str, list[str]]] = []
    whole = modal.Image.pip_install_from_pyproject

    def install(image: Any, path: str, optional_dependencies: list[str]) -> Any:
        asked.append((path, optional_dependencies))
        return whole(image, path, optional_dependencies)

    monkeypatch.setattr(modal.Image, "pip_install_from_pyproject", install)
    modal_app.build_image()
    assert asked == [(str(REPO / "pyproject.toml"), ["track"])]


def test_gpu_timeout_retries_volumes_and_secrets_are_the_files(modal_app: Any, config: Path) -> None:
    section = load_experiment(config).modal
    assert section is not None
    options = modal_app.options_of(section)
    assert (options["gpu"], options["timeout"]) == ("H100", 9000)
    assert options["retries"].max_retries == 5
    assert options["volumes"]["/runs"].name == "mine" and len(options["secrets"]) == 2
    # Modal takes every one of them for a function that is defined already.
    modal_app.run_in_container.with_options(**options)
    assert modal_app.options_of(ModalSection())["gpu"] == "L40S"


class FakeVolume:
    """Files by path, listed and read as Modal's volume does."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.num_read = 0

    def listdir(self, path: str, *, recursive: bool = False) -> list[Any]:
        assert recursive
        kind = SimpleNamespace(name="FILE")
        found = [SimpleNamespace(path=name, type=kind, size=len(data)) for name, data in self.files.items()]
        return [*found, SimpleNamespace(path=f"{path}/checkpoints", type=SimpleNamespace(name="DIRECTORY"), size=0)]

    def read_file_into_fileobj(self, path: str, fileobj: IO[bytes]) -> int:
        self.num_read += 1
        return fileobj.write(self.files[path])


def test_runs_are_copied_without_the_optimizer(modal_app: Any, tmp_path: Path) -> None:
    volume = FakeVolume(
        {
            "pets/config.yaml": b"name: pets\n",
            "pets/checkpoints/step-000010/adapter_model.safetensors": b"weights",
            "pets/checkpoints/step-000010/optimizer.safetensors": b"much",
            "pets/../../evil": b"out of the folder",
        }
    )
    links = {"best": "checkpoints/step-000010"}
    for _ in range(2):
        folder = modal_app.download(volume, "pets", tmp_path / "runs", links)
    assert (folder / "best" / "adapter_model.safetensors").read_bytes() == b"weights"
    assert sorted(path.name for path in (folder / "best").iterdir()) == ["adapter_model.safetensors"]
    assert not list(tmp_path.rglob("evil"))
    assert volume.num_read == 3, "weights that are here are not sent again"


def test_the_command_line_is_parsed_run_and_copied(
    modal_app: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[ModalSection, Job]] = []

    def call(section: ModalSection, job: Job) -> Outcome:
        asked.append((section, job))
        return Outcome(0, {"steps": 2})

    volume = FakeVolume({"pets/run.json": json.dumps({"result": 1}).encode()})
    monkeypatch.setattr(modal_app, "_call", call)
    monkeypatch.setattr(modal_app, "volumes_of", lambda section: {"/runs": volume})
    modal_app._main(
        "evaluate",
        ["--config", str(config), "--set", "modal.gpu=T4", "--limit", "7", "--output", str(tmp_path / "here")],
    )
    ((section, job),) = asked
    assert section.gpu == "T4" and job.command == "evaluate" and job.arguments == ("--limit", "7")
    assert capsys.readouterr().out.strip() == str(tmp_path / "here" / "pets")
    assert (tmp_path / "here" / "pets" / "run.json").is_file()
    monkeypatch.setattr(modal_app, "_call", lambda section, job: Outcome(1))
    with pytest.raises(SystemExit):
        modal_app._main("train", ["--config", str(config)])
    assert "Error: vlmtune train pets failed in the container" in capsys.readouterr().err
