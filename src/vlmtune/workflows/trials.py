"""The trials of a search on disk: what to try next, what to prune, and which keys matter.

In: an experiment and its space. Out: points to try, and records of all trials. Optuna proposes, prunes and stores: a
journal file in the search's folder, which the search and each trial's process open concurrently. A trial reports
to the journal by itself (`TrialHandle`); the search only proposes, reads, and repeats killed trials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from vlmtune.config.load import dump, load_experiment
from vlmtune.config.schema import Experiment, RangeSection, SearchSection
from vlmtune.config.search_space import Choices, holds_whole_numbers, label, own_value, whole_space
from vlmtune.errors import MissingExtraError, RunFolderError
from vlmtune.runs.resume import differing_keys
from vlmtune.train.feature_files import claim

if TYPE_CHECKING:
    import optuna

JOURNAL = "trials.journal"
"""Optuna's journal storage; `optuna-dashboard` opens it too."""
_STUDY = "search"
FEWEST_FOR_IMPORTANCE = 4
_MOST_KILLS = 3

Outcome = Literal["finished", "pruned", "failed", "killed", "running", "waiting"]


@dataclass(frozen=True)
class TrialRecord:
    """The state of one trial.

    Attributes:
        outcome: `killed` is repeated as another trial; `failed` (a loss that is not finite) is not.
        point: what it varies.
        accuracy: best validation accuracy; for a pruned trial, until it was ended.
        history: validation accuracies so far.
        details: `loss`, `steps`, `seconds`, `error`, `repeat_of`, `num_validations`, where present.
    """

    number: int
    outcome: Outcome
    point: dict[str, Any]
    accuracy: float | None
    history: list[float]
    details: dict[str, Any]

    @property
    def share(self) -> float:
        """How much of its validations are done, from 0 to 1."""
        return min(1.0, len(self.history) / int(self.details.get("num_validations", 1)))

    @property
    def is_done(self) -> bool:
        """Whether it counts toward the requested trials."""
        return self.outcome in ("finished", "pruned", "failed")


class Search:
    """One search, new or continued.

    Args:
        folder: of the search; created if missing.
        experiment: as loaded, not resolved; keys that a point does not set are decided for each trial.
        resolved: with every decision made.

    Attributes:
        space: everything that is varied.

    Raises MissingExtraError without Optuna, RunFolderError where the folder holds another search or a running one.
    """

    def __init__(self, folder: Path, experiment: Experiment, resolved: Experiment) -> None:
        try:
            import optuna
        except ImportError as error:
            raise MissingExtraError("optuna", "search") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space = folder, whole_space(resolved)
        section = experiment.search or SearchSection()
        self.experiment = experiment.model_copy(
            deep=True, update={"search": section.model_copy(update={"space": self.space})}
        )
        if self.experiment.adapter.rank is None:
            self.experiment.adapter.rank = resolved.adapter.rank
        self._settings = section
        folder.mkdir(parents=True, exist_ok=True)
        self._claim = _claim_search(folder)
        self._check_same()
        self._distributions = {key: _distribution(key, choices) for key, choices in self.space.items()}
        self._study = optuna.create_study(
            storage=_storage(folder),
            study_name=_STUDY,
            direction="maximize",
            pruner=_pruner(section.pruner),
            load_if_exists=True,
        )
        self._settle(resolved)

    def _check_same(self) -> None:
        """Write the description of the search, or compare it with the stored one."""
        path = self.folder / "config.yaml"
        if not path.exists():
            path.write_text(dump(self.experiment), encoding="utf-8")
            return
        stored = load_experiment(path, must_exist=False)
        differing = differing_keys(stored, self.experiment)
        before, now = (_spaces(each) for each in (stored, self.experiment))
        differing += [
            f"search.space.{key}: {before.get(key, 'nothing')} in the search, {now.get(key, 'nothing')} now"
            for key in dict.fromkeys([*before, *now])
            if before.get(key) != now.get(key)
        ]
        if differing:
            raise RunFolderError(
                f"{self.folder}: the same command continues this search, but the experiment differs:\n  "
                + "\n  ".join(differing)
                + "\nTake the changes back, or start another search (--set name=NAME)."
            )

    def _settle(self, resolved: Experiment) -> None:
        """Begin with the experiment as it is; mark trials that died with an earlier session, to be repeated."""
        if not self._study.get_trials(deepcopy=False):
            point = {key: label(own_value(resolved, key)) for key in self.space}
            known = {key: value for key, value in point.items() if _holds(self.space[key], value)}
            self._study.enqueue_trial(known)
        for record in self.trials():
            if record.outcome == "running":
                self._repeat(record.number)

    def _repeat(self, number: int) -> None:
        from optuna.trial import TrialState

        trial = self._study.get_trials(deepcopy=False)[number]
        self._study.tell(number, state=TrialState.FAIL)
        self._study.enqueue_trial(trial.params, user_attrs={"repeat_of": number})

    def ask(self) -> tuple[int, dict[str, Any]]:
        """The next trial's number and point. Proposals depend only on the seed and the earlier trials."""
        from optuna.samplers import RandomSampler, TPESampler

        is_random = self._settings.sampler == "random"
        seed = self.experiment.seed + len(self._study.get_trials(deepcopy=False))
        self._study.sampler = RandomSampler(seed=seed) if is_random else TPESampler(seed=seed)
        trial = self._study.ask(self._distributions)
        return trial.number, self._point(trial.params)

    def kill(self, number: int) -> None:
        """Record that a trial's process died without a result: retried, and given up if it keeps dying."""
        records = self.trials()
        ends = [record for record in records if record.number == number or record.outcome == "killed"]
        same = [record for record in ends if record.point == records[number].point]
        if len(same) >= _MOST_KILLS:
            error = f"its process was killed {len(same)} times; is the memory enough for it?"
            TrialHandle.open(self.folder, number, self._settings.pruner).fail(error)
        else:
            self._repeat(number)

    def trials(self) -> list[TrialRecord]:
        """All trials, by number."""
        return [self._record(trial) for trial in self._study.get_trials(deepcopy=False)]

    @property
    def pruner(self) -> str:
        """The pruner's name in the experiment file."""
        return self._settings.pruner

    @property
    def num_done(self) -> int:
        """Trials that need not be run again."""
        return sum(record.is_done for record in self.trials())

    def importance(self) -> dict[str, float]:
        """Share of accuracy's variance that each key explains (fANOVA, Hutter et al. 2014); empty for few trials."""
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        finished = [record.accuracy for record in self.trials() if record.outcome == "finished"]
        if len(finished) < FEWEST_FOR_IMPORTANCE or len(set(finished)) < 2:
            return {}
        return dict(get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=0)))

    def close(self) -> None:
        """Let another process continue this search."""
        self._claim.close()

    def _point(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {key: _value(self.space[key], params[key]) for key in self.space if key in params}

    def _record(self, trial: optuna.trial.FrozenTrial) -> TrialRecord:
        from optuna.trial import TrialState

        outcomes: dict[TrialState, Outcome] = {
            TrialState.COMPLETE: "finished",
            TrialState.PRUNED: "pruned",
            TrialState.RUNNING: "running",
            TrialState.WAITING: "waiting",
            TrialState.FAIL: "failed" if "error" in trial.user_attrs else "killed",
        }
        history = [value for _, value in sorted(trial.intermediate_values.items())]
        accuracy = trial.value if trial.state == TrialState.COMPLETE else max(history, default=None)
        point = self._point(trial.params)
        return TrialRecord(trial.number, outcomes[trial.state], point, accuracy, history, dict(trial.user_attrs))


class TrialHandle:
    """One trial, as seen by the process that trains it."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial) -> None:
        self._study, self._trial = study, trial
        self._num_reported = 0

    @classmethod
    def open(cls, folder: Path, number: int, pruner: str) -> TrialHandle:
        """A trial that `Search.ask` has made, by its number."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(study_name=_STUDY, storage=_storage(folder), pruner=_pruner(pruner))
        return cls(study, optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id))

    def expect(self, num_validations: int) -> None:
        """Note how many validations there will be, for the search's progress."""
        self._trial.set_user_attr("num_validations", num_validations)

    def report(self, accuracy: float) -> bool:
        """Record a validation; returns whether the trial should end here."""
        self._num_reported += 1
        self._trial.report(accuracy, self._num_reported)
        return bool(self._trial.should_prune())

    def finish(self, accuracy: float, details: Mapping[str, Any], *, is_pruned: bool) -> None:
        """Record that the trial finished or was pruned."""
        from optuna.trial import TrialState

        for key, value in details.items():
            self._trial.set_user_attr(key, value)
        if is_pruned:
            self._study.tell(self._trial, state=TrialState.PRUNED)
        else:
            self._study.tell(self._trial, accuracy)

    def fail(self, error: str) -> None:
        """Record that the trial cannot be trained as configured: its loss is not finite, or it does not fit."""
        from optuna.trial import TrialState

        self._trial.set_user_attr("error", error)
        self._study.tell(self._trial, state=TrialState.FAIL)


def standing(record: TrialRecord) -> tuple[float, float, int]:
    """The ranking key of trials: accuracy, then the lower loss, then the earlier trial."""
    loss = record.details.get("loss")
    return record.accuracy or 0.0, -(loss if loss is not None else float("inf")), -record.number


def _claim_search(folder: Path) -> IO[bytes]:
    try:
        return claim(folder)
    except BlockingIOError as error:
        raise RunFolderError(f"{folder}: another process is searching here. Wait for it, or stop it first.") from error


def _storage(folder: Path) -> optuna.storages.BaseStorage:
    """The journal; its lock is a file opened exclusively, since not every drive supports links."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = str(folder / JOURNAL)
    return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))


def _spaces(experiment: Experiment) -> dict[str, Any]:
    assert experiment.search is not None
    return dict(experiment.search.model_dump()["space"])


def _distribution(key: str, choices: Choices) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(choices, RangeSection):
        return CategoricalDistribution([label(value) for value in choices])
    if holds_whole_numbers(key):
        return IntDistribution(round(choices.low), round(choices.high), log=choices.log)
    return FloatDistribution(choices.low, choices.high, log=choices.log)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if name == "median":
        return MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    return HyperbandPruner() if name == "hyperband" else NopPruner()


def _holds(choices: Choices, value: Any) -> bool:
    """Whether a label is one of the choices, or in the range."""
    if not isinstance(choices, RangeSection):
        return value in [label(choice) for choice in choices]
    return isinstance(value, int | float) and choices.low <= value <= choices.high


def _value(choices: Choices, stored: Any) -> Any:
    """The value of a label."""
    if isinstance(choices, RangeSection):
        return stored
    return next(choice for choice in choices if label(choice) == stored)
