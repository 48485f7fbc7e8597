"""`vlmtune search`: many short trainings of one experiment, each with other settings, for the best on validation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import ProgressBar, print_json, print_table
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption
from vlmtune.config.load import load_experiment
from vlmtune.errors import DataError, UserError

if TYPE_CHECKING:
    from vlmtune.config.schema import Experiment
    from vlmtune.data.splits import Splits
    from vlmtune.train.loop import Report, Trainer
    from vlmtune.workflows.trial_processes import Event, Link, TrialProcesses
    from vlmtune.workflows.trials import Search, TrialRecord

MOST_FAILURES_IN_A_ROW = 3
"""So many failed trials with none that trained are taken for a fault of the experiment, not of its settings."""


def search(
    config: ConfigArgument,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier sessions included.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, each in a process of its own.")] = 1,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Look for the best rank, alpha, learning rate, LoRA targets, dropout and augmentation.

    The first trial is CONFIG as it is; the others are proposed by Optuna, and one that falls behind is ended. What is
    varied can be set in the file (search.space). Every trial is a run folder in OUTPUT_DIR/NAME-search/trials; beside
    them stand best.yaml, search.md, search.json and charts. Validation decides, the test split is not looked at.
    The same command again goes on with a search that was stopped, and a larger --trials continues a finished one.
    """
    from vlmtune.report.search import findings, trial_table

    experiment = load_experiment(config, set_ or ())
    found, folder = run_search(experiment, num_trials=trials, num_jobs=jobs)
    if json_:
        print_json({**found, "findings": findings(found), "folder": folder})
        return
    shown = trial_table(found)
    print_table(shown.head(), shown.texts())
    print("\n".join(findings(found)))
    if found["best"] is not None:
        print(f"best: {folder / 'best.yaml'}, trained in {folder / _trial_name(found['best'])}")
    print(f"table and charts: {folder / 'search.md'}")


def run_search(experiment: Experiment, *, num_trials: int, num_jobs: int = 1) -> tuple[dict[str, Any], Path]:
    """Run the trials that are left; the figures and the folder, written anew after every trial."""
    from vlmtune.runs.prepare import load_data
    from vlmtune.train.tracking import check_installed
    from vlmtune.workflows.trial_processes import TrialProcesses
    from vlmtune.workflows.trials import Search

    check_installed(experiment.tracking)
    folder, task = Path(experiment.output_dir) / f"{experiment.name}-search", experiment.task
    resolved, splits = load_data(experiment)
    if not splits.validation:
        raise DataError("A search needs validation images. Check data.validation_split and data.validation_fraction.")
    studied = Search(folder, experiment, resolved)
    try:
        with (
            TrialProcesses(train_trial, folder / "logs") as processes,
            ProgressBar(f"search {experiment.name}", num_trials, unit="trials") as bar,
        ):
            bar.start_at(studied.num_done)
            _Session(studied, processes, bar, num_trials, num_jobs, len(splits.validation)).run()
        against = _against_runner_up(studied, splits) if task.is_closed and not task.asks_from_data else None
        return _write(studied, num_trials, len(splits.validation), against), folder
    finally:
        studied.close()


class _Session:
    """The trials of one call: as many at a time as asked for, until enough are done."""

    def __init__(
        self,
        search: Search,
        processes: TrialProcesses,
        bar: ProgressBar,
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


def train_trial(link: Link, task: Mapping[str, Any]) -> dict[str, Any]:
    """What a trial's process does: an ordinary training without a test. Returns its accuracy and what else is told."""
    from vlmtune.cli.train import run_training
    from vlmtune.config.schema import Experiment

    experiment = Experiment.model_validate(task["experiment"])
    num_told, is_pruned = 0, False

    def on_step(trainer: Trainer, report: Report) -> None:
        nonlocal num_told, is_pruned
        link.step(report.step / report.num_steps)
        for _, accuracy in trainer.progress.history[num_told:]:
            num_told += 1
            if link.validated(accuracy) and not trainer.is_finished:
                trainer.progress.is_stopped = is_pruned = True

    result = run_training(experiment, with_test=False, on_step=on_step)
    details = {"steps": result["steps"], "seconds": result["seconds"], "loss": _loss(Path(result["run"]), result)}
    return {"accuracy": result["best_accuracy"], "is_pruned": is_pruned, "details": details}


def trial_experiment(search: Search, number: int, point: Mapping[str, Any]) -> Experiment:
    """A trial as an experiment of its own, in the search's folder."""
    from vlmtune.config.search_space import with_point

    own = with_point(search.experiment, point)
    place = search.folder / _trial_name(number)
    own.name, own.output_dir = place.name, str(place.parent)
    if own.tracking is not None:
        own.tracking.group = own.tracking.group or search.folder.name
    return own


def _trial_name(number: int) -> str:
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


def _loss(run: Path, result: Mapping[str, Any]) -> float | None:
    """Validation loss at the best step."""
    from vlmtune.report.sources import read_run

    lines = [line for line in read_run(run).validation if line["step"] == result["best_step"]]
    return lines[-1].get("loss") if lines else None


def _ranked(search: Search) -> list[TrialRecord]:
    """The trials that were trained to the end, the best first."""
    from vlmtune.workflows.trials import standing

    return sorted((r for r in search.trials() if r.outcome == "finished"), key=standing, reverse=True)


def _against_runner_up(search: Search, splits: Splits) -> dict[str, Any] | None:
    """The best two trials on the same validation images, one by one."""
    from vlmtune.cli.evaluate import run_evaluation
    from vlmtune.config.schema import EvaluateSection
    from vlmtune.evaluate.compare import align
    from vlmtune.evaluate.files import read_evaluation, with_distinct_names
    from vlmtune.evaluate.statistics import paired_test

    ranked = _ranked(search)[:2]
    if len(ranked) < 2:
        return None
    measured = []
    for record in ranked:
        run = search.folder / _trial_name(record.number)
        experiment = load_experiment(run, must_exist=False)
        experiment.evaluate = EvaluateSection(split="validation", batch_size=experiment.evaluate.batch_size)
        done = run_evaluation(experiment, splits, checkpoint=run / "best", folder=run)
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
    from vlmtune.config.load import dump
    from vlmtune.report.files import write_text
    from vlmtune.report.search import write_search
    from vlmtune.workflows.trials import standing

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
    from vlmtune.config.search_space import label

    shown = {key: label(value) for key, value in record.point.items()}
    details = {key: record.details.get(key) for key in ("loss", "steps", "seconds", "error", "repeat_of")}
    return {
        "number": record.number,
        "outcome": record.outcome,
        "point": {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in shown.items()},
        "accuracy": record.accuracy,
        "history": record.history,
        "folder": str(search.folder / _trial_name(record.number)),
        **details,
    }
