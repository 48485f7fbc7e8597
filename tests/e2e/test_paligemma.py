"""PaliGemma 1 and 2 through the commands: preflight, train with LoRA and whole parts, evaluate, predict, ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.images import COLORS, write_class_folders
from tests.tiny_paligemma import write_tiny_paligemma
from vlmtune.cli.main import main

pytestmark = pytest.mark.e2e


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Stdout of a command that must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stop.value.code in (0, None), captured.err
    return captured.out


@pytest.mark.parametrize("generation", [1, 2])
def test_a_folder_is_trained_evaluated_and_asked(
    generation: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_tiny_paligemma(tmp_path / "base", 1 if generation == 1 else 2)
    images = write_class_folders(tmp_path / "images", 10)
    Path("x.yaml").write_text(
        f"model: {base}\ndata: {images}\n"
        # From random weights, what stands around the decoder must learn too.
        "adapter: {targets: [attention, mlp, conv], parts: [connector, embeddings], rank: 16}\n"
        "train: {batch_size: 9, max_steps: 40, learning_rate: 1e-2, eval_every: 20}\n"
    )
    checks = json.loads(run(capsys, "preflight", "x.yaml", "--json"))
    told = "\n".join(finding["message"] for finding in checks["findings"])
    assert "adapter.targets 'conv' trains nothing, since this family has no such layers" in told
    assert "<eos>" in told and "16 tokens per image" in told

    result = json.loads(run(capsys, "train", "x.yaml", "--json"))
    assert result["test_accuracy"] >= 0.9 > 0.7 > result["base_accuracy"]
    assert Path(result["report"]).is_file()
    assert (Path(result["run"]) / "best" / "adapter_config.json").is_file()

    paths = [str(images / "test" / name / "000.png") for name in COLORS]
    found = json.loads(run(capsys, "predict", result["run"], *paths, "--json"))
    assert [entry["label"] for entry in found] == list(COLORS)
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1.0)
    (answer,) = json.loads(run(capsys, "predict", str(base), paths[0], "--question", "what color?", "--json"))
    assert isinstance(answer["answer"], str)

    full, argmax = (
        json.loads(run(capsys, "evaluate", "x.yaml", "--set", f"evaluate.mode={mode}", "--json", "--checkpoint",
                       f"{result['run']}/best"))
        for mode in ("full", "argmax")
    )  # fmt: skip
    assert full["metrics"]["accuracy"] == argmax["metrics"]["accuracy"] == result["test_accuracy"]
