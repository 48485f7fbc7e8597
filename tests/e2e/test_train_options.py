"""Every file of configs/, and files of the older repos, run for two steps on miniatures of their data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import miniatures, older_files
from tests.miniatures import MINIATURES
from vlmtune.cli.main import main
from vlmtune.config.load import load_experiment

pytestmark = pytest.mark.e2e

CONFIGS = Path(__file__).parents[2] / "configs"
TWO_STEPS = ("--set", "model.base=builtin:tiny", "--set", "train.max_steps=2", "--set", "use_wandb=false")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def vlmtune(*args: str | Path) -> None:
    """Run a command in this process; it has to succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert not stop.value.code


def test_every_config_has_a_miniature() -> None:
    assert {path.stem for path in CONFIGS.rglob("*.y*ml")} == set(MINIATURES)


@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_every_config_runs_for_two_steps_on_its_miniature(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    miniature = MINIATURES[name]
    vlmtune(*miniature.arguments(CONFIGS / f"{name}.yaml", tmp_path), "--json")
    result = json.loads(capsys.readouterr().out)
    if miniature.command == "train":
        assert result["steps"] == 2 and result["test_accuracy"] is not None
        assert (Path(result["run"]) / "report.html").is_file()
    elif miniature.command == "evaluate":
        assert result["metrics"]["num_examples"] == 12
    else:
        assert name == "connector_stages" and result["instruct"]["steps"] == 2


def test_the_binary_version_is_cifar100_as_the_hub_has_it(tmp_path: Path) -> None:
    from vlmtune.data.splits import load_splits

    experiment = load_experiment(CONFIGS / "cifar100.yaml", must_exist=False)
    found = []
    for build in (miniatures.cifar100, miniatures.cifar100_binary):
        experiment.data.source = str(build(tmp_path / build.__name__))
        found.append(load_splits(experiment.data, experiment.task, experiment.seed))
    hub, binary = found
    assert hub.labels == binary.labels and hub.labels is not None
    assert hub.labels.shown[1] == ("aquarium fish",)
    image = next(example for example in hub.train if example.label == "worm").image.open()
    twin = next(e for e in binary.train if e.label == "worm" and e.image.open().tobytes() == image.tobytes())
    assert twin.image.open().size == (32, 32)


@pytest.mark.parametrize("faithful", [False, True])
def test_an_older_cifar_file_trains_resumes_and_is_evaluated(
    tmp_path: Path, faithful: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "finetune_cifar.yaml"
    file.write_text(older_files.cifar_fine_tuning())
    source = miniatures.cifar100(tmp_path / "cifar100", each=6, names=older_files.CIFAR_NAMES)
    runs = tmp_path / "runs"
    arguments = [
        *("train", file, *TWO_STEPS, "--set", f"dataset_name={source}", "--set", f"output_dir={runs}"),
        *("--set", "dataset_samples=24", "--set", "data.limit_test=6", "--set", "eval_steps=1"),
        *(["--faithful"] if faithful else []),
    ]
    vlmtune(*arguments, "--json")
    out = capsys.readouterr()
    result = json.loads(out.out)
    assert "match nothing in LFM2-VL" in out.err
    run = runs / "finetune_cifar"
    assert result["steps"] == 2 and Path(result["run"]) == run
    assert load_experiment(run).train.loss == ("all" if faithful else "answer")
    assert (load_experiment(run).adapter.targets == ["q_proj", "k_proj", "v_proj"]) == faithful

    # Cut off after its first step, it goes on with the same file, and gives the same result.
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: value for key, value in told.items() if key != "result"}))
    (run / "best").unlink()
    second = run / "checkpoints" / "step-000002"
    for path in second.iterdir():
        path.unlink()
    second.rmdir()
    vlmtune(*arguments, "--resume", "--json")
    again = json.loads(capsys.readouterr().out)
    assert again["steps"] == 2 and again["test_accuracy"] == result["test_accuracy"]
    resumed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in resumed] == [line["loss"] for line in metrics]

    # And the older repo's evaluation file measures the checkpoint.
    evaluation = tmp_path / "eval_cifar.yaml"
    checkpoint = (run / "best").resolve()
    evaluation.write_text(older_files.cifar_evaluation(str(checkpoint), "builtin:tiny"))
    vlmtune("evaluate", evaluation, "--set", f"dataset={source}", "--limit", 6, "--set", f"output_dir={runs}", "--json")
    measured = json.loads(capsys.readouterr().out)
    assert measured["checkpoint"] == checkpoint.name and measured["metrics"]["num_examples"] == 6


def test_an_older_cars_file_takes_labels_from_its_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "finetune_cars.yaml"
    file.write_text(older_files.cars_fine_tuning())
    source = miniatures.cars_of_text_003(tmp_path / "cars")
    place = ("--set", f"output_dir={tmp_path / 'runs'}")
    vlmtune(
        "train", file, *TWO_STEPS, *place, "--set", f"dataset_name={source}", "--set", "data.limit_test=8", "--json"
    )
    out = capsys.readouterr()
    run = Path(json.loads(out.out)["run"])
    assert "labels are what the column 'maker' holds" in out.err and "checkpoint-500" in out.err
    evaluation = tmp_path / "eval_cars.yaml"
    evaluation.write_text(older_files.cars_evaluation(str((run / "best").resolve())))
    vlmtune("evaluate", evaluation, *place, "--set", f"dataset={source}", "--json")
    measured = json.loads(capsys.readouterr().out)
    assert measured["base"] == "builtin:tiny", "from the checkpoint's own adapter_config.json"
    assert measured["metrics"]["num_examples"] == 24


def test_older_files_of_pets_and_actions_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ("--set", f"output_dir={tmp_path / 'runs'}")
    pets = tmp_path / "finetune_pets.yaml"
    pets.write_text(older_files.pets_fine_tuning())
    source = miniatures.cats_vs_dogs(tmp_path / "pets", ("train", "test"), each=8)
    small = ("--set", "batch_size=4", "--set", "gradient_accumulation_steps=1")
    vlmtune("train", pets, *TWO_STEPS, *place, *small, "--set", f"dataset_name={source}", "--json")
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    actions = tmp_path / "actions.yaml"
    actions.write_text(older_files.actions_evaluation(tuple(miniatures.ACTIONS)))
    source = miniatures.human_actions(tmp_path / "actions", each=1)
    vlmtune("evaluate", actions, *place, "--set", "model.base=builtin:tiny", "--set", f"dataset={source}", "--json")
    measured = json.loads(capsys.readouterr().out)
    assert measured["checkpoint"] is None and measured["metrics"]["num_examples"] == 15


def test_a_rented_job_is_a_run_that_resumes(tmp_path: Path) -> None:
    from vlmtune.scale.jobs import make_job, run_job

    overrides = [
        "train.max_steps=2",
        "train.save_every=1",
        "data.limit=8",
        "data.limit_validation=4",
        "data.limit_test=4",
    ]
    job = make_job("train", load_experiment(CONFIGS / "digits.yaml", overrides), "/data")
    runs = tmp_path / "runs"
    outcome = run_job(job, runs)
    assert outcome.exit_code == 0 and outcome.result["steps"] == 2
    assert outcome.links["best"].startswith("checkpoints/step-")
    told = json.loads((runs / "digits" / "run.json").read_text())
    (runs / "digits" / "run.json").write_text(json.dumps({**told, "result": None}))
    again = run_job(job, runs).result
    assert again["test_accuracy"] == outcome.result["test_accuracy"] and again["steps"] == 2
