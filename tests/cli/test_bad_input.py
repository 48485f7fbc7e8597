"""Every kind of bad input: exit 1, one message that names file, line or key and what to do, nothing written over."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images import write_class_folders
from tests.tiny_model import write_tiny_folder
from vlmtune.cli.main import main

pytestmark = pytest.mark.cli

Fail = Callable[..., str]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "images", 4)


@pytest.fixture
def fail(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Run a command that must fail with exit 1; returns its message. Text given as YAML is written to x.yaml."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, yaml: str, *more: str) -> str:
        (tmp_path / "x.yaml").write_text(yaml)
        with pytest.raises(SystemExit) as stop:
            main([command, "x.yaml", *more])
        assert stop.value.code == 1
        message = capsys.readouterr().err
        assert "Error: " in message
        assert "Traceback" not in message
        return message.partition("Error: ")[2]

    return run


def experiment(base: Path, images: Path, more: str = "") -> str:
    return f"data: {images}\nmodel:\n  base: {base}\n{more}"


def test_an_empty_class_folder_is_named(fail: Fail, base: Path, images: Path) -> None:
    (images / "train" / "zilch").mkdir()
    assert "zilch" in fail("train", experiment(base, images))


def test_a_label_outside_the_given_set_is_named(fail: Fail, base: Path, images: Path) -> None:
    message = fail("train", experiment(base, images, "task:\n  labels: [wug, dax]\n"))
    assert "blick" in message
    assert "wug" in message


def test_a_missing_column_lists_those_there_are(fail: Fail, base: Path, images: Path, tmp_path: Path) -> None:
    image = next((images / "train" / "wug").iterdir())
    (tmp_path / "t.csv").write_text(f"image,kind\n{image},wug\n")
    yaml = f"data:\n  source: t.csv\n  label_column: label\nmodel:\n  base: {base}\n"
    message = fail("train", yaml)
    assert "label" in message
    assert "kind" in message
    assert "t.csv" in message


def test_a_missing_image_is_named_with_its_line(fail: Fail, base: Path, images: Path, tmp_path: Path) -> None:
    image = next((images / "train" / "wug").iterdir())
    (tmp_path / "t.csv").write_text(f"image,label\n{image},wug\nnowhere.png,dax\n")
    message = fail("train", f"data: t.csv\nmodel:\n  base: {base}\n")
    assert "nowhere.png" in message
    assert "3" in message


def test_an_unknown_key_suggests_the_nearest(fail: Fail, base: Path, images: Path) -> None:
    message = fail("train", experiment(base, images, "train:\n  learning_rat: 1e-3\n"))
    assert "x.yaml:5" in message
    assert "learning_rate" in message


def test_yes_and_no_are_labels_without_quotes(fail: Fail, base: Path, images: Path) -> None:
    message = fail("train", experiment(base, images, "task:\n  labels: [yes, no]\n"))
    assert "Known: no, yes" in message


def test_a_rate_in_exponent_form_is_a_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("train:\n  learning_rate: 5e-4\n")
    main_without_exit(["config", "show", str(tmp_path / "x.yaml"), "--as-written", "--json"])
    assert json.loads(capsys.readouterr().out)["train"]["learning_rate"] == 5e-4


def main_without_exit(arguments: list[str]) -> None:
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code in (0, None)


def test_a_truncated_weights_file_is_named(fail: Fail, base: Path, images: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(base, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = fail("train", experiment(damaged, images))
    assert "model.safetensors" in message
    # Nothing of the failed run is left that would stand in the way of the next try.
    assert "model.safetensors" in fail("train", experiment(damaged, images))


def test_a_lora_pattern_that_matches_nothing_lists_the_layers(fail: Fail, base: Path, images: Path) -> None:
    message = fail("train", experiment(base, images, "adapter:\n  targets: [q_proj, gate_proj]\n"))
    assert "gate_proj" in message
    assert "w1" in message


def test_a_run_that_exists_is_not_written_over(fail: Fail, base: Path, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: x\n")
    message = fail("train", experiment(base, images))
    assert "--resume" in message
    assert "name" in message
    assert (run / "config.yaml").read_text() == "name: x\n"


def test_resuming_a_run_that_is_not_there_is_an_error(fail: Fail, base: Path, images: Path) -> None:
    assert "no run to resume" in fail("train", experiment(base, images), "--resume")


def test_a_place_that_cannot_be_written_is_named(fail: Fail, base: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = fail("train", experiment(base, images, "output_dir: file/inside\n"))
    assert "file/inside" in message
    assert "output_dir" in message


def test_a_full_disk_is_one_message(fail: Fail, base: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def write_text(path: Path, *arguments: object, **options: object) -> int:
        if path.name == ".preflight.json.tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", write_text)
    message = fail("train", experiment(base, images))
    assert "No space left on device" in message
    assert "Free some space or choose another folder" in message


def test_a_corrupt_image_counts_as_wrong_and_is_listed(
    base: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (images / "test" / "dax" / "000.png").write_bytes(b"not an image")
    (tmp_path / "x.yaml").write_text(experiment(base, images))
    main_without_exit(["evaluate", "x.yaml", "--checkpoint", "base", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["metrics"]["num_examples"] == 12
    assert facts["metrics"]["num_unreadable"] == 1
    import pyarrow.parquet as pq

    table = pq.read_table(Path(facts["folder"]) / "predictions.parquet").to_pylist()
    (row,) = [row for row in table if row["error"]]
    assert row["id"].endswith("dax/000.png")
    assert row["prediction"] is None


def test_a_corrupt_training_image_stops_the_run_before_it_begins(
    fail: Fail, base: Path, images: Path, tmp_path: Path
) -> None:
    damaged = images / "train" / "dax" / "001.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    message = fail("train", experiment(base, images))
    assert "dax/001.png" in message
    assert "Replace or remove" in message
    assert not (tmp_path / "runs" / "x" / "config.yaml").exists()


def test_predict_prints_probabilities_that_sum_to_one(
    base: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(next((images / "test" / "wug").iterdir()))
    main_without_exit(["predict", str(base), image, "--labels", "wug,blick,dax", "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    assert set(result["probabilities"]) == {"wug", "blick", "dax"}
    assert sum(result["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)


def test_predict_names_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str], base: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(base), "nowhere.png", "--labels", "a,b"])
    assert stop.value.code == 1
    assert "nowhere.png" in capsys.readouterr().err


def test_predict_answers_a_question(base: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next((images / "test" / "wug").iterdir()))
    main_without_exit(["predict", str(base), image, "--question", "What is this?", "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    assert isinstance(result["answer"], str)
