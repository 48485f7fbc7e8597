"""The export gate, what an export leaves behind, its card, and how it opens again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from tests.export_runs import write_evaluation_facts, write_run
from vlmtune.errors import DataError, RunFolderError, UserError
from vlmtune.export import transformers_runtime
from vlmtune.export.formats import Merged, choose_dtype, find_format
from vlmtune.export.gate import Bounds, Verdict, judge
from vlmtune.export.run import REJECTED_FILE, export
from vlmtune.export.runtime import GateItem, OwnRuntime, Runtime
from vlmtune.export.trained_run import TrainedRun, open_trained_run
from vlmtune.inference.open import open_predictor
from vlmtune.inference.predictor import Query
from vlmtune.records import ImageSource, LabelScores
from vlmtune.runs.manifest import MANIFEST_FILE, read_manifest
from vlmtune.runs.open import AdaptedModel

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    run = write_run(tmp_path_factory.mktemp("runs") / "digits")
    write_evaluation_facts(run, 0.9806)
    return open_trained_run(run, 8)


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of imports each; `tests/parity/test_export.py` has them."""
    monkeypatch.setattr(transformers_runtime, "is_installed", lambda with_peft: False)


class Skewed:
    """A runtime that doubts one label: what a faulty export looks like."""

    name = "skewed"
    notes: Sequence[str] = ("scores were bent by the test",)

    def __init__(self, runtime: Runtime, answer: int, by: float) -> None:
        self._runtime, self._answer, self._by = runtime, answer, by

    def score(self, asked: GateItem, answers: Sequence[Sequence[int]]) -> list[float]:
        scores = self._runtime.score(asked, answers)
        return [score - self._by * (i == self._answer) for i, score in enumerate(scores)]

    def greedy(self, asked: GateItem, end: int, max_new_tokens: int) -> list[int]:
        return [*self._runtime.greedy(asked, end, max_new_tokens), self._answer]

    def close(self) -> None:
        pass


class SkewedFormat(Merged):
    """Merged, and broken on the way."""

    def runtime(self, trained_run: TrainedRun, trained: AdaptedModel, folder: Path) -> Runtime:
        return Skewed(super().runtime(trained_run, trained, folder), answer=3, by=50.0)


def test_the_gate_counts_labels_and_finds_the_largest_difference(trained_run: TrainedRun) -> None:
    trained = trained_run.open()
    own = OwnRuntime(trained, "the trained model")
    fair = judge(trained_run, own, own, trained, Bounds(1.0))
    assert (fair.num_agree, fair.max_probability_difference, fair.is_accepted) == (8, 0.0, True)
    assert trained_run.labels is not None
    answer = next(i for i, label in enumerate(trained_run.labels.stored) if label == _label_of_first(trained_run))
    bent = judge(trained_run, own, Skewed(own, answer, 50.0), trained, Bounds(0.5, difference=1.0))
    assert bent.num_agree < 8
    assert bent.max_probability_difference > 0.2
    assert bent.differences[0].trained == trained_run.labels.stored[answer] != bent.differences[0].exported
    assert bent.is_accepted == (bent.num_agree >= 4)


def test_chance_agreement_is_refused_by_probabilities() -> None:
    facts = {"runtime": "r", "judged": "labels", "num_images": 30, "num_unreadable": 0, "num_agree": 30}
    near, far = (
        Verdict(**facts, max_probability_difference=d, bounds=Bounds(), differences=(), notes=())  # type: ignore[arg-type]
        for d in (0.15, 0.49)
    )
    assert near.is_accepted and not far.is_accepted


def _label_of_first(trained_run: TrainedRun) -> str:
    predictor = open_predictor(str(trained_run.checkpoint))
    (scores,) = predictor.classify([Query(trained_run.held_out[0].image)])
    assert isinstance(scores, LabelScores)
    return scores.prediction


def test_open_answers_are_compared_word_by_word(trained_run: TrainedRun) -> None:
    asking = dataclasses.replace(
        trained_run,
        labels=None,
        task=trained_run.task.model_copy(update={"list_labels": "never"}),
        held_out=trained_run.held_out[:3],
    )
    trained = trained_run.open()
    own = OwnRuntime(trained, "the trained model")
    assert judge(asking, own, own, trained, Bounds(1.0)).num_agree == 3
    verdict = judge(asking, own, Skewed(own, answer=40, by=0.0), trained, Bounds(1.0))
    assert (verdict.judged, verdict.num_agree, verdict.is_accepted) == ("answers", 0, False)


def test_unreadable_images_are_counted_and_not_judged(trained_run: TrainedRun) -> None:
    broken = dataclasses.replace(trained_run.held_out[0], image=ImageSource(data=b"no image", name="broken"))
    trained = trained_run.open()
    own = OwnRuntime(trained, "the trained model")
    half = dataclasses.replace(trained_run, held_out=[broken, trained_run.held_out[1]])
    verdict = judge(half, own, own, trained, Bounds(1.0))
    assert (verdict.num_images, verdict.num_unreadable) == (1, 1)
    with pytest.raises(DataError, match="None of the 1 held-out images"):
        judge(dataclasses.replace(trained_run, held_out=[broken]), own, own, trained, Bounds(1.0))


def test_a_merged_export_opens_with_task_and_labels(trained_run: TrainedRun, tmp_path: Path) -> None:
    made = export(trained_run, find_format("merged"), "as trained", tmp_path / "merged", Bounds(1.0))
    assert made.verdict.is_accepted and "not installed" in " ".join(made.verdict.notes)
    predictor = open_predictor(str(made.folder))
    assert predictor.labels == trained_run.labels
    queries = [Query(example.image) for example in trained_run.held_out]
    theirs = list(open_predictor(str(trained_run.folder)).classify(queries))
    for ours, trained in zip(predictor.classify(queries), theirs, strict=True):
        assert isinstance(ours, LabelScores) and isinstance(trained, LabelScores)
        assert ours.prediction == trained.prediction
        assert ours.log_probs == pytest.approx(trained.log_probs, abs=1e-4)


def test_an_exported_adapter_opens_with_the_runs_image_settings(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", model={"max_image_tokens": 4, "min_image_tokens": 4})
    made = export(open_trained_run(run, 2), find_format("peft"), "as trained", tmp_path / "peft", Bounds(1.0))
    predictor = open_predictor(str(made.folder))
    assert predictor.opened.processor.process(open_trained_run(run, 1).held_out[0].image.open()).num_tokens == 4


@pytest.mark.parametrize("name", ["merged", "gguf"])
def test_a_connector_of_our_own_is_for_peft_alone(name: str, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "dense", targets=("mlp",), parts=("connector",), model={"connector": {"kind": "dense"}}, noise=0.1
    )
    trained_run = open_trained_run(run, 3)
    form = find_format(name)
    with pytest.raises(UserError, match=r"dense connector DCI.*--format peft holds it"):
        export(trained_run, form, choose_dtype(form, None), tmp_path / name, Bounds(1.0))
    assert not (tmp_path / name).exists()
    made = export(trained_run, find_format("peft"), "as trained", tmp_path / "peft", Bounds(1.0))
    assert made.verdict.num_agree == 3 and made.verdict.max_probability_difference == 0.0
    assert "no code for this model's connector" in made.verdict.notes[0]


def test_label_with_one_name_spelled_twice_exports(trained_run: TrainedRun, tmp_path: Path) -> None:
    assert trained_run.labels is not None
    label = trained_run.labels.stored[0]
    names = f"task.label_names={{'{label}': ['{label}', '{label} ']}}"
    spelled_twice = open_trained_run(trained_run.folder, 3, [names])
    made = export(spelled_twice, find_format("merged"), "as trained", tmp_path / "merged", Bounds(1.0))
    assert made.verdict.is_accepted and made.verdict.num_images == 3


def test_what_the_gate_refuses_is_renamed_and_marked(trained_run: TrainedRun, tmp_path: Path) -> None:
    made = export(trained_run, SkewedFormat(), "as trained", tmp_path / "merged", Bounds(0.995))
    assert not made.verdict.is_accepted
    assert made.folder == tmp_path / "merged.rejected" and not (tmp_path / "merged").exists()
    assert (made.folder / REJECTED_FILE).is_file()
    manifest = read_manifest(made.folder)
    assert manifest is not None and manifest.gate["accepted"] is False
    assert "REJECTED" in (made.folder / "README.md").read_text()
    again = export(trained_run, SkewedFormat(), "as trained", tmp_path / "merged", Bounds(0.995))
    assert again.folder == made.folder
    assert [path.name for path in tmp_path.iterdir()] == ["merged.rejected"]  # no half-made folder stays


def test_a_taken_folder_is_not_written_over(trained_run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"exists\. Choose another folder"):
        export(trained_run, find_format("peft"), "as trained", tmp_path / "out", Bounds(1.0))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_the_card_is_readable_by_the_hub(trained_run: TrainedRun, tmp_path: Path) -> None:
    made = export(trained_run, find_format("peft"), "as trained", tmp_path / "peft", Bounds(0.9))
    card = ModelCard.load(made.folder / "README.md")
    results = {result.metric_type: result for result in card.data.eval_results or []}
    assert results["accuracy"].metric_value == 0.9806
    assert (results["accuracy"].dataset_split, results["accuracy"].task_type) == ("test", "image-classification")
    assert card.data.library_name == "peft" and card.data.base_model is None  # builtin:tiny is not on the hub
    assert "8 of 8 (100.00 %)" in card.text and "0.9606 to 1.0006" in card.text
    assert "<image>What does the picture show?" in card.text
    assert str(tmp_path) not in (made.folder / "README.md").read_text()


def test_the_manifest_lists_what_the_gate_judged(trained_run: TrainedRun, tmp_path: Path) -> None:
    made = export(trained_run, find_format("peft"), "as trained", tmp_path / "peft", Bounds(1.0))
    manifest = read_manifest(made.folder)
    assert manifest is not None
    assert sorted(manifest.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert manifest.gate["num_agree"] == 8 and manifest.origin["checkpoint"] == "step-000001"
    (made.folder / MANIFEST_FILE).write_text(json.dumps({"format": "peft"}))
    with pytest.raises(RunFolderError, match="not a readable export manifest"):
        read_manifest(made.folder)


def test_formats_and_types_are_named_when_they_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Unknown export format 'ggml'.*Known: gguf, merged, peft"):
        find_format("ggml")
    with pytest.raises(UserError, match=r"Unknown --dtype 'Q2_K'.*Q8_0"):
        choose_dtype(find_format("gguf"), "Q2_K")
    assert choose_dtype(find_format("gguf"), "q8_0") == "Q8_0"
    with pytest.raises(RunFolderError, match="not a run folder"):
        open_trained_run(tmp_path, 1)


def test_a_merge_in_bfloat16_is_stored_so(trained_run: TrainedRun, tmp_path: Path) -> None:
    made = export(trained_run, find_format("merged"), "bfloat16", tmp_path / "merged", Bounds(0.0))
    stored = open_predictor(str(made.folder)).opened.config["dtype"]
    assert stored == "bfloat16"
    assert torch.finfo(torch.bfloat16).eps > made.verdict.max_probability_difference / 10 > 0
