"""`vlmtune export` and `vlmtune push`: exit codes, messages, and what stands where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.export_runs import write_run
from vlmtune.cli.main import main
from vlmtune.export import transformers_runtime

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(autouse=True)
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of imports; the gate then opens the export with vlmtune."""
    monkeypatch.setattr(transformers_runtime, "is_installed", lambda with_peft: False)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return int(stop.value.code or 0)


def test_an_accepted_export_can_be_pushed_dry(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", run, "--format", "peft", "--images", 4) == 0
    out = capsys.readouterr().out
    assert "4 of 4 (100.00 %)" in out and "largest probability difference" in out
    folder = run / "export" / "peft"
    assert f"written to {folder}" in out.replace("\n", "")
    assert call("push", folder, "--repo", "owner/name", "--dry-run") == 0
    out = capsys.readouterr().out
    for name in ("README.md", "adapter_config.json", "adapter_model.safetensors", "vlmtune.json"):
        assert name in out
    assert "would go to owner/name (private" in out
    assert call("push", folder) == 1
    assert "Say where to push: --repo OWNER/NAME" in capsys.readouterr().err


def test_a_refused_export_exits_1_with_both_figures(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Four bits change some of eight probabilities, and agreement of all of them is asked for: with a base moved as far
    # as this one's, one label at least tips over.
    noisy = write_run(tmp_path / "noisy", noise=0.12)
    code = call("export", noisy, "--format", "gguf", "--dtype", "Q4_0", "--agreement", 1, "--images", 60, "--json")
    captured = capsys.readouterr()
    assert code == 1
    result = json.loads(captured.out)
    assert result["accepted"] is False and result["num_agree"] < result["num_images"] == 60
    assert "The export gate refuses this export" in captured.err and "largest probability difference" in captured.err
    folder = noisy / "export" / "gguf-Q4_0.rejected"
    assert (folder / "REJECTED").is_file() and result["folder"] == str(folder)
    assert call("push", folder, "--repo", "owner/name") == 1
    assert "the export gate refused this export" in capsys.readouterr().err


def test_an_exported_model_predicts_with_its_labels(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmtune.export.trained_run import open_trained_run

    image = tmp_path / "digit.png"
    image.write_bytes(open_trained_run(run, 1).held_out[0].image.read())
    assert call("export", run, "--format", "merged", "--images", 2, "--output", tmp_path / "merged") == 0
    capsys.readouterr()
    found = []
    for model in (run, tmp_path / "merged"):
        assert call("predict", model, image, "--json") == 0
        found.append(json.loads(capsys.readouterr().out)[0])
    assert found[0]["label"] == found[1]["label"]
    assert set(found[0]["probabilities"]) == set("0123456789")
    assert found[0]["probabilities"] == pytest.approx(found[1]["probabilities"], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "ggml"), "Unknown export format 'ggml'. Known: gguf, merged, peft"),
        (("--format", "merged", "--dtype", "float8"), "Unknown --dtype 'float8'"),
        (("--format", "peft", "--set", "data.source=/no/such/folder"), "/no/such/folder"),
    ],
)
def test_wrong_options_are_answered_in_one_message(
    run: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("export", run, *arguments) == 1
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("export", tmp_path, "--format", "peft") == 1
    assert "not a run folder or a checkpoint of one" in capsys.readouterr().err
    assert call("push", tmp_path, "--repo", "owner/name") == 1
    assert "not an exported folder" in capsys.readouterr().err
