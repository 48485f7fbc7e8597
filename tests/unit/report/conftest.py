"""Runs and results that several tests of the report read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.synthetic_runs import in_memory, random_table, write_evaluation, write_run
from vlmtune.evaluate.table import PredictionTable
from vlmtune.report.render import render
from vlmtune.report.sources import Results, gather

ResultsOf = Callable[..., Results]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered run with the base model's evaluation and its own; two images could not be read."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "digits", "digits")
    for seed, (name, skill) in enumerate((("base", 1.5), ("fine-tuned", 5.0))):
        table = random_table(num=120, skill=skill, seed=seed, num_unreadable=2)
        write_evaluation(folder / "evaluation" / f"test-{name}", name, table)
    render(folder)
    return folder


@pytest.fixture(scope="session")
def results_of() -> ResultsOf:
    """Tables -> the results of a report, in their order."""

    def build(*tables: PredictionTable, names: Sequence[str] = ("base", "tuned"), **facts: Any) -> Results:
        evaluations = [in_memory(name, table, **facts) for name, table in zip(names, tables, strict=False)]
        return gather("t", evaluations, [])

    return build
