"""Run folders and evaluation folders in; report.html, .md, .json and charts/*.svg out. No torch.

What a report shows is the list `SECTIONS`: a function from `Results` to a section, or to None if there is nothing to
show. Called by `vlmtune report`, `train`, `demo` and `compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vlmtune.evaluate.files import read_evaluation
from vlmtune.report import accuracy, baselines, checkpoints, classes, confidence, experiment, mistakes, training
from vlmtune.report.pages import write_report
from vlmtune.report.section import Report, Section
from vlmtune.report.sources import Results, gather, read_evaluations, read_run

PAGE = "report.html"

SECTIONS: tuple[Callable[[Results], Section | None], ...] = (
    accuracy.section,
    baselines.section,
    training.section,
    checkpoints.section,
    classes.section,
    classes.types_section,
    confidence.section,
    mistakes.section,
    experiment.section,
)


def build(results: Results) -> Report:
    """The report of results, before it is rendered."""
    made = (section(results) for section in SECTIONS)
    return Report(
        title=results.title,
        eyebrow="vlmtune report",
        summary=accuracy.summary(results),
        sections=[section for section in made if section is not None],
        headlines=accuracy.headlines(results),
        warnings=list(dict.fromkeys(warning for run in results.runs for warning in run.warnings)),
        hints=experiment.hints(results),
    )


def render(run_folder: Path | str, baseline: Path | str | None = None) -> Path:
    """Write the report of one run into its folder; reads nothing else.

    Args:
        run_folder: what `vlmtune train` wrote. Evaluations of the same images as the newest are compared.
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
    return write_report(run_folder / PAGE, build(gather(run.name, evaluations, [run], left_out)))


def render_comparison(
    evaluation_folders: Sequence[Path | str],
    output: Path | str,
    title: str,
    runs: Sequence[Path | str] = (),
) -> Path:
    """Write a report of several evaluations of the same images.

    Args:
        evaluation_folders: in the order of the page, the baseline first; the last is the subject of the page.
        output: a folder, or the path of the .html file; the other files go beside it.
        runs: run folders whose training curves are drawn. A run named as its evaluation shares its color.

    Returns:
        The path of the page. Raises DataError for evaluations of different images.
    """
    output = Path(output)
    page = output if output.suffix == ".html" else output / PAGE
    records = [read_run(folder) for folder in runs]
    evaluations = [read_evaluation(folder) for folder in evaluation_folders]
    return write_report(page, build(gather(title, evaluations, records)))
