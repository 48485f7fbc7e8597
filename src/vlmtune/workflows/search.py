"""Many short trainings of one experiment, each with other settings: started, pruned, compared, written down.

In: an experiment with its search space. Out: the figures of all trials and the folder they are in. Called by
`vlmtune search`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmtune.config.load import dump, load_experiment
from vlmtune.config.schema import EvaluateSection, Experiment
from vlmtune.config.search_space import label, with_point
from vlmtune.data.splits import Splits
from vlmtune.errors import DataError, UserError
from vlmtune.evaluate.compare import align
from vlmtune.evaluate.files import read_evaluation, with_distinct_names
from vlmtune.evaluate.statistics import paired_test
from vlmtune.files import write_text
from vlmtune.report.search import write_search
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.prepare import load_data
from vlmtune.train.tracking import check_installed
from vlmtune.workflows.evaluate import evaluate
from vlmtune.workflows.progress import SILENT, Observer, Progress
from vlmtune.workflows.trial import train_trial
from vlmtune.workflows.trial_processes import Event, TrialProcesses
from vlmtune.workflows.trials import Search, TrialRecord, standing

MOST_FAILURES_IN_A_ROW = 3
"""So many failed trials with none that trained are taken for a fault of the experiment, not of its settings."""


def run_search(
    experiment: Experiment, *, num_trials: int, num_jobs: int = 1, observer: Observer = SILENT
) -> tuple[dict[str, Any], Path]:
    """Run the trials that are left; the figures and the folder, written anew after every trial."""

    check_installed(experiment.tracking)
    folder, task = Path(experiment.output_dir) / f"{experiment.name}-search", experiment.task
    resolved, splits = load_data(experiment)
    if not splits.validation:
        raise DataError("A search needs validation images. Check data.validation_split and data.validation_fraction.")
    studied = Search(folder, experiment, resolved)
    try:
        with (
            TrialProcesses(train_trial, folder / "logs") as processes,
            observer.progress(f"search {experiment.name}", num_trials, "trials") as bar,
        ):
            bar.start_at(studied.num_done)
            _Session(studied, processes, bar, num_trials, num_jobs, len(splits.validation)).run()
        against = _against_runner_up(studied, splits, observer) if task.is_closed and not task.asks_from_data else None
        return _write(studied, num_trials, len(splits.validation), against), folder
    finally:
        studied.close()


class _Session:
    """The trials of one call: as many at a time as asked for, until enough are done."""

    def __init__(
        self,
        search: Search,
        processes: TrialProcesses,
        bar: Progress,
        num_trials: int,
        num_jobs: int,
        num_validation: int,
    ) -> None:
        self.search, self.processes, self.bar = search, processes, bar
        self.num_trials, self.num_jobs, self.num_validation = num_trials, num_jobs, num_validation
        self._shares: dict[int, float] = {}
        self._num_validations: dict[int, int] = {}
        self._num_pruned = 0
        self._free_slots = list(range(num_jobs))
        self._slots: dict[int, int] = {}
        self._num_failed = 0

    def run(self) -> None:
        """Raises UserError where trial after trial fails."""
        while True:
            while self._free_slots and self.search.num_done + len(self.processes) < self.num_trials:
                self._start()
            if not self.processes:
                return
            for event in self.processes.wait(timeout_s=1.0):
                self._take(event)
            self.bar.update(self.search.num_done + sum(self._shares.values()), self._note())

    def _start(self) -> None:
        number, point = self.search.ask()
        slot = self._slots[number] = self._free_slots.pop(0)
        self._shares[number] = 0.0
        self._num_validations[number] = 0
        experiment = trial_experiment(self.search, number, point)
        self.processes.start(number, {"experiment": experiment.model_dump()}, _environment(slot, self.num_jobs))

    def _take(self, event: Event) -> None:
        number = event.number
        if event.kind == "step":
            self._shares[number] = event.value
            return
        if event.kind == "validated":
            is_over = self.search.report(number, event.value, self._num_validations[number])
            self._num_validations[number] += 1
            self.processes.answer(number, is_over=is_over)
            return
        self._end(event)

    def _end(self, event: Event) -> None:
        number = event.number
        del self._shares[number]
        self._free_slots.append(self._slots.pop(number))
        if event.kind == "killed":
            self.bar.message(f"trial {number}: its process was killed; it is tried again")
            self.search.kill(number)
        elif event.kind == "failed":
            self._num_failed += 1
            self.bar.message(f"trial {number} failed: {event.value}")
            self.search.fail(number, event.value)
            if self._num_failed >= MOST_FAILURES_IN_A_ROW:
                raise UserError(
                    f"The last {self._num_failed} trials failed, the last with: {event.value}\n"
                    f"What it printed: {self.processes.log(number)}. Correct the experiment or narrow search.space."
                )
        else:
            self._num_failed = 0
            told = event.value
            self._num_pruned += told["is_pruned"]
            self.search.finish(number, told["accuracy"], told["details"], is_pruned=told["is_pruned"])
        _write(self.search, self.num_trials, self.num_validation, None)

    def _note(self) -> str:
        best = _ranked(self.search)[:1]
        told = f"best {100 * (best[0].accuracy or 0):.1f} % (trial {best[0].number})" if best else "none finished yet"
        return f"{told}, {self._num_pruned} pruned"


def trial_experiment(search: Search, number: int, point: Mapping[str, Any]) -> Experiment:
    """A trial as an experiment of its own, in the search's folder."""

    own = with_point(search.experiment, point)
    place = search.folder / trial_name(number)
    own.name, own.output_dir = place.name, str(place.parent)
    if own.tracking is not None:
        own.tracking.group = own.tracking.group or search.folder.name
    return own


def trial_name(number: int) -> str:
    return f"trials/trial-{number:03d}"


def _environment(slot: int, num_jobs: int) -> dict[str, str]:
    """Processors, and devices where there are several, are shared out between the trials of a time."""
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
    best, second = (each.correct for each in align(with_distinct_names(measured)))
    test = paired_test(second, best)
    return {
        "runner_up": ranked[1].number,
        "difference": test["difference"],
        "interval": test["difference_interval"],
        "p_value": test["p_value"],
    }


def _write(search: Search, num_planned: int, num_validation: int, against: dict[str, Any] | None) -> dict[str, Any]:
    """The figures of a search as it stands, its files and the best configuration."""

    records = [record for record in search.trials() if record.outcome not in ("waiting", "running")]
    order = ("finished", "pruned", "failed", "killed")
    records.sort(key=standing, reverse=True)
    records.sort(key=lambda record: order.index(record.outcome))
    best = _ranked(search)[:1]
    found = {
        "name": search.experiment.name,
        "keys": list(search.space),
        "trials": [_told(search, record) for record in records],
        "best": best[0].number if best else None,
        "baseline": 0,
        "num_validation": num_validation,
        "num_planned": num_planned,
        "importance": search.importance(),
        "against": against,
    }
    write_search(search.folder, found)
    if best:
        own = trial_experiment(search, best[0].number, best[0].point)
        own.name, own.output_dir = f"{search.experiment.name}-best", search.experiment.output_dir
        head = (
            f"# Trial {best[0].number} of {search.folder.name}: {100 * (best[0].accuracy or 0):.1f} % of "
            f"{num_validation} validation images.\n"
        )
        write_text(search.folder / "best.yaml", head + dump(own))
    return found


def _told(search: Search, record: TrialRecord) -> dict[str, Any]:

    shown = {key: label(value) for key, value in record.point.items()}
    details = {key: record.details.get(key) for key in ("loss", "steps", "seconds", "error", "repeat_of")}
    return {
        "number": record.number,
        "outcome": record.outcome,
        "point": {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in shown.items()},
        "accuracy": record.accuracy,
        "history": record.history,
        "folder": str(search.folder / trial_name(record.number)),
        **details,
    }
