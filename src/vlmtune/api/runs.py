"""Training, measuring, comparing, exporting and serving from Python: the command line's workflows as functions.

Nothing is printed. Progress goes to ``on_step``, or to an observer (`vlmtune.workflows.progress.Observer`).
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmtune.api.model import Model, load
from vlmtune.api.results import import_pandas
from vlmtune.config.load import load_experiment, parse_experiment
from vlmtune.config.schema import Experiment
from vlmtune.errors import MissingExtraError, RunFolderError, UserError, unknown_name
from vlmtune.evaluate.compare import compare as compare_evaluations
from vlmtune.evaluate.files import PREDICTIONS_FILE, read_evaluation, read_facts, read_parquet, with_distinct_names
from vlmtune.export.gate import Bounds
from vlmtune.export.run import Export
from vlmtune.files import read_json_lines
from vlmtune.report.sources import evaluation_folder
from vlmtune.runs.layout import RunLayout, layout_of
from vlmtune.runs.open import open_adapted
from vlmtune.runs.prepare import load_data
from vlmtune.runs.record import RunResult, read_record
from vlmtune.train.loop import StepEvent, Trainer
from vlmtune.workflows.evaluate import evaluate as run_evaluation
from vlmtune.workflows.export import export_run, raise_if_refused
from vlmtune.workflows.progress import SILENT, Observer
from vlmtune.workflows.train import train as run_training

if TYPE_CHECKING:
    import pandas

    from vlmtune.serve.server import RunningServer

PathOrName = str | PathLike[str]
SPLITS = ("train", "validation", "test")


class Run:
    """A run folder, as returned by `train` or opened from its path."""

    def __init__(self, path: PathOrName) -> None:
        self.path = Path(path)
        self._layout = RunLayout(self.path)
        if not self._layout.is_run:
            raise RunFolderError(
                f"{self.path}: not a run folder. Give one that vlmtune.train or `vlmtune train` wrote."
            )

    @cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        return load_experiment(self.path, must_exist=False)

    @property
    def figures(self) -> RunResult:
        """The run's results. Raises RunFolderError while it is unfinished."""
        result = read_record(self.path).result
        if result is None:
            raise RunFolderError(f"{self.path}: this run is unfinished. Continue it: train(experiment, resume=True).")
        return result

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every logged step and validation, in order."""
        return read_json_lines(self._layout.metrics)

    @property
    def report(self) -> Path:
        """The report's page."""
        return self._layout.report

    def load(self) -> Model:
        """The best checkpoint, ready to predict."""
        return load(self.path)

    def __repr__(self) -> str:
        result = read_record(self.path).result
        if result is None:
            return f"Run({str(self.path)!r}, unfinished)"
        return f"Run({str(self.path)!r}, {_named_percents(validation=result.best_accuracy, test=result.test_accuracy)})"

    def _repr_html_(self) -> str:
        page = html.escape(str(self.report))
        return f"<p>{html.escape(repr(self))}<br>report: <a href='{page}'>{page}</a></p>"


@dataclass(frozen=True)
class Figures:
    """The figures of an evaluation; None where a task has no such figure.

    Attributes:
        accuracy: mean score, an unreadable image counting as wrong; None where no true answer is known.
        accuracy_interval: 95 %.
        macro_f1, weighted_f1, balanced_accuracy: over classes. nll, brier, ece: of the probabilities.
        mean_absolute_error, quadratic_weighted_kappa: of ordered levels.
        seconds: of all images.
    """

    accuracy: float | None
    accuracy_interval: tuple[float, float] | None
    num_examples: int
    num_correct: int | None
    num_unreadable: int
    macro_f1: float | None
    weighted_f1: float | None
    balanced_accuracy: float | None
    nll: float | None
    brier: float | None
    ece: float | None
    mean_absolute_error: float | None
    quadratic_weighted_kappa: float | None
    seconds: float


class Evaluation:
    """An evaluation folder, as returned by `evaluate` or opened from its path."""

    def __init__(self, folder: PathOrName) -> None:
        self.folder = evaluation_folder(Path(folder))
        self.facts = read_facts(self.folder)

    @property
    def name(self) -> str:
        """What was measured: base, fine-tuned, or a checkpoint."""
        return str(self.facts["name"])

    @property
    def figures(self) -> Figures:
        """Accuracy and the task's other metrics."""
        values = {**self.facts["metrics"], "seconds": self.facts.get("seconds", 0.0)}
        known: dict[str, Any] = {item.name: values.get(item.name) for item in fields(Figures)}
        if known["accuracy_interval"] is not None:
            known["accuracy_interval"] = tuple(known["accuracy_interval"])
        return Figures(**known)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per example: id, truth, prediction and what else was stored. Raises UserError without pandas."""
        import_pandas()
        return read_parquet(self.folder / PREDICTIONS_FILE, ()).to_pandas()

    def __repr__(self) -> str:
        return f"Evaluation({self.name!r}, {_named_percents(accuracy=self.figures.accuracy)}, {self.folder})"

    def _repr_html_(self) -> str:
        figures = self.figures
        rows = [("examples", f"{figures.num_examples:,}"), ("accuracy", _percent(figures.accuracy))]
        if figures.accuracy_interval is not None:
            rows.append(("95 % interval", " to ".join(map(_percent, figures.accuracy_interval))))
        for name in ("macro_f1", "nll", "ece", "mean_absolute_error"):
            value = getattr(figures, name)
            rows += [(name.replace("_", " "), f"{value:.3f}")] if value is not None else []
        return _html_table(self.name, rows)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same images.

    Attributes:
        first, second: names.
        difference: accuracy of the second minus that of the first, with its 95 % ``interval``.
        p_value: of the paired test.
        figures: the output of `vlmtune compare --json`.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None
    p_value: float
    figures: dict[str, Any]

    def __repr__(self) -> str:
        return f"Comparison({self.first} → {self.second}: {100 * self.difference:+.1f} points, p = {self.p_value:.2g})"

    def _repr_html_(self) -> str:
        rows = [("difference", f"{100 * self.difference:+.1f} points"), ("p", f"{self.p_value:.2g}")]
        if self.interval is not None:
            rows.insert(1, ("95 % interval", " to ".join(f"{100 * value:+.1f}" for value in self.interval)))
        return _html_table(f"{self.first} → {self.second}", rows)


def train(
    experiment: Experiment | Mapping[str, Any] | PathOrName,
    *,
    on_step: Callable[[StepEvent], object] | None = None,
    resume: bool = False,
    with_base: bool = True,
    observer: Observer = SILENT,
) -> Run:
    """Train, evaluate on the test split, and write the report.

    Args:
        experiment: an `Experiment`, a dict of its keys (as in a YAML file), or the path of a YAML file.
        on_step: called after every optimizer step with its figures; return False to end the run there.
        resume: continue the run in its folder.
        with_base: also evaluate the base model, for the comparison in the report.
        observer: receives progress and messages.

    Raises:
        ConfigError: wrong keys or values, all of them at once. UserError: see `workflows.train.train`.
    """

    def watch(trainer: Trainer, step: StepEvent) -> None:
        if on_step is not None and on_step(step) is False:
            trainer.progress.is_stopped = True

    result = run_training(_experiment(experiment), resume=resume, with_base=with_base, on_step=watch, observer=observer)
    return Run(result.run)


def evaluate(
    model: Run | Model | Experiment | Mapping[str, Any] | PathOrName,
    split: str = "test",
    *,
    limit: int | None = None,
    experiment: Experiment | Mapping[str, Any] | PathOrName | None = None,
    observer: Observer = SILENT,
) -> Evaluation:
    """Measure a model on a whole split and write an evaluation folder into the run's folder.

    Args:
        model: a run or its path (its best checkpoint), a checkpoint's folder, a `Model` opened from one of
            these; or an experiment, for its base model.
        split: train, validation or test.
        limit: at most this many examples, stratified by label.
        experiment: provides the data; default: the run's.

    Raises UserError: no such run; or the model was trained on images of this split.
    """
    checkpoint: Path | None = None
    if isinstance(model, Experiment | Mapping):
        measured = _experiment(model)
        folder = RunLayout(Path(measured.output_dir) / str(measured.name))
    else:
        source = Path(model.path if isinstance(model, Run) else model.source if isinstance(model, Model) else model)
        run = layout_of(source)
        if run is None and experiment is None:
            raise UserError(f"{source}: no run, so nothing says what to measure it on. Give experiment=….")
        measured = _experiment(experiment if experiment is not None else source)
        folder = run or RunLayout(Path(measured.output_dir) / str(measured.name))
        checkpoint = folder.best if run is not None and source.resolve() == run.path else source
    if split not in SPLITS:
        raise UserError(unknown_name("split", split, SPLITS))
    measured.evaluate = measured.evaluate.model_copy(update={"split": split, "limit": limit})
    resolved, splits = load_data(measured)
    done = run_evaluation(resolved, splits, checkpoint=checkpoint, folder=folder.path, observer=observer)
    return Evaluation(done.folder)


def compare(first: Evaluation | Run | PathOrName, second: Evaluation | Run | PathOrName) -> Comparison:
    """Compare two evaluations of the same images, or the newest test evaluations of two runs.

    Raises DataError: evaluations of different images.
    """
    given = [each.folder if isinstance(each, Evaluation) else _path(each) for each in (first, second)]
    evaluations = with_distinct_names([read_evaluation(evaluation_folder(folder)) for folder in given])
    figures = compare_evaluations(evaluations)
    pair = figures["pairs"][0]
    interval = pair["difference_interval"]
    return Comparison(
        pair["first"],
        pair["second"],
        pair["difference"],
        None if interval is None else (interval[0], interval[1]),
        pair["p_value"],
        figures,
    )


def export(
    run: Run | PathOrName,
    format: str,
    *,
    output: PathOrName | None = None,
    dtype: str | None = None,
    agreement: float = 0.995,
    max_difference: float = 0.3,
    images: int = 200,
    observer: Observer = SILENT,
) -> Export:
    """Ship a run as `peft`, `merged` or `gguf`, judged by the export gate; arguments as of `vlmtune export`.

    Raises UserError: the export's answers differ from the trained model's, or the folder is taken.
    """
    made = export_run(
        _path(run),
        format,
        output=None if output is None else Path(output),
        dtype=dtype,
        bounds=Bounds(agreement, max_difference),
        num_images=images,
        observer=observer,
    )
    raise_if_refused(made)
    return made


def serve(
    model: Run | PathOrName,
    *,
    labels: Sequence[str] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    background: bool = False,
) -> RunningServer | None:
    """Serve a model over HTTP: OpenAI-compatible chat, label probabilities, a page to try it.

    Args:
        model: a run, or whatever `load` opens.
        labels: replace those that the model was trained with.
        port: 0 picks a free one.
        background: return at once, with a server to `stop`; otherwise serve until interrupted.

    Raises UserError: the address cannot be listened on. MissingExtraError: a package of the extra `serve` is missing.
    """
    try:
        from vlmtune.serve.server import run_server, start_server
        from vlmtune.serve.service import Service
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve") from error
    source = str(model.path if isinstance(model, Run) else Path(model) if isinstance(model, PathLike) else model)
    service = Service(open_adapted(source), source, labels=labels)
    if background:
        return start_server(service, host, port)
    run_server(service, host, port, on_ready=lambda url: None)
    return None


def _experiment(given: Experiment | Mapping[str, Any] | PathOrName) -> Experiment:
    if isinstance(given, Experiment):
        return given.model_copy(deep=True)
    return parse_experiment(given) if isinstance(given, Mapping) else load_experiment(Path(given))


def _path(run: Run | PathOrName) -> Path:
    return run.path if isinstance(run, Run) else Path(run)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _named_percents(**shares: float | None) -> str:
    return ", ".join(f"{name} {_percent(share)}" for name, share in shares.items())


def _html_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
