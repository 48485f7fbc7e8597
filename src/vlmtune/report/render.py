"""Run folders and evaluation folders in; report.html, report.md, report.json and charts/*.png out. No torch.

Called by `vlmtune report`, `train`, `demo` and `compare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmtune.errors import RunFolderError
from vlmtune.evaluate.files import Evaluation, read_evaluation, with_distinct_names
from vlmtune.report.files import write_json, write_text
from vlmtune.report.markdown import to_markdown
from vlmtune.report.page import to_html
from vlmtune.report.png import write_charts
from vlmtune.report.sources import RunRecord, read_evaluations, read_run
from vlmtune.report.view import build, drawings
from vlmtune.report.vqa import build_vqa, vqa_drawings

PAGE = "report.html"


def render(run_folder: Path | str, baseline: Path | str | None = None) -> Path:
    """Write the report of one run into its folder; nothing but that folder is read.

    Args:
        run_folder: what `vlmtune train` wrote. Evaluations of the same images as the newest stand side by side.
        baseline: an evaluation folder elsewhere to compare with, shown first.

    Returns:
        The path of report.html. Raises RunFolderError for a folder that is not a run or is damaged, DataError when
        the baseline was measured on other images.
    """
    run_folder = Path(run_folder)
    run = read_run(run_folder)
    evaluations, left_out = read_evaluations(run_folder)
    if baseline is not None:
        evaluations = [read_evaluation(baseline), *evaluations]
    return _write(run_folder / PAGE, _view(run.name, evaluations, [run], left_out))


def render_comparison(
    evaluation_folders: Sequence[Path | str],
    output: Path | str,
    title: str,
    runs: Sequence[Path | str] = (),
) -> Path:
    """Write a report of several evaluations of the same images.

    Args:
        evaluation_folders: in the order shown, the baseline first; the last is the subject of the page.
        output: a folder, or the path of the .html file; the other files go beside it.
        runs: run folders whose training curves are drawn. A run named as its evaluation shares its color.

    Returns:
        The path of the page. Raises DataError for evaluations of different images.
    """
    output = Path(output)
    page = output if output.suffix == ".html" else output / PAGE
    records = [read_run(folder) for folder in runs]
    evaluations = [read_evaluation(folder) for folder in evaluation_folders]
    return _write(page, _view(title, evaluations, records, []))


def _view(
    title: str, evaluations: Sequence[Evaluation], runs: Sequence[RunRecord], left_out: Sequence[str]
) -> dict[str, Any]:
    asks_from_data = any(evaluation.facts["task"]["question_from"] == "data" for evaluation in evaluations)
    return (build_vqa if asks_from_data else build)(title, with_distinct_names(evaluations), runs, left_out)


def _write(page: Path, view: dict[str, Any]) -> Path:
    """The page of a view, and its other files beside it."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_charts(page.parent / "charts", view)
    except OSError as error:
        raise RunFolderError(f"Cannot write {page}: {error.strerror}. Free the disk or name another place.") from error
    write_text(page.with_suffix(".md"), to_markdown(view))
    write_json(page.with_suffix(".json"), _for_machines(view))
    if view["task"] == "vqa":
        write_text(page, to_html("vqa.html.jinja", view=view, charts=vqa_drawings(view)))
    else:
        write_text(page, to_html("report.html.jinja", view=view, charts=drawings(view)))
    return page


def _for_machines(view: dict[str, Any]) -> dict[str, Any]:
    """The view without images and without what only the page needs."""
    gallery = [{key: value for key, value in card.items() if key != "image"} for card in view["gallery"]]
    training = [{key: run[key] for key in ("name", "validation_rows", "best")} for run in view["training"]]
    kept = {key: value for key, value in view.items() if key not in ("main", "main_run", "tables")}
    return {**kept, "gallery": gallery, "training": training}
