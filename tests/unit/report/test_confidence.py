"""What a calibration promises, in words."""

from __future__ import annotations

import numpy as np
import pytest

from tests.synthetic_runs import in_memory, random_table
from vlmtune.evaluate.calibration import calibrate
from vlmtune.report.confidence import expected_coverage, section
from vlmtune.report.sources import gather

pytestmark = pytest.mark.unit


def test_calibration_of_an_earlier_run_is_shown() -> None:
    validation = random_table(num=100, data_seed=1)
    ids = [[f"validation/{row}" for row in range(100)]]
    validation = type(validation)(validation.rows.set_column(0, "id", ids), validation.spaces, validation.seconds)
    figures = calibrate(validation, random_table())
    first = in_memory("baseline", random_table(), calibration=figures)
    found = section(gather("t", [first, in_memory("tuned", random_table(skill=6.0, seed=2))], []))
    assert found is not None
    parts = {part.id: part for part in found.parts}
    assert f"{figures['temperature']:.2f}" in parts["temperature"].sentences[0]
    assert {"label-sets", "abstaining"} <= parts.keys()


def test_no_probabilities_no_section() -> None:
    assert section(gather("t", [in_memory("e", random_table(has_probabilities=False))], [])) is None


def test_promised_coverage_narrows_with_validation_images() -> None:
    few, many = expected_coverage(50, 1000, 0.9), expected_coverage(5000, 1000, 0.9)
    assert few[0] < many[0] < 0.9 < many[1] < few[1]
    # Simulated: thresholds from 100 exchangeable scores, coverage of 400 others.
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random((2000, 100)), axis=1)
    threshold = scores[:, int(np.ceil(101 * 0.9)) - 1]
    coverage = (rng.random((2000, 400)) <= threshold[:, None]).mean(axis=1)
    low, high = expected_coverage(100, 400, 0.9)
    assert ((low <= coverage) & (coverage <= high)).mean() == pytest.approx(0.95, abs=0.02)
