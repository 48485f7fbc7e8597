"""A report needs nothing but its folder, says what the figures say, and shows a section wherever it has figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic_runs import demo, random_table, table_of, write_evaluation, write_questions, write_run
from vlmtune.errors import DataError, RunFolderError
from vlmtune.report import numbers as w
from vlmtune.report.render import build, render, render_comparison
from vlmtune.report.sources import gather, read_evaluations, read_run

pytestmark = pytest.mark.unit


def sections_of(page: Path) -> dict:
    return json.loads(page.with_suffix(".json").read_text())["sections"]


def test_run_becomes_page_markdown_json_and_charts(run: Path) -> None:
    names = ["accuracy", "confusion", "loss", "reliability", "risk", "validation"]
    assert sorted(path.name for path in (run / "charts").iterdir()) == [f"{name}.svg" for name in names]
    accuracy = read_evaluations(run)[0][-1].figures["accuracy"]
    assert w.percent(accuracy) in (run / "report.html").read_text()
    assert w.percent(accuracy) in (run / "report.md").read_text()
    measured = sections_of(run / "report.html")["accuracy"]
    assert measured["figures"]["runs"][-1]["metrics"]["accuracy"] == accuracy
    assert measured["parts"]["pairs"]["figures"][0]["first"] == "base"


def test_rendering_loads_no_torch(run: Path) -> None:
    code = (
        f"import sys; from vlmtune.report.render import render; render({str(run)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_page_shows_warnings_and_unreadable_images(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "train/0012.png" in page
    assert "2 images could not be read and count as wrong." in page
    assert "truncated file" in page
    assert "LoRA on 20 layers" not in page  # a finding that is no warning


def test_run_without_evaluation_still_has_its_curves(tmp_path: Path) -> None:
    page = render(write_run(tmp_path / "young", "young"))
    assert "no evaluation yet" in page.read_text()
    assert list(sections_of(page)) == ["training", "experiment"]


def test_evaluations_of_other_images_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    write_evaluation(folder / "evaluation" / "test-all", "all", random_table(num=60, seed=1))
    write_evaluation(folder / "evaluation" / "test-other", "other", random_table(num=60, data_seed=5, seed=2))
    evaluations, left_out = read_evaluations(folder)
    assert len(evaluations) == len(left_out) == 1
    assert left_out[0] in render(folder).read_text()
    with pytest.raises(DataError, match="different questions or true answers"):
        render(folder, baseline=folder / "evaluation" / left_out[0])


def test_equal_names_are_replaced_by_folders(tmp_path: Path) -> None:
    folders = []
    for seed, name in enumerate(("tuned_10", "tuned_100")):
        folders.append(tmp_path / name / "evaluation" / "test-fine-tuned")
        write_evaluation(folders[-1], "fine-tuned", random_table(num=60, seed=seed))
    assert "tuned_10 → tuned_100" in render_comparison(folders, tmp_path / "report.html", "Demo").read_text()


def test_comparison_of_three_names_every_pair(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name, num_steps=20) for name in ("tuned_10", "tuned_100")]
    page = render_comparison(demo(tmp_path, num=100), tmp_path / "out", "Demo", runs=runs)
    assert page == tmp_path / "out" / "report.html"
    text = page.read_text()
    for pair in ("baseline → tuned_10", "baseline → tuned_100", "tuned_10 → tuned_100"):
        assert pair in text


def test_damaged_run_is_named_by_file_and_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "train", "st')
    assert len(read_run(folder).train) == 20  # an unfinished last line is passed over
    path.write_text('{"kind": \n' + whole)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:1"):
        render(folder)


def test_diverged_run_gives_valid_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 21, "accuracy": 0.1, "loss": NaN}\n')
    text = render(folder).with_suffix(".json").read_text()
    sections = json.loads(text, parse_constant=pytest.fail)["sections"]
    assert sections["training"]["figures"]["validation"]["r"][-1]["loss"] is None


def test_open_questions_have_types_and_no_classes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "q", "q", num_steps=20)
    for seed, (name, skill) in enumerate((("base", 0.1), ("fine-tuned", 0.7))):
        write_questions(folder / "evaluation" / f"test-{name}", name, skill, seed=seed)
    page = render(folder)
    assert list(sections_of(page)) == ["accuracy", "training", "types", "images", "experiment"]
    text = page.read_text()
    assert "official VQA accuracy" in text and "120 test questions about 40 images" in text
    assert "Most frequent mistakes among those stored" in text


def test_unknown_answers_are_not_measured(tmp_path: Path) -> None:
    folder = write_questions(tmp_path / "e", "tuned", is_known=False)
    page = render_comparison([folder], tmp_path / "out", "T")
    assert "submission.json" in page.read_text()
    assert not (tmp_path / "out" / "charts").exists()


@pytest.mark.parametrize(("kind", "labels"), [("score", ("bad", "fair", "good")), ("bool", ("no", "yes"))])
def test_closed_kinds_share_the_sections_of_labels(tmp_path: Path, kind: str, labels: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, len(labels), 60), rng.integers(0, len(labels), 60)
    table = table_of(truth, guess, labels, kind, seconds=np.full(60, 0.1))
    write_evaluation(tmp_path / "e", "tuned", table)
    page = render_comparison([tmp_path / "e"], tmp_path / "out", "T")
    classes = sections_of(page)["classes"]["parts"]
    assert list(classes) == ["per-class", "confusion", "confusions"]
    assert ("levels on average (quadratic-weighted kappa" in page.read_text()) == (kind == "score")


def test_hints_name_the_commands_that_measure_more(run: Path) -> None:
    commands = [command for _, command in build(gather("t", read_evaluations(run)[0], [read_run(run)])).hints]
    assert [command.split()[1] for command in commands] == ["baselines", "checkpoints", "evaluate"]
