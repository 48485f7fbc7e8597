"""`vlmtune data check`: tables or JSON on stdout, progress on stderr, exit 1 for what a person must repair."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlmtune.cli.main import main

pytestmark = pytest.mark.cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for label, color in (("oak", "green"), ("beech", "brown")):
        folder = tmp_path / "leaves" / label
        folder.mkdir(parents=True)
        for number in range(10):
            image = Image.new("RGB", (20 + number, 20), color)
            image.putpixel((number, number), (number, 0, 0))
            image.save(folder / f"{number}.png")
    file = tmp_path / "leaves.yaml"
    file.write_text(f"data: {tmp_path / 'leaves'}\n")
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_check_prints_counts_and_sizes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "data", "check", config)
    assert code == 0, err
    assert "beech" in out
    assert "20 to 29 px" in out
    assert "Reading images: 20/20" in err


def test_check_json_is_one_value_on_stdout(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "data", "check", config, "--json", "--set", "data.test_fraction=0.5")
    report = json.loads(out)
    assert code == 0
    assert report["counts"]["test"] == 10
    assert report["counts_per_label"]["oak"]["test"] == 5
    assert report["unreadable"] == []


def test_a_corrupt_image_is_reported_then_exit_1(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = config.parent / "leaves" / "oak" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    code, out, err = run(capsys, "data", "check", config, "--json")
    assert code == 1
    assert json.loads(out)["unreadable"][0]["file"] == str(bad)
    assert f"Error: 1 of 20 images cannot be read, the first is {bad}" in err
    assert "Traceback" not in err


def test_an_empty_class_folder_exits_1_with_its_name(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "leaves" / "ash").mkdir()
    code, out, err = run(capsys, "data", "check", config)
    assert (code, out) == (1, "")
    assert f"Error: {config.parent / 'leaves' / 'ash'}: this class folder has no images (it is empty)" in err


def test_an_unknown_label_exits_1_with_its_file(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "data", "check", config, "--set", "task.labels=[oak, birch]")
    assert code == 1
    assert "leaves/beech/" in err
    assert "Unknown label 'beech'" in err


def test_show_draws_what_training_reads(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = config.parent / "sheet.png"
    settings = ["--set", "train.mixup=1", "--set", "train.augment=flip-crop"]
    arguments = ["data", "show", config, "--output", sheet, "--images", 7, "--json", *settings]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    result = json.loads(out)
    assert result["file"] == str(sheet)
    assert len(result["shown"]) == 7
    for shown in result["shown"]:
        assert shown["mixed_with"] and sum(shown["answers"].values()) == pytest.approx(1)
    drawn = sheet.read_bytes()
    with Image.open(sheet) as image:
        assert image.format == "PNG" and image.width > 1000
    assert run(capsys, *arguments)[1] == out
    assert sheet.read_bytes() == drawn
    run(capsys, *arguments, "--epoch", 1)
    assert sheet.read_bytes() != drawn


def test_show_refuses_flips_that_the_labels_forbid(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (config.parent / "leaves" / "oak").rename(config.parent / "leaves" / "left")
    code, out, err = run(capsys, "data", "show", config, "--set", "train.augment=flip")
    assert (code, out) == (1, "")
    assert "train.augment: flip would mirror the images, but the label 'left' names a side" in err


def test_an_unknown_augmentation_lists_the_known_with_its_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text() + "train:\n  augment:\n    - flip\n    - randaugmet: {magnitude: 5}\n")
    code, out, err = run(capsys, "data", "show", config)
    assert (code, out) == (1, "")
    assert f"{config}:5: train.augment[1]" in err
    assert "randaugment" in err and "trivialaugment" in err
