"""Trials on disk: what comes first, what is repeated, what is pruned, who may open them; and what is told of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vlmtune.config import defaults
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.workflows.trials import Search, TrialHandle, TrialRecord, standing

pytestmark = pytest.mark.unit


def experiment(**search: Any) -> Experiment:
    return Experiment.model_validate({"name": "e", "adapter": {"rank": 8}, "search": search or None})


def open_search(folder: Path, wanted: Experiment | None = None) -> Search:
    wanted = wanted or experiment()
    return Search(folder, wanted, defaults.apply(wanted, num_train=129, num_labels=10))


def handle(search: Search, number: int) -> TrialHandle:
    return TrialHandle.open(search.folder, number, search.pruner)


def run_trial(search: Search, accuracy: float) -> dict[str, Any]:
    number, point = search.ask()
    handle(search, number).finish(accuracy, {"loss": 1.0, "steps": 4, "seconds": 2.0}, is_pruned=False)
    return point


def test_the_first_trial_is_the_experiment_as_it_is(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    number, point = search.ask()
    assert number == 0
    assert point["adapter.rank"] == 8 and point["train.learning_rate"] == 2e-3
    assert point["adapter.targets"] == ["attention", "mlp", "conv", "connector"]


def test_a_trial_that_died_is_marked_and_repeated(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    run_trial(search, 0.5)
    number, lost = search.ask()
    search.close()  # as a killed process leaves it
    again = open_search(tmp_path)
    assert [record.outcome for record in again.trials()] == ["finished", "killed", "waiting"]
    assert again.num_done == 1
    repeated, point = again.ask()
    assert (repeated, point) == (2, lost)
    handle(again, repeated).finish(0.6, {}, is_pruned=False)
    assert again.trials()[2].details == {"repeat_of": number}
    assert again.num_done == 2


def test_a_continued_search_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = open_search(tmp_path / "whole")
    expected = [run_trial(whole, 0.1 * index) for index in range(12)]
    search = open_search(tmp_path / "cut")
    found = [run_trial(search, 0.1 * index) for index in range(7)]
    search.close()
    search = open_search(tmp_path / "cut")
    found += [run_trial(search, 0.1 * index) for index in range(7, 12)]
    assert found == expected
    assert len({str(point) for point in found}) > 10


def test_killed_trials_are_repeated_and_failed_ones_are_not(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    number, _ = search.ask()
    handle(search, number).fail("The loss is not finite")
    assert search.num_done == 1
    point = None
    for _ in range(3):
        number, again = search.ask()
        assert point in (None, again)
        point = again
        search.kill(number)
    assert [record.outcome for record in search.trials()] == ["failed", "killed", "killed", "failed"]
    assert "killed 3 times" in search.trials()[-1].details["error"]


def test_a_trial_far_behind_the_others_is_pruned(tmp_path: Path) -> None:
    search = open_search(tmp_path)

    def validate(accuracy: float) -> list[bool]:
        number, _ = search.ask()
        trial = handle(search, number)
        verdicts = [trial.report(accuracy) for _ in range(5)]
        trial.finish(accuracy, {}, is_pruned=verdicts[-1])
        return verdicts

    for accuracy in (0.6, 0.7, 0.8, 0.7):
        assert not any(validate(accuracy))
    assert validate(0.1) == [False, True, True, True, True]  # not by the first validation
    assert not any(validate(0.9))
    assert [record.outcome for record in search.trials()][-2:] == ["pruned", "finished"]
    assert search.trials()[-2].accuracy == 0.1


def test_no_pruner_ends_nothing(tmp_path: Path) -> None:
    search = open_search(tmp_path, experiment(pruner="none"))
    for accuracy in (0.8, 0.8, 0.8, 0.8, 0.8, 0.0):
        number, _ = search.ask()
        trial = handle(search, number)
        assert not any(trial.report(accuracy) for _ in range(5))
        trial.finish(accuracy, {}, is_pruned=False)


def test_a_folder_holds_one_search_by_one_process(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    with pytest.raises(RunFolderError, match="another process is searching here"):
        open_search(tmp_path)
    search.close()
    changed = experiment()
    changed.train.epochs = 3
    with pytest.raises(RunFolderError, match=r"train\.epochs: nothing in the run, 3\.0 now"):
        open_search(tmp_path, changed)
    with pytest.raises(RunFolderError, match=r"search\.space\.adapter\.rank"):
        open_search(tmp_path, experiment(space={"adapter.rank": [2, 4]}))


def test_whole_numbers_stay_whole_in_a_range(tmp_path: Path) -> None:
    search = open_search(tmp_path, experiment(space={"adapter.rank": {"low": 2, "high": 64, "log": True}}))
    ranks = [run_trial(search, 0.5)["adapter.rank"] for _ in range(6)]
    assert all(isinstance(rank, int) and 2 <= rank <= 64 for rank in ranks) and len(set(ranks)) > 1


def test_importance_goes_to_the_key_that_decides(tmp_path: Path) -> None:
    search = open_search(tmp_path)
    assert search.importance() == {}
    for _ in range(12):
        number, point = search.ask()
        accuracy = {4: 0.2, 8: 0.5, 16: 0.6, 32: 0.9}[point["adapter.rank"]]
        handle(search, number).finish(accuracy, {}, is_pruned=False)
    shares = search.importance()
    assert max(shares, key=lambda key: shares[key]) == "adapter.rank"
    assert shares["adapter.rank"] > 0.6 and sum(shares.values()) == pytest.approx(1)


def test_ties_go_to_the_lower_loss_then_the_earlier() -> None:
    first = TrialRecord(1, "finished", {}, 0.9, [], {"loss": 0.5})
    lower = dataclasses.replace(first, number=2, details={"loss": 0.4})
    later = dataclasses.replace(first, number=3)
    assert sorted([later, first, lower], key=standing, reverse=True) == [lower, first, later]
