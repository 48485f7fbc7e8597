"""Exports open in transformers and PEFT with our answers, on a hundred images, for both families."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.export_runs import write_run
from tests.tiny_paligemma import write_tiny_paligemma
from vlmtune.export.formats import choose_dtype, find_format
from vlmtune.export.gate import Bounds, held_out_prompts
from vlmtune.export.run import export
from vlmtune.export.runtime import OwnRuntime
from vlmtune.export.trained_run import TrainedRun, open_trained_run
from vlmtune.text.prompt import PromptBuilder

pytestmark = pytest.mark.parity

NUM_IMAGES = 100
# Labels' probabilities, float32 on both sides, prompts of 100 to 250 tokens.
PROBABILITY = 1e-4
MAX_NEW_TOKENS = 4


@pytest.fixture(scope="module", params=["lfm2_vl", "paligemma", "paligemma2"])
def trained_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp(request.param)
    base = "builtin:tiny"
    targets = ("attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp")
    noise = 0.05
    if request.param != "lfm2_vl":
        base = str(write_tiny_paligemma(folder / "base", 2 if request.param == "paligemma2" else 1, seed=1))
        targets, noise = tuple(target for target in targets if target != "conv"), 0.3
    return open_trained_run(write_run(folder / "run", base, targets=targets, noise=noise), NUM_IMAGES)


@pytest.mark.parametrize("name", ["merged", "peft"])
def test_an_export_gives_the_trained_models_labels_and_greedy_answers(
    trained_run: TrainedRun, name: str, tmp_path: Path
) -> None:
    form = find_format(name)
    made = export(trained_run, form, choose_dtype(form, None), tmp_path / name, bounds=Bounds(1.0))
    assert "transformers" in made.verdict.runtime
    assert (made.verdict.num_images, made.verdict.num_agree) == (NUM_IMAGES, NUM_IMAGES)
    assert made.verdict.max_probability_difference < PROBABILITY

    trained = trained_run.open()
    own, theirs = OwnRuntime(trained, "the trained model"), form.runtime(trained_run, trained, made.folder)
    prompt = PromptBuilder(trained.tokenizer, trained_run.task, trained_run.labels)
    end = trained.tokenizer.end_id
    answers = set()
    for item in held_out_prompts(trained_run, trained, prompt):
        assert item is not None
        ours = own.greedy(item, end, MAX_NEW_TOKENS)
        assert theirs.greedy(item, end, MAX_NEW_TOKENS) == ours
        answers.add(tuple(ours))
    assert len(answers) > 1  # a model that says the same of every image would show nothing


def test_a_bfloat16_merge_is_rounded_once(trained_run: TrainedRun, tmp_path: Path) -> None:
    form = find_format("merged")
    few = dataclasses.replace(trained_run, held_out=trained_run.held_out[:3])
    made = export(few, form, "bfloat16", tmp_path / "merged", bounds=Bounds(0.0, 1.0))
    stored = load_file(made.folder / "model.safetensors")
    merged = trained_run.open(dtype="float32")
    for name, parameter in merged.model.named_parameters():
        assert torch.equal(stored[name], parameter.to(torch.bfloat16)), name
