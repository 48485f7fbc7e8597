"""Questions from files to a results file, on a random model small enough for seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_model import write_tiny_folder
from tests.vqa_sets import NUM_QUESTIONS, write_hub, write_official
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import UserError
from vlmtune.evaluate import answers as evaluate_answers
from vlmtune.evaluate.baselines import Baselines
from vlmtune.evaluate.compare import compare
from vlmtune.evaluate.files import read_evaluation
from vlmtune.evaluate.run import evaluate_checkpoint
from vlmtune.inference.predictor import Predictor
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.prepare import load_data, open_base
from vlmtune.text.vqa_accuracy import vqa_accuracy
from vlmtune.train.loop import StepEvent, Trainer
from vlmtune.train.preflight import preflight

pytestmark = pytest.mark.e2e

SETS = {"train2014": 8, "val2014": 4, "test2015": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official"), SETS)


def experiment(base: Path, source: Path | str, output: Path, name: str = "run", **keys: Any) -> Experiment:
    sections: dict[str, Any] = {
        "model": {"base": str(base), "dtype": "float32", "do_image_splitting": False},
        "data": {"source": str(source), "test_split": "validation[-9:]", "validation_fraction": 0.2},
        "task": {"type": "text", "max_answer_tokens": 3},
        "train": {"batch_size": 8, "learning_rate": 5e-3, "max_steps": 8, "eval_every": 4, "save_every": 4},
        "evaluate": {"batch_size": 4},
    }
    for key, value in keys.items():
        sections[key] |= value
    return Experiment.model_validate({"name": name, "output_dir": str(output), **sections})


def start(wanted: Experiment, *, resume: bool = False) -> tuple[Trainer, RunFolder]:
    resolved, splits = load_data(wanted)
    folder = RunFolder.claim(resolved, resume=resume)
    folder.begin(resolved)
    return Trainer(resolved, open_base(resolved.model), splits), folder


def interrupt(event: StepEvent) -> None:
    if event.step == 6:
        raise KeyboardInterrupt


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors")


def test_drawn_answers_are_the_same_after_a_resume(base: Path, official: Path, tmp_path: Path) -> None:
    whole, folder = start(experiment(base, official, tmp_path, "whole"))
    whole.run(folder)
    stopped, cut = start(experiment(base, official, tmp_path, "cut"))
    with pytest.raises(KeyboardInterrupt):
        stopped.run(cut, on_step=interrupt)
    again, cut = start(experiment(base, official, tmp_path, "cut"), resume=True)
    again.run(cut, resume=True)
    expected, found = tensors(folder.path, 8), tensors(cut.path, 8)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    other, folder = start(experiment(base, official, tmp_path, "majority", train={"answer": "majority"}))
    other.run(folder)
    assert any(not torch.equal(expected[name], value) for name, value in tensors(folder.path, 8).items())


def test_questions_about_one_image_share_its_encoding(base: Path, official: Path, tmp_path: Path) -> None:
    trainer, _ = start(experiment(base, official, tmp_path))
    (batch,) = trainer.reader.micro_batches(2 * NUM_QUESTIONS, 0, 1)
    assert len({item.example.image_id for item in batch}) == 2
    assert len({item.image_index for item in batch}) == 2
    assert {item.image_index for item in batch if item.example.image_id == batch[0].example.image_id} == {0}
    messages = [finding.message for finding in preflight(trainer).findings if finding.name == "data"]
    assert "18 training questions about 6 images, 6 validation questions about 2 images" in messages[0]


def evaluate(wanted: Experiment, folder: Path, name: str, **more: Any) -> Path:
    resolved, splits = load_data(wanted)
    return evaluate_checkpoint(resolved, splits, checkpoint=None, folder=folder, name=name, **more).folder


def test_an_evaluation_holds_every_question_in_order(base: Path, official: Path, tmp_path: Path) -> None:
    wanted = experiment(base, official, tmp_path)
    folder = evaluate(wanted, tmp_path, "base")
    read = read_evaluation(folder)
    test = load_data(wanted)[1].test
    assert read.predictions.ids == [example.id for example in test]
    answers = read.predictions.texts("prediction")
    expected = [vqa_accuracy(answer, example.answers) for answer, example in zip(answers, test, strict=True)]
    assert read.predictions.score.tolist() == expected
    submitted = json.loads((folder / "submission.json").read_text())
    assert [entry["question_id"] for entry in submitted] == [int(example.id) for example in test]
    assert [entry["answer"] for entry in submitted] == answers

    wider = experiment(base, official, tmp_path, evaluate={"batch_size": 9})
    other = read_evaluation(evaluate(wider, tmp_path, "wider"))
    assert other.predictions.texts("prediction") == answers, "batches do not change answers"
    assert compare([read, other])["pairs"][0]["difference"] == 0.0


def test_a_killed_evaluation_writes_the_same_predictions(
    base: Path, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_answers, "BLOCK_SIZE", 4)
    wanted = experiment(base, official, tmp_path)
    whole = (evaluate(wanted, tmp_path, "whole") / "predictions.parquet").read_bytes()
    asked: list[str | None] = []
    answer = Predictor.answer

    def dies(self: Predictor, queries: Any, sampling: Any = None) -> Any:
        for query, found in zip(list(queries), list(answer(self, queries, sampling)), strict=False):
            asked.append(query.question)
            if len(asked) == 6:
                raise KeyboardInterrupt
            yield found

    def listed(self: Predictor, queries: Any, sampling: Any = None) -> Any:
        return dies(self, list(queries), sampling)

    monkeypatch.setattr(Predictor, "answer", listed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(wanted, tmp_path, "cut")
    asked = [None] * 100
    assert (evaluate(wanted, tmp_path, "cut") / "predictions.parquet").read_bytes() == whole
    assert len(asked) == 100 + 5, "the first block of four was not asked again"


def test_answers_of_a_closed_list_are_scored(base: Path, official: Path, tmp_path: Path) -> None:
    wanted = experiment(base, official, tmp_path, task=CLOSED)
    trainer, folder = start(wanted)
    targets = [trainer.reader.targets.of(example, 0, None) for example in trainer.splits.train]  # type: ignore[arg-type]
    assert {text for target in targets for text in target} <= {"yes", "no", "2", "red"}
    trainer.run(folder)
    read = read_evaluation(evaluate(wanted, tmp_path, "closed"))
    assert set(read.predictions.texts("prediction")) <= {"yes", "no", "2", "red"}
    closed_answers = read.predictions.closed
    assert closed_answers is not None and closed_answers.log_probs is not None
    assert np.exp(closed_answers.log_probs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert read.figures["num_outside_labels"] > 0 and len(read.figures["per_class"]) == 4


CLOSED = {"type": "choice", "question_from": "data", "labels": ["yes", "no", "2", "red"]}


def test_a_closed_list_is_calibrated_and_its_scoring_chosen(base: Path, official: Path, tmp_path: Path) -> None:
    section = {"scoring": {"reduce": "auto"}, "calibrate": True, "wanted_coverage": 0.6, "wanted_precision": 0.5}
    data = {"validation_fraction": 0.4}
    read = read_evaluation(
        evaluate(experiment(base, official, tmp_path, task=CLOSED, data=data, evaluate=section), tmp_path, "calibrated")
    )
    scoring, calibration = read.facts["scoring"], read.facts["calibration"]
    assert scoring["chosen_on"] == "validation" and len(scoring["candidates"]) == 6
    best = max(candidate["accuracy"] for candidate in scoring["candidates"])
    rule = {key: scoring[key] for key in ("reduce", "prior")}
    assert next(c for c in scoring["candidates"] if rule.items() <= c.items())["accuracy"] == best
    assert 0.05 <= calibration["temperature"] <= 20 and calibration["nll_before"] == pytest.approx(read.figures["nll"])
    assert {"lac", "aps"} <= calibration["conformal"].keys()


def test_scoring_changes_the_probabilities_of_a_closed_list(base: Path, official: Path, tmp_path: Path) -> None:
    probabilities = {}
    for name, scoring in (("sum", {}), ("mean", {"reduce": "mean"}), ("free", {"prior": "content-free"})):
        wanted = experiment(base, official, tmp_path, task=CLOSED, evaluate={"scoring": scoring})
        read = read_evaluation(evaluate(wanted, tmp_path, name))
        assert read.predictions.closed is not None
        probabilities[name] = read.predictions.closed.log_probs
        assert read.facts["scoring"]["reduce"] == ("mean" if name == "mean" else "sum")
    assert not np.allclose(probabilities["sum"], probabilities["mean"], atol=1e-3)
    assert not np.allclose(probabilities["sum"], probabilities["free"], atol=1e-3)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"calibrate": True}, r"evaluate\.calibrate"),
        ({"scoring": {"reduce": "mean"}}, r"evaluate\.scoring"),
        ({"mode": "argmax"}, r"evaluate\.mode"),
    ],
)
def test_open_answers_refuse_what_needs_probabilities(
    base: Path, official: Path, tmp_path: Path, section: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=f"{key}.*answers of this task are open"):
        evaluate(experiment(base, official, tmp_path, evaluate=section), tmp_path, "refused")


def test_baselines_of_questions_are_measured_by_type(base: Path, official: Path, tmp_path: Path) -> None:
    for name, task in (("open", {"type": "text", "max_answer_tokens": 3}), ("closed", CLOSED)):
        wanted = experiment(base, official, tmp_path, name=name, task=task, data={"validation_fraction": 0.4})
        resolved, splits = load_data(wanted)
        done = evaluate_checkpoint(resolved, splits, checkpoint=None, folder=tmp_path / name)
        baselines = Baselines(tmp_path / name, resolved.task, splits, splits.test, done.facts["data"])
        opened = open_base(resolved.model)
        baselines.add_majority()
        baselines.add_prompt_only(baselines.question.predictor(opened), "prompt-only", "Gray images")
        baselines.add_evaluation("base", "Base", done.facts, done.folder)
        baselines.add_probes(opened)
        result = baselines.result()
        assert [row["key"] for row in result["rows"]] == ["majority", "prompt-only", "base"]
        assert "types of question" in result["rows"][0]["setting"]
        assert {entry["key"] for entry in result["left_out"]} == {"neighbors", "linear-probe"}
        majority = read_evaluation(tmp_path / name / result["rows"][0]["folder"])
        compare([majority, read_evaluation(done.folder)], num_resamples=20)
        by_type: dict[str | None, set[str]] = {}
        for kind, answer in zip(*map(majority.predictions.texts, ("question_type", "prediction")), strict=True):
            by_type.setdefault(kind, set()).add(answer)
        assert all(len(answers) == 1 for answers in by_type.values())
        assert (majority.predictions.closed is not None) == (name == "closed")


def test_questions_without_answers_give_a_results_file(base: Path, official: Path, tmp_path: Path) -> None:
    wanted = experiment(base, official, tmp_path, data={"test_split": "test"})
    folder = evaluate(wanted, tmp_path, "base")
    assert read_evaluation(folder).facts["metrics"]["accuracy"] is None
    assert len(json.loads((folder / "submission.json").read_text())) == SETS["test2015"] * NUM_QUESTIONS


def test_open_answers_refuse_options_of_labels(base: Path, official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.sampling: needs a closed set"):
        start(experiment(base, official, tmp_path, train={"sampling": "balanced"}))


def test_the_vqav2_recipe_learns_from_a_miniature(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = write_hub(tmp_path / "VQAv2", {"train2014": 40, "val2014": 6, "test2015": 2})
    overrides = [
        f"model.base={base}", f"data.source={source}", f"output_dir={tmp_path}",
        "data.train_split=train", "data.test_split=validation[-10:]",
        "data.validation_fraction=0.2", "train.batch_size=2", "train.gradient_accumulation=1", "train.max_steps=2",
        "model.dtype=float32", "model.do_image_splitting=false",
    ]  # fmt: skip
    wanted = load_experiment(Path("configs/vqav2.yaml"), overrides)
    trainer, folder = start(wanted)
    assert len({example.image_id for example in trainer.splits.train}) <= 4, "10 % of 32 images, taken whole"
    assert [example.id for example in trainer.splits.test] == [
        str(image * 1000 + place) for image in range(2000, 2006) for place in range(NUM_QUESTIONS)
    ][-10:]
    trainer.run(folder)
    assert (folder.path / "best" / "adapter_model.safetensors").is_file()
