"""A report says what the figures say, whatever the labels are called, and needs nothing but its folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.synthetic_runs import demo, in_memory, random_table, table_of, write_evaluation, write_run
from vlmtune.errors import DataError, RunFolderError
from vlmtune.evaluate.calibration import calibrate
from vlmtune.evaluate.compare import compare
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.table import PredictionTable
from vlmtune.report import charts, svg
from vlmtune.report import numbers as wording
from vlmtune.report.page import to_html
from vlmtune.report.render import render, render_comparison
from vlmtune.report.sources import evaluation_folder, read_evaluations, read_run
from vlmtune.report.view import build, drawings

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "digits", "digits")
    for seed, (name, skill) in enumerate((("base", 1.5), ("fine-tuned", 5.0))):
        table = random_table(num=120, skill=skill, seed=seed, num_unreadable=2)
        write_evaluation(folder / "evaluation" / f"test-{name}", name, table)
    render(folder)
    return folder


def test_a_run_becomes_a_page_markdown_json_and_png_charts(run: Path) -> None:
    names = ["accuracy.png", "confusion.png", "reliability.png", "training.png"]
    assert sorted(p.name for p in (run / "charts").iterdir()) == names
    assert all((run / "charts" / name).read_bytes().startswith(b"\x89PNG") for name in names)
    accuracy = read_evaluations(run)[0][-1].facts["metrics"]["accuracy"]
    assert wording.percent(accuracy) in (run / "report.html").read_text()
    assert wording.percent(accuracy) in (run / "report.md").read_text()
    figures = json.loads((run / "report.json").read_text())
    assert figures["runs"][-1]["metrics"]["accuracy"] == accuracy
    assert figures["comparison"]["pairs"][0]["first"] == "base"


def test_the_page_is_one_file_that_asks_for_nothing_outside(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page and "url(" not in page
    assert "default-src 'none'" in page


def test_the_page_tells_warnings_and_unreadable_images(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "train/0012.png" in page
    assert "2 images could not be read and count as wrong." in page
    assert "truncated file" in page
    assert "LoRA on 20 layers" not in page  # a finding that is no warning


def test_rendering_loads_no_torch(run: Path) -> None:
    code = (
        f"import sys; from vlmtune.report.render import render; render({str(run)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def relabeled(table: PredictionTable, labels: tuple[str, ...], sharpness: float = 1) -> PredictionTable:
    closed = table.closed
    assert closed is not None
    sharp = closed.log_probs * sharpness
    sharp -= np.log(np.exp(sharp).sum(axis=1, keepdims=True))
    return table_of(closed.truth, closed.prediction, labels, log_probs=sharp)


def test_labels_that_look_like_markup_stay_text(tmp_path: Path) -> None:
    table = random_table(num=60, num_labels=3, skill=1.0)
    evil = ("<script>alert(1)</script>", '"><img src=x>', "a & b | $x$ {{ 7*7 }}")
    table = relabeled(table, evil)
    write_evaluation(tmp_path / "e", "x</title><b>", table)
    page = render_comparison([tmp_path / "e"], tmp_path / "out", "T <i>")
    text = page.read_text()
    assert "<script>alert" not in text and "<img src=x>" not in text and "<b>" not in text and "T <i>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<script>" not in page.with_suffix(".md").read_text()
    for name in ("accuracy", "confusion"):
        ElementTree.fromstring(str(drawings(json_view(tmp_path / "e"))[name]))


def test_names_read_as_themselves_in_markdown() -> None:
    told = wording.plain("[a](http://b) | *c* `d` e_f\\ <g>\n1")
    assert told == r"\[a\](http://b) \| \*c\* \`d\` e_f\\ &lt;g> 1"


def test_a_very_long_class_name_leaves_room_for_the_charts(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    table = random_table(num=60, num_labels=3, skill=1.0)
    write_evaluation(tmp_path / "e", "e", relabeled(table, ("x" * 180, "y" * 300, "z")))
    render_comparison([tmp_path / "e"], tmp_path / "out", "T")
    assert [str(warning.message) for warning in recwarn] == []


def json_view(folder: Path) -> dict:
    from vlmtune.evaluate.files import read_evaluation

    return build("t", [read_evaluation(folder)], [], [])


def test_a_run_without_evaluation_still_has_its_curves(tmp_path: Path) -> None:
    page = render(write_run(tmp_path / "young", "young")).read_text()
    assert "no evaluation yet" in page
    assert "Training loss" in page
    assert "Confusion" not in page


def test_an_unfinished_last_line_is_passed_over_and_a_damaged_one_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"kind": "train", "st')
    assert len(read_run(folder).train) == 20
    path.write_text('{"kind": \n' + whole)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl:1"):
        read_run(folder)


def test_a_resumed_run_shows_each_step_once_as_last_measured(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 5, "loss": 9.5}\n')
    steps = {line["step"]: line["loss"] for line in read_run(folder).train}
    assert sorted(steps) == list(range(1, 21))
    assert steps[5] == 9.5


def test_folders_that_are_no_runs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="not a run folder"):
        render(tmp_path / "empty")
    with pytest.raises(RunFolderError, match="no evaluation yet"):
        (tmp_path / "young" / "evaluation").mkdir(parents=True)
        evaluation_folder(tmp_path / "young")


def test_evaluations_of_other_images_are_left_out_and_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    write_evaluation(folder / "evaluation" / "test-all", "all", random_table(num=60, seed=1))
    write_evaluation(folder / "evaluation" / "test-other", "other", random_table(num=60, data_seed=5, seed=2))
    evaluations, left_out = read_evaluations(folder)
    assert len(evaluations) == len(left_out) == 1
    assert left_out[0] in render(folder).read_text()
    with pytest.raises(DataError, match="different questions or true answers"):
        render(folder, baseline=folder / "evaluation" / left_out[0])


def test_runs_of_one_evaluation_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = []
    for seed, name in enumerate(("tuned_10", "tuned_100")):
        folders.append(tmp_path / name / "evaluation" / "test-fine-tuned")
        write_evaluation(folders[-1], "fine-tuned", random_table(num=60, seed=seed))
    page = render_comparison(folders, tmp_path / "report.html", "Demo").read_text()
    assert "tuned_10 → tuned_100" in page


def test_a_comparison_of_three_names_every_pair(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name, num_steps=20) for name in ("tuned_10", "tuned_100")]
    page = render_comparison(demo(tmp_path, num=100), tmp_path / "out", "Demo", runs=runs)
    assert page == tmp_path / "out" / "report.html"
    text = page.read_text()
    for pair in ("baseline → tuned_10", "baseline → tuned_100", "tuned_10 → tuned_100"):
        assert pair in text


def summary(*tables, names=("base", "tuned"), limit=None) -> str:
    evaluations = [in_memory(name, table) for name, table in zip(names, tables, strict=False)]
    runs = [
        {
            "name": e.name,
            "is_baseline": e.name == "base",
            "metrics": measure(e.predictions),
            "limit": limit,
            "split": "test",
        }
        for e in evaluations
    ]
    comparison = compare(evaluations, num_resamples=20) if len(tables) > 1 else None
    return " ".join(wording.summary(runs, comparison, runs[-1]["metrics"]))


def test_a_calibration_is_told_although_the_last_run_has_none(tmp_path: Path) -> None:
    validation = random_table(num=100, data_seed=1)
    validation.ids[:] = [f"validation/{row}" for row in range(100)]
    figures = calibrate(validation, random_table())
    first = in_memory("baseline", random_table(), calibration=figures)
    view = build("x", [first, in_memory("tuned", random_table(skill=6.0, seed=2))], [], [])
    assert f"{figures['temperature']:.2f}" in view["calibration"]["temperature"][0]
    to_html("report.html.jinja", view=view, charts=drawings(view))


def test_the_summary_says_significant_only_when_it_is() -> None:
    weak, strong, same = (random_table(num=400, skill=k, seed=s) for k, s in ((2.0, 1), (4.0, 2), (2.0, 3)))
    assert "significantly better" in summary(weak, strong)
    assert "significantly worse" in summary(strong, weak)
    told = summary(weak, same)
    assert "not significant" in told and "significantly better" not in told and "significantly worse" not in told


def test_the_summary_tells_limits_small_samples_and_overconfidence() -> None:
    told = summary(random_table(num=50, skill=2.0), limit=50)
    assert "Only 50 images" in told
    assert "wide intervals" in told
    sure = random_table(num=500, skill=2.0)
    sharper = relabeled(sure, sure.labels, sharpness=8)
    assert "too confident" in summary(sharper)


def test_numbers_are_written_as_people_read_them() -> None:
    assert wording.percent(0.98765) == "98.8%"
    assert wording.points(-0.0123) == "−1.2"
    assert wording.points(-0.0001) == "0.0"
    assert [wording.duration(s) for s in (3.21, 95, 3700)] == ["3.2 s", "1 min 35 s", "1 h 1 min"]
    assert [wording.p_value(p) for p in (1e-9, 0.0123, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]


def test_ticks_are_round_and_inside() -> None:
    assert svg.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg.ticks(0.6, 1) == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0])
    assert svg.ticks(3, 3) == [3]


def test_a_long_curve_is_thinned_to_means() -> None:
    points = [(float(x), float(x % 2)) for x in range(10_000)]
    thin = svg.thinned(points, 100)
    assert len(thin) == 100
    assert all(y == pytest.approx(0.5, abs=0.02) for _, y in thin)


def test_a_diverged_run_gives_valid_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", "r", num_steps=20)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 21, "accuracy": 0.1, "loss": NaN}\n')
    text = render(folder).with_suffix(".json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["training"][0]["validation_rows"][-1]["loss"] is None


def test_charts_of_one_step_or_an_infinite_loss_are_drawn() -> None:
    one = {"series": "s2", "loss": [(1, 2.0), (2, float("inf"))], "validation": [(1, 0.5)]}
    for chart in (charts.loss_curves([one]), charts.validation_curves([one])):
        assert "nan" not in chart and "inf" not in chart
        ElementTree.fromstring(str(chart))


def test_a_heat_map_of_many_classes_shows_the_most_confused() -> None:
    counts = np.eye(300, dtype=np.int64) * 10
    counts[250, 17] = 5
    rows = charts.heatmap_classes(counts)
    assert len(rows) == 100
    assert {17, 250} <= set(rows)
