"""What the sections of a report read: runs, and evaluations of the same examples side by side in their colors.

In: run folders and evaluation folders; lenient with an unfinished run, strict with damage. Out: `Results`. Called by
`render`, and by commands that look into a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmtune.errors import RunFolderError
from vlmtune.evaluate.compare import compare, describe, same_examples
from vlmtune.evaluate.files import Evaluation, is_evaluation, read_evaluation, with_distinct_names
from vlmtune.files import read_json_if_exists, read_json_lines
from vlmtune.report.charts import color_names
from vlmtune.report.section import Figures
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.record import RunRecord, read_record_if_exists

CURVE_SPLITS = ("validation", "test", "train")
BASELINE_NAMES = ("baseline", "base", "zero-shot", "zero_shot")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run folder without its evaluations. Missing files are empty.

    Attributes:
        train, validation: lines of metrics.jsonl, one for each step.
        warnings: of preflight.
        config: the experiment's YAML.
        baselines, checkpoint_curve: figures of `vlmtune baselines` and `vlmtune checkpoints`.
    """

    name: str
    layout: RunLayout
    record: RunRecord
    train: Sequence[Figures]
    validation: Sequence[Figures]
    warnings: Sequence[str]
    config: str
    baselines: Figures
    checkpoint_curve: Figures


@dataclass(frozen=True, slots=True)
class Entry:
    """One evaluation, with the CSS class of its color.

    Attributes:
        row: its main figures, cost and limits, for a table of evaluations.
    """

    evaluation: Evaluation
    row: Figures
    color: str
    is_baseline: bool

    @property
    def figures(self) -> Figures:
        """Everything measured, see `evaluate.metrics.measure`."""
        return self.evaluation.figures

    @property
    def name(self) -> str:
        return self.evaluation.name

    @property
    def limit(self) -> int | None:
        limit: int | None = self.row["limit"]
        return limit


@dataclass(frozen=True, slots=True)
class Results:
    """The subject of a report.

    Attributes:
        entries: in the order of the page, baseline first; the last is what the page is about.
        comparison: the result of `evaluate.compare`; None for a single evaluation.
        left_out: names of evaluations of other examples.
    """

    title: str
    entries: Sequence[Entry]
    runs: Sequence[RunFiles]
    comparison: Figures | None
    left_out: Sequence[str]

    @property
    def subject(self) -> Entry | None:
        return self.entries[-1] if self.entries else None

    @property
    def run(self) -> RunFiles | None:
        return self.runs[-1] if self.runs else None

    @property
    def unit(self) -> str:
        """The unit counted: "image", or "question" where each example has its own."""
        return unit_of(self.entries[-1].row) if self.entries else "image"

    @property
    def score_name(self) -> str:
        return score_name_of(self.entries[-1].row) if self.entries else "accuracy"

    @property
    def main_pair(self) -> Figures | None:
        """The paired test of the last evaluation against the first."""
        return self.pair(self.entries[0].name, self.entries[-1].name) if self.comparison else None

    def pair(self, first: str, second: str) -> Figures:
        """The paired test of two evaluations."""
        assert self.comparison is not None
        pair: Figures = next(p for p in self.comparison["pairs"] if (p["first"], p["second"]) == (first, second))
        return pair


def unit_of(row: Figures) -> str:
    """The unit an evaluation counts: "image", or "question" where an image has several."""
    return "image" if row["num_images"] == row["num_examples"] else "question"


def score_name_of(row: Figures) -> str:
    """The name of the mean score: the official VQA accuracy where annotators may disagree."""
    return "accuracy" if row["num_correct"] is not None else "VQA accuracy"


def gather(
    title: str, evaluations: Sequence[Evaluation], runs: Sequence[RunFiles], left_out: Sequence[str] = ()
) -> Results:
    """Put evaluations side by side, in the order of the page. Raises DataError if they are not of the same examples."""
    evaluations = with_distinct_names(evaluations)
    are_baselines = [is_baseline(evaluation) for evaluation in evaluations]
    entries = [
        Entry(evaluation, describe(evaluation), color, is_first)
        for evaluation, color, is_first in zip(evaluations, color_names(are_baselines), are_baselines, strict=True)
    ]
    is_comparable = len(evaluations) > 1 and entries[-1].row["accuracy"] is not None
    return Results(title, entries, runs, compare(evaluations) if is_comparable else None, left_out)


# ── run folders ─────────────────────────────────────────────────────────────────────────────────────────────────────


def read_run(folder: Path | str) -> RunFiles:
    """Read what is in a run folder besides its evaluations.

    Raises RunFolderError for a folder that is not a run, and for a damaged file, with its line.
    """
    layout = RunLayout(Path(folder))
    files = (layout.record, layout.metrics, layout.config, layout.evaluations)
    if not any(path.exists() for path in files):
        names = ", ".join(path.name for path in files)
        raise RunFolderError(
            f"{folder} is not a run folder: it has none of {names}. Give a folder that `vlmtune train` wrote."
        )
    record = read_record_if_exists(layout.path)
    lines = read_json_lines(layout.metrics)
    curves = (read_json_if_exists(layout.checkpoint_curve / f"{split}.json") for split in CURVE_SPLITS)
    findings = read_json_if_exists(layout.preflight).get("findings") or []
    return RunFiles(
        name=record.name or layout.path.resolve().name,
        layout=layout,
        record=record,
        train=_latest(lines, "train"),
        validation=_latest(lines, "validation"),
        warnings=[str(finding["message"]) for finding in findings if finding.get("level") == "warning"],
        config=layout.config.read_text(encoding="utf-8") if layout.config.exists() else "",
        baselines=read_json_if_exists(layout.baselines),
        checkpoint_curve=next(filter(None, curves), {}),
    )


def _latest(lines: Sequence[Figures], kind: str) -> list[Figures]:
    """One line for each step, the last written: a resumed run repeats the steps after its checkpoint."""
    by_step = {line["step"]: line for line in lines if line.get("kind") == kind and "step" in line}
    return [by_step[step] for step in sorted(by_step)]


def read_evaluations(run_folder: Path) -> tuple[list[Evaluation], list[str]]:
    """The comparable evaluations of a run, baseline first, then by time; and the names left out.

    The newest test evaluation decides which images the report is about; those of other images are left out.
    """
    paths = sorted(path for path in RunLayout(run_folder).evaluations.glob("*") if is_evaluation(path))
    evaluations = sorted(map(read_evaluation, paths), key=lambda e: str(e.facts.get("created", "")))
    if not evaluations:
        return [], []
    tuned = [e for e in evaluations if not is_baseline(e)] or evaluations
    on_test = [e for e in tuned if e.facts["data"].get("split") == "test"] or tuned
    subject = on_test[-1]
    beside = [e for e in evaluations if e is not subject and _may_be_beside(subject, e)]
    left_out = [e.folder.name if e.folder else e.name for e in evaluations if e is not subject and e not in beside]
    return sorted([*beside, subject], key=lambda e: (not is_baseline(e), e is subject)), left_out


def _may_be_beside(subject: Evaluation, other: Evaluation) -> bool:
    is_measured = subject.predictions.known.any()
    return same_examples(subject, other) if is_measured else subject.predictions.ids == other.predictions.ids


def evaluation_folder(path: Path | str) -> Path:
    """An evaluation folder as given, or the newest test evaluation of a run. Raises RunFolderError for neither."""
    path = Path(path)
    if is_evaluation(path) or not RunLayout(path).evaluations.is_dir():
        return path  # reading it explains what is wrong with a folder that is neither
    evaluations, _ = read_evaluations(path)
    if evaluations and evaluations[-1].folder is not None:
        return evaluations[-1].folder
    raise RunFolderError(f"{path} has no evaluation yet. Run `vlmtune evaluate` first.")


def is_baseline(evaluation: Evaluation) -> bool:
    """Whether this is the base model as it was before fine-tuning."""
    facts = evaluation.facts
    is_untouched = facts.get("checkpoint") is None and facts.get("base") is not None
    return evaluation.name.lower() in BASELINE_NAMES or (is_untouched and facts.get("model") == facts["base"])
