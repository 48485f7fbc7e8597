"""Evaluation for real: a killed one resumes to the same bytes; scoring is chosen and calibration fitted on validation;
a model is never measured on what it learned from."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import log_softmax

from tests.images import write_class_folders
from tests.tiny_model import write_tiny_folder
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError, UserError
from vlmtune.evaluate.block_cache import BlockCache
from vlmtune.evaluate.files import read_evaluation
from vlmtune.evaluate.run import EvaluationResult, evaluate, evaluate_checkpoint
from vlmtune.evaluate.trained_images import refuse_trained_images
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.records import Example, ImageSource, LabelScores
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.prepare import load_data, open_base
from vlmtune.tasks.question import Task
from vlmtune.train.loop import Trainer, run_record

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("images"), 12)


def experiment(base: Path, images: Path, output: Path, **sections: dict[str, object]) -> Experiment:
    values: dict[str, dict[str, object]] = {
        "model": {"base": str(base), "dtype": "float32"},
        "data": {"source": str(images)},
        "task": {"label_names": {"wug": ["wug", "a wug"]}},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return Experiment.model_validate({"name": "run", "output_dir": str(output), **values})


def evaluate_base(wanted: Experiment, folder: Path, said: list[str] | None = None) -> EvaluationResult:
    resolved, splits = load_data(wanted)
    say = (said if said is not None else []).append
    return evaluate_checkpoint(resolved, splits, checkpoint=None, folder=folder, say=say)


def test_a_killed_evaluation_resumes_to_the_same_file(base: Path, tmp_path: Path) -> None:
    images = write_class_folders(tmp_path / "images", 4, splits=("train",))
    write_class_folders(images, 240, splits=("test",))
    config = tmp_path / "words.yaml"
    config.write_text(f"model: {base}\ndata: {images}\nevaluate:\n  batch_size: 2\n")

    def command(output: str) -> list[str]:
        place = f"output_dir={tmp_path / output}"
        return [sys.executable, "-m", "vlmtune.cli.main", "evaluate", str(config), "--set", place, "--json"]

    whole = subprocess.run(command("whole"), check=True, capture_output=True, text=True)
    killed = subprocess.Popen(command("cut"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    evaluations = tmp_path / "cut" / "words" / "evaluation"
    while not (evaluations / ".test-base.blocks" / "test-000001.parquet").exists():
        assert killed.poll() is None, "the evaluation ended before it could be killed"
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (evaluations / "test-base").exists()

    resumed = subprocess.run(command("cut"), check=True, capture_output=True, text=True)
    assert "512 of 720 images were finished before an interruption" in resumed.stderr
    folders = [Path(json.loads(done.stdout)["folder"]) for done in (whole, resumed)]
    files = [(folder / "predictions.parquet").read_bytes() for folder in folders]
    assert files[0] == files[1]
    figures = [json.loads(done.stdout)["metrics"] for done in (whole, resumed)]
    assert {k: v for k, v in figures[0].items() if k != "seconds_per_example"} == {
        k: v for k, v in figures[1].items() if k != "seconds_per_example"
    }
    assert [path.name for path in evaluations.iterdir()] == ["test-base"]  # the blocks are gone


def test_results_are_the_predictors_with_what_they_cost(base: Path, images: Path, tmp_path: Path) -> None:
    wanted = experiment(base, images, tmp_path)
    found = read_evaluation(evaluate_base(wanted, tmp_path).folder)
    resolved, splits = load_data(wanted)
    predictor = Predictor(open_base(resolved.model), resolved.task, splits.labels)
    scores = list(predictor.classify(Query(example.image) for example in splits.test))
    table = found.predictions
    assert all(isinstance(one, LabelScores) for one in scores)
    assert table.texts("prediction") == [one.prediction for one in scores]
    assert table.closed is not None
    assert table.closed.log_probs == pytest.approx(np.asarray([one.log_probs for one in scores]), abs=1e-5)
    assert table.texts("num_tokens") == [one.num_rows for one in scores]
    inner = len(predictor.trie.children) - 1
    for example, one in zip(splits.test, scores, strict=True):
        text = predictor.process(Query(example.image))
        assert one.num_rows == len(predictor.rest_of_prompt(text)) + inner
        assert one.num_prompt_tokens == len(predictor.prefix) + len(predictor.rest_of_prompt(text))
    own = np.mean([one.num_rows for one in scores])
    assert found.facts["num_tokens"] == pytest.approx(own + len(predictor.prefix) / len(scores))
    assert found.facts["num_tokens_unshared"] > 4 * found.facts["num_tokens"] / 2  # four texts for three labels
    assert (table.seconds > 0).all()
    assert found.facts["seconds"] == pytest.approx(float(table.seconds.sum()), rel=1e-5)


def test_scoring_and_calibration_are_decided_on_validation(
    base: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: dict[str, list[Example]] = {}
    run = BlockCache.run

    def watched(self: BlockCache, part: str, examples: list[Example], *rest: object) -> object:
        parts[part] = list(examples)
        return run(self, part, examples, *rest)

    monkeypatch.setattr(BlockCache, "run", watched)
    section = {"scoring": {"reduce": "auto"}, "calibrate": True, "wanted_coverage": 0.6, "wanted_precision": 0.5}
    wanted = experiment(base, images, tmp_path, data={"validation_fraction": 0.5}, evaluate=section)
    facts = evaluate_base(wanted, tmp_path).facts
    _, splits = load_data(wanted)
    assert {part: [example.id for example in seen] for part, seen in parts.items() if part != "content-free"} == {
        "test": [example.id for example in splits.test],
        "validation": [example.id for example in splits.validation],
        "prior": [example.id for example in splits.train],
    }
    scoring = facts["scoring"]
    assert scoring["chosen_on"] == "validation" and len(scoring["candidates"]) == 6
    chosen = next(
        c for c in scoring["candidates"] if [c[k] for k in ("reduce", "prior")] == [scoring["reduce"], scoring["prior"]]
    )
    assert chosen["accuracy"] == max(c["accuracy"] for c in scoring["candidates"])
    calibration = facts["calibration"]
    assert calibration["num_validation"] == len(splits.validation)
    assert (calibration["conformal"]["wanted_coverage"], calibration["abstention"]["wanted_precision"]) == (0.6, 0.5)
    assert calibration["nll_before"] == pytest.approx(facts["metrics"]["nll"], abs=1e-5)


def test_an_adjusted_score_is_what_is_written(base: Path, images: Path, tmp_path: Path) -> None:
    plain = read_evaluation(evaluate_base(experiment(base, images, tmp_path), tmp_path / "plain").folder)
    prior = experiment(base, images, tmp_path, evaluate={"scoring": {"prior": "training"}})
    adjusted = read_evaluation(evaluate_base(prior, tmp_path / "prior").folder)
    resolved, splits = load_data(prior)
    predictor = Predictor(open_base(resolved.model), resolved.task, splits.labels)
    training = [one.log_probs for one in predictor.classify(Query(e.image) for e in splits.train)]
    before, after = plain.predictions.closed, adjusted.predictions.closed
    assert before is not None and after is not None
    expected = log_softmax(before.log_probs - np.mean(training, axis=0), axis=1)
    assert after.log_probs == pytest.approx(expected, abs=1e-4)
    assert after.prediction.tolist() == expected.argmax(1).tolist()
    assert adjusted.facts["scoring"]["prior"] == "training"


def test_an_unreadable_image_is_a_wrong_answer_and_is_listed(base: Path, images: Path, tmp_path: Path) -> None:
    resolved, splits = load_data(experiment(base, images, tmp_path))
    broken = Example("test/broken.png", ImageSource(data=b"no image", name="broken.png"), ("dax",))
    (question,) = Task.of(resolved.task, splits.labels).questions
    opened = open_base(resolved.model)
    for mode in ("full", "argmax"):
        section = resolved.evaluate.model_copy(update={"mode": mode})
        done = evaluate(question, opened, [*splits.test, broken], tmp_path / mode, name="x", section=section)
        metrics = done.facts["metrics"]
        assert metrics["num_examples"] == len(splits.test) + 1
        assert metrics["num_unreadable"] == 1
        assert [entry["id"] for entry in done.facts["unreadable"]] == ["test/broken.png"]
        rows = pq.read_table(tmp_path / mode / "predictions.parquet").to_pylist()
        assert rows[-1]["prediction"] is None and "not an image" in rows[-1]["error"]


def test_a_limit_is_kept_to_and_recorded(base: Path, images: Path, tmp_path: Path) -> None:
    facts = evaluate_base(experiment(base, images, tmp_path, evaluate={"limit": 7}), tmp_path).facts
    assert facts["metrics"]["num_examples"] == facts["data"]["limit"] == 7
    assert all(entry["support"] >= 2 for entry in facts["metrics"]["per_class"])  # stratified


def test_replacing_a_larger_evaluation_is_announced(base: Path, images: Path, tmp_path: Path) -> None:
    said: list[str] = []
    for limit, told in ((7, 0), (9, 0), (4, 1)):
        evaluate_base(experiment(base, images, tmp_path, evaluate={"limit": limit}), tmp_path, said)
        assert len(said) == told, said
    assert "measured on 9 examples, by one of 4" in said[0]


@pytest.mark.parametrize("section", [{"calibrate": True}, {"scoring": {"reduce": "auto"}}])
def test_scoring_without_validation_images_is_refused_first(
    base: Path, tmp_path: Path, section: dict[str, object]
) -> None:
    images = write_class_folders(tmp_path / "images", 4, splits=("test",))
    with pytest.raises(DataError, match="need validation images, found none"):
        evaluate_base(experiment(base, images, tmp_path, evaluate=section), tmp_path)
    assert not (tmp_path / "evaluation").exists()


def test_training_images_are_refused_in_evaluation(base: Path, tmp_path: Path) -> None:
    images = write_class_folders(tmp_path / "images", 12, splits=("all",)) / "all"
    train = {"max_steps": 1, "eval_every": 1, "save_every": 1, "batch_size": 4}
    wanted = experiment(base, images, tmp_path, data={"test_fraction": 0.25}, train=train)
    resolved, splits = load_data(wanted)
    folder = RunFolder.claim(resolved, resume=False)
    folder.begin(resolved)
    trainer = Trainer(resolved, open_base(resolved.model), splits)
    trainer.run(folder)
    run_record(trainer, "now").write(folder)

    def measure(said: list[str], checkpoint: str = "best", **sections: dict[str, object]) -> EvaluationResult:
        changed, others = load_data(experiment(base, images, tmp_path, **sections))
        return evaluate_checkpoint(
            changed, others, checkpoint=folder.path / checkpoint, folder=tmp_path / "out", say=said.append
        )

    said: list[str] = []
    assert measure(said, data={"test_fraction": 0.25}).facts["metrics"]["num_examples"] == 9
    assert not said
    with pytest.raises(UserError, match=r"trained on \d+ of the 18 images"):
        measure(said, data={"test_fraction": 0.5})
    # Another validation fraction: the test images are the same, and so is what was learned from or more.
    measure(said, data={"test_fraction": 0.25, "validation_fraction": 0.3})
    assert not said
    with pytest.raises(UserError, match="trained on"):
        measure(said, data={"test_fraction": 0.25, "validation_fraction": 0.5}, evaluate={"split": "validation"})
    # Images by which the best checkpoint was chosen are no training images, but not unseen either.
    refuse_trained_images(folder.path / "best", Splits([], [], [], None), splits.validation, said.append)
    assert f"{len(splits.validation)} of the {len(splits.validation)} images chose the best checkpoint" in said.pop()
    train_split = measure(said, data={"test_fraction": 0.5}, evaluate={"split": "train"})
    assert train_split.facts["data"]["split"] == "train"
    images.rename(tmp_path / "moved")
    refuse_trained_images(folder.path / "best", Splits([], [], [], None), splits.test, said.append)
    assert "its data are gone" in said.pop()
