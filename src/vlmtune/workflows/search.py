"""Many short trainings of one experiment with different settings: started, pruned, compared, recorded.

In: an experiment with its search space. Out: the figures of all trials and the folder they are in. Called by
`vlmtune search`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from vlmtune.config.load import dump, load_experiment
from vlmtune.config.schema import EvaluateSection, Experiment
from vlmtune.config.search_space import label, with_point
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError, UserError
from vlmtune.evaluate.compare import align
from vlmtune.evaluate.files import read_evaluation, with_distinct_names
from vlmtune.evaluate.statistics import paired_comparison
from vlmtune.files import write_text
from vlmtune.report.search import write_search
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import load_data
from vlmtune.train.tracking import check_installed
from vlmtune.workflows.evaluate import evaluate
from vlmtune.workflows.progress import SILENT, Observer, Progress
from vlmtune.workflows.trial import TrialTask, run_trial
from vlmtune.workflows.trials import Search, TrialRecord, standing

MOST_FAILURES_IN_A_ROW = 3
"""This many failed trials without a successful one are blamed on the experiment, not on the settings."""


def run_search(
    experiment: Experiment, *, num_trials: int, num_jobs: int = 1, observer: Observer = SILENT
) -> tuple[dict[str, Any], Path]:
    """Run the remaining trials; returns the figures and the folder, rewritten after every trial."""
    check_installed(experiment.tracking)
    folder = Path(experiment.output_dir) / f"{experiment.name}-search"
    resolved, splits = load_data(experiment)
    if not splits.validation:
        raise DataError("A search needs validation images. Check data.validation_split and data.validation_fraction.")
    searched = Search(folder, experiment, resolved)
    try:
        with observer.progress(f"search {experiment.name}", num_trials, "trials") as bar:
            bar.start_at(searched.num_done)
            with _Workers(searched, num_jobs, bar) as workers:
                while workers.fill(num_trials):
                    if workers.collect():
                        _write(searched, num_trials, len(splits.validation), None)
        against = _against_runner_up(searched, splits, observer)
        return _write(searched, num_trials, len(splits.validation), against), folder
    finally:
        searched.close()


class _Workers:
    """The processes of the running trials. Use as a context manager: leaving it ends them."""

    def __init__(self, search: Search, num_jobs: int, bar: Progress) -> None:
        self.search, self.num_jobs, self.bar = search, num_jobs, bar
        self.num_failed = 0
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, tuple[int, BaseProcess]] = {}  # slot -> trial and its process
        (search.folder / "logs").mkdir(exist_ok=True)

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for _, process in self._processes.values():
            process.kill()
        for _, process in self._processes.values():
            process.join()

    def fill(self, num_trials: int) -> bool:
        """Start remaining trials in free slots; returns whether any is running."""
        for slot in range(self.num_jobs):
            if slot not in self._processes and self.search.num_done + len(self._processes) < num_trials:
                number, point = self.search.ask()
                task = TrialTask(
                    self.search.folder,
                    number,
                    self.search.pruner,
                    trial_experiment(self.search, number, point).model_dump(),
                    self._log(number),
                    _environment(slot, self.num_jobs),
                )
                process = self._context.Process(target=run_trial, args=(task,), daemon=True)
                process.start()
                self._processes[slot] = number, process
        return bool(self._processes)

    def collect(self) -> bool:
        """Wait a second at most, show progress, settle trials whose process has ended; returns whether one had."""
        wait([process.sentinel for _, process in self._processes.values()], timeout=1.0)
        ended = {slot: number for slot, (number, process) in self._processes.items() if not process.is_alive()}
        for slot, number in ended.items():
            self._processes.pop(slot)[1].join()
            self._settle(self.search.trials()[number])
        records = self.search.trials()
        done = self.search.num_done + sum(records[number].share for number, _ in self._processes.values())
        best = next(iter(_ranked(self.search)), None)
        note = f"best {100 * (best.accuracy or 0):.1f} % (trial {best.number})" if best else "none finished yet"
        self.bar.update(done, f"{note}, {sum(record.outcome == 'pruned' for record in records)} pruned")
        return bool(ended)

    def _settle(self, record: TrialRecord) -> None:
        """Record the outcome of a trial. Raises UserError where trial after trial fails."""
        if record.outcome == "running":
            self.bar.message(f"trial {record.number}: its process was killed; it is tried again")
            self.search.kill(record.number)
        elif record.outcome == "failed":
            self.num_failed += 1
            self.bar.message(f"trial {record.number} failed: {record.details['error']}")
            if self.num_failed >= MOST_FAILURES_IN_A_ROW:
                raise UserError(
                    f"The last {self.num_failed} trials failed, the last with: {record.details['error']}\n"
                    f"What it printed: {self._log(record.number)}. Correct the experiment or narrow search.space."
                )
        else:
            self.num_failed = 0

    def _log(self, number: int) -> Path:
        return self.search.folder / "logs" / f"trial-{number:03d}.log"


def trial_experiment(search: Search, number: int, point: Mapping[str, Any]) -> Experiment:
    """The experiment of one trial, in the search's folder."""
    trial = with_point(search.experiment, point)
    folder = search.folder / trial_name(number)
    trial.name, trial.output_dir = folder.name, str(folder.parent)
    if trial.tracking is not None:
        trial.tracking.group = trial.tracking.group or search.folder.name
    return trial


def trial_name(number: int) -> str:
    return f"trials/trial-{number:03d}"


def _environment(slot: int, num_jobs: int) -> dict[str, str]:
    """Processors, and devices if there are several, are divided among concurrent trials."""
    if num_jobs == 1:
        return {}
    import torch

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // num_jobs))
    changes = {"OMP_NUM_THREADS": threads}
    if torch.cuda.device_count() > 1 and "CUDA_VISIBLE_DEVICES" not in os.environ:
        changes["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    return changes


def _ranked(search: Search) -> list[TrialRecord]:
    """The trials that were trained to the end, the best first."""
    return sorted((r for r in search.trials() if r.outcome == "finished"), key=standing, reverse=True)


def _against_runner_up(search: Search, splits: Splits, observer: Observer) -> dict[str, Any] | None:
    """The best two trials on the same validation images, one by one."""
    ranked = _ranked(search)[:2]
    if len(ranked) < 2:
        return None
    measured = []
    for record in ranked:
        run = search.folder / trial_name(record.number)
        experiment = load_experiment(run, must_exist=False)
        experiment.evaluate = EvaluateSection(split="validation", batch_size=experiment.evaluate.batch_size)
        done = evaluate(experiment, splits, checkpoint=RunLayout(run).best, folder=run, observer=observer)
        measured.append(read_evaluation(done.folder))
    best, second = align(with_distinct_names(measured))
    test = paired_comparison(second.score, best.score, best.clusters)
    return {
        "runner_up": ranked[1].number,
        "difference": test["difference"],
        "interval": test["difference_interval"],
        "p_value": test["p_value"],
    }


def _write(search: Search, num_planned: int, num_validation: int, against: dict[str, Any] | None) -> dict[str, Any]:
    """Write the current figures of a search, its files and the best configuration."""
    records = [record for record in search.trials() if record.outcome not in ("waiting", "running")]
    order = ("finished", "pruned", "failed", "killed")
    records.sort(key=standing, reverse=True)
    records.sort(key=lambda record: order.index(record.outcome))
    best = _ranked(search)[:1]
    figures = {
        "name": search.experiment.name,
        "keys": list(search.space),
        "trials": [_describe(search, record) for record in records],
        "best": best[0].number if best else None,
        "baseline": 0,
        "num_validation": num_validation,
        "num_planned": num_planned,
        "importance": search.importance(),
        "against": against,
    }
    write_search(search.folder, figures)
    if best:
        winner = trial_experiment(search, best[0].number, best[0].point)
        winner.name, winner.output_dir = f"{search.experiment.name}-best", search.experiment.output_dir
        head = (
            f"# Trial {best[0].number} of {search.folder.name}: {100 * (best[0].accuracy or 0):.1f} % of "
            f"{num_validation} validation images.\n"
        )
        write_text(search.folder / "best.yaml", head + dump(winner))
    return figures


def _describe(search: Search, record: TrialRecord) -> dict[str, Any]:
    """A trial as search.json holds it."""
    labels = {key: label(value) for key, value in record.point.items()}
    details = {key: record.details.get(key) for key in ("loss", "steps", "seconds", "error", "repeat_of")}
    return {
        "number": record.number,
        "outcome": record.outcome,
        "point": {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in labels.items()},
        "accuracy": record.accuracy,
        "history": record.history,
        "folder": str(search.folder / trial_name(record.number)),
        **details,
    }
