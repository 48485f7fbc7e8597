"""Pretraining: its prompts are the real ones, its tree computes what plain prompts do, resuming changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tiny.config import Pretraining
from tiny.drawn import KINDS, draw
from tiny.lessons import branch, head, lessons
from tiny.model import LessonRunner, to_patches
from tiny.pretrain import PretrainReport, main, pretrain
from vlmtune.config.load import load_section
from vlmtune.config.schema import TaskSection
from vlmtune.errors import ConfigError, RunFolderError
from vlmtune.models.registry import open_model
from vlmtune.models.tree import Level
from vlmtune.records import LabelSet
from vlmtune.text import defaults
from vlmtune.text.prompt import PromptBuilder

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def small(output: Path, name: str = "run") -> Pretraining:
    return Pretraining.model_validate(
        {
            "name": name,
            "output_dir": str(output),
            "model": {
                "vocabulary": 400,
                "projector_hidden_size": 16,
                "tower": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16},
                "decoder": {
                    "hidden_size": 16,
                    "layers": "ca",
                    "num_heads": 2,
                    "num_key_value_heads": 1,
                    "intermediate_size": 16,
                },
            },
            "images": {"num": 100, "num_validation": 10, "mixture": {"digit": 1, "shapes": 1}},
            "tower": {"steps": 4, "batch_size": 8},
            "whole": {"steps": 4, "batch_size": 4, "num_questions": 2},
            "save_every": 3,
            "evaluate_every": 2,
        }
    )


@pytest.fixture(scope="module")
def tiny() -> object:
    return open_model("builtin:tiny")


def test_the_built_in_model_is_small_enough_to_ship(tiny) -> None:  # type: ignore[no-untyped-def]
    size = sum(path.stat().st_size for path in tiny.folder.iterdir())
    assert size <= 12_000_000
    assert 2_500_000 < sum(p.numel() for p in tiny.model.parameters()) < 5_000_000


def test_classification_is_learned_with_the_default_prompt(tiny) -> None:  # type: ignore[no-untyped-def]
    labels = ("0", "1", "2")
    image = tiny.processor.process(draw("digit", 0)[0])
    system = defaults.fill_labels(defaults.CLASSIFY_SYSTEM_PROMPT, labels)
    learned = head(system) + "<image>" * 16 + branch(defaults.CLASSIFY_USER_PROMPT)
    builder = PromptBuilder(tiny.tokenizer, TaskSection(), LabelSet(labels, tuple((label,) for label in labels)))
    assert builder.build(None, image.text).ids == tiny.tokenizer.encode(learned)


def test_questions_are_learned_with_the_default_prompt(tiny) -> None:  # type: ignore[no-untyped-def]
    image = tiny.processor.process(draw("digit", 0)[0])
    learned = head(defaults.VQA_SYSTEM_PROMPT) + "<image>" * 16 + branch("What color is it?")
    builder = PromptBuilder(tiny.tokenizer, TaskSection(type="text"), None)
    assert builder.build("What color is it?", image.text).ids == tiny.tokenizer.encode(learned)


def test_patches_are_those_of_the_image_processor(tiny) -> None:  # type: ignore[no-untyped-def]
    image, _ = draw("thing", 1)
    patches, grid = tiny.processor.process(image).tiles[0]
    assert grid == (8, 8)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(1, 32, 32, 3)
    torch.testing.assert_close(to_patches(pixels, 4)[0], patches)


def test_any_image_becomes_about_16_tokens(tiny) -> None:  # type: ignore[no-untyped-def]
    for size in ((32, 32), (500, 500), (640, 200), (9, 9)):
        assert 8 <= tiny.processor.process(Image.new("RGB", size)).num_tokens <= 16


def test_lessons_in_one_tree_equal_plain_prompts(tiny) -> None:  # type: ignore[no-untyped-def]
    runner = LessonRunner(tiny.model, tiny.tokenizer)
    facts = [draw(kind, seed)[1] for kind, seed in (("digit", 0), ("thing", 1), ("digit", 2))]
    numbered = [(i, lesson) for i, fact in enumerate(facts) for lesson in lessons(fact, i, 3)]
    tokens = torch.randn(3, 16, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, targets, weights, counts = runner.run(tokens, numbered)
        first = 0
        branches = [(image, lesson, i) for image, lesson in numbered for i in range(len(lesson.branches))]
        assert len(branches) == len(counts) and len(targets) == len(weights) == sum(counts)
        for (image, lesson, i), count in zip(branches, counts, strict=True):
            prompt, answer, _ = lesson.branches[i]
            ids = tiny.tokenizer.encode(lesson.head + "<image>" * 16 + prompt + answer)
            embeddings = tiny.model.embed(torch.tensor(ids), [tokens[image]])
            plain = tiny.model.logits(tiny.model.decode(embeddings, [Level.chains([len(ids)], read_last=count)]).hidden)
            torch.testing.assert_close(logits[first : first + count], plain, atol=1e-4, rtol=1e-4)
            assert tiny.tokenizer.decode(targets[first : first + count].tolist()) == answer + "<|im_end|>"
            first += count


class InterruptedHereError(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = pretrain(small(tmp_path, "whole"))

    def stop_late(report: PretrainReport) -> None:
        if report.stage == "whole" and report.step == 8:
            raise InterruptedHereError

    with pytest.raises(InterruptedHereError):
        pretrain(small(tmp_path, "cut"), on_report=stop_late)
    assert (tmp_path / "cut" / "checkpoints" / "step-000006").is_dir()
    with pytest.raises(RunFolderError, match=r"seed: \d+ in the run, 9 now"):
        pretrain(small(tmp_path, "cut").model_copy(update={"seed": 9}), resume=True)
    resumed = pretrain(small(tmp_path, "cut"), resume=True)
    expected, weights = load_file(whole / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert expected.keys() == weights.keys()
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [6, 8]
    opened = open_model(str(resumed))
    assert opened.tokenizer.encode("circle")


def test_an_existing_run_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="--resume"):
        pretrain(small(tmp_path))
    with pytest.raises(RunFolderError, match="no run to resume"):
        pretrain(small(tmp_path, "other"), resume=True)


def test_the_file_is_valid_and_unknown_keys_are_named(tmp_path: Path) -> None:
    config = load_section(ROOT / "tiny" / "tiny.yaml", Pretraining)
    assert config.whole.steps > 0 and set(config.images.mixture) <= set(KINDS)
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("whole:\n  step: 5\n")
    with pytest.raises(ConfigError, match="steps"):
        load_section(wrong, Pretraining)


def test_the_command_pretrains_and_names_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small(tmp_path).model_dump(mode="json")))
    assert main([str(file), "--set", "name=command", "--set", "tower.steps=2"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == tmp_path / "command" / "model" and (folder / "model.safetensors").is_file()
    assert main([str(file), "--set", "name=command"]) == 1
    assert "Error: " in capsys.readouterr().err
