"""The opening says significant only when it is, and what limits the figures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic_runs import random_table
from tests.unit.report.conftest import ResultsOf
from vlmtune.evaluate.table import PredictionTable
from vlmtune.report.accuracy import headlines, pairs_table, runs_table, summary

pytestmark = pytest.mark.unit


def sharpened(table: PredictionTable, power: float) -> PredictionTable:
    """The same answers, stated more surely."""
    assert table.closed is not None and table.closed.log_probs is not None
    log_probs = np.array(table.closed.log_probs) * power
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    columns = {name: table.texts(name) for name in ("id", "truth", "prediction", "score")}
    return PredictionTable.from_columns(
        table.spaces, **columns, log_probs=log_probs.astype(np.float32), seconds=table.seconds
    )


def test_summary_says_significant_only_when_it_is(results_of: ResultsOf) -> None:
    weak, strong, same = (random_table(num=400, skill=k, seed=s) for k, s in ((2.0, 1), (4.0, 2), (2.0, 3)))
    assert "significantly better" in " ".join(summary(results_of(weak, strong)))
    assert "significantly worse" in " ".join(summary(results_of(strong, weak)))
    text = " ".join(summary(results_of(weak, same)))
    assert "not significant" in text and "significantly better" not in text and "significantly worse" not in text


def test_summary_tells_limits_small_samples_and_overconfidence(results_of: ResultsOf) -> None:
    data = {"source": "s", "split": "test", "limit": 50}
    text = " ".join(summary(results_of(random_table(num=50, skill=2.0), data=data)))
    assert "Only 50 images" in text
    assert "wide intervals" in text
    sure = sharpened(random_table(num=500, skill=2.0), 8)
    assert "too confident" in " ".join(summary(results_of(sure)))


def test_headline_is_the_last_run_against_the_first(results_of: ResultsOf) -> None:
    results = results_of(random_table(skill=1.0, seed=1), random_table(skill=6.0, seed=2))
    score, change = headlines(results)
    assert "tuned" in score.caption and change.verdict == "significant" and change.number.startswith("+")
    assert "points against base" in change.caption


def test_tables_have_a_row_for_each_run_and_pair(results_of: ResultsOf) -> None:
    results = results_of(random_table(skill=1.0, seed=1), random_table(skill=6.0, seed=2))
    assert results.comparison is not None
    assert [row[0] for row in runs_table([entry.row for entry in results.entries]).texts()] == ["base", "tuned"]
    pairs = pairs_table(results.comparison)
    assert pairs.texts()[0][0] == "base → tuned" and "McNemar mid-p, Holm" in pairs.head()
