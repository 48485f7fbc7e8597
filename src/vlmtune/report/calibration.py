"""What temperature, label sets and abstention mean for who uses the model, in words."""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import betabinom

from vlmtune.report import numbers as w


def findings(run: dict[str, Any]) -> dict[str, list[str]]:
    """Sentences on one evaluation whose ``calibration`` is what `evaluate.calibration.calibrate` gave."""
    figures = run["calibration"]
    return {
        "temperature": _temperature(figures),
        "sets": _sets(figures["conformal"], figures["num_validation"], run["num_examples"]),
        "abstention": _abstention(run["name"], figures["abstention"]),
    }


def _temperature(figures: dict[str, Any]) -> list[str]:
    value = figures["temperature"]
    meaning = "it was too sure of itself" if value > 1 else "it was surer than it said"
    helps = figures["nll_after"] < figures["nll_before"]
    outcome = "improves" if helps else "does not improve"
    return [
        f"The best temperature on {w.count(figures['num_validation'])} validation images is {w.number(value, 2)}: "
        f"there {meaning}.",
        f"On these images it {outcome} the loss ({w.number(figures['nll_before'])} to "
        f"{w.number(figures['nll_after'])}; calibration error {w.percent(figures['ece_before'])} to "
        f"{w.percent(figures['ece_after'])}). "
        "No prediction changes.",
    ]


def _sets(conformal: dict[str, Any], num_validation: int, num_examples: int) -> list[str]:
    wanted = conformal["wanted_coverage"]
    low, high = expected_coverage(num_validation, num_examples, wanted)
    sentences = [f"Instead of one label, as many as it takes to hold the true one {w.percent(wanted, 0)} of the time."]
    for method, name in (("lac", "the smallest sets (LAC)"), ("aps", "sets that adapt to each image (APS)")):
        figures = conformal[method]
        if figures["threshold"] is None:
            sentences.append(f"For {name} there are too few validation images: every label is in every set.")
            continue
        held = (
            f"{w.percent(figures['coverage'])} of {name} do, with {w.number(figures['mean_size'], 2)} labels on average"
        )
        if figures["coverage"] < low:
            held += f": fewer than chance explains (from {w.percent(low)} on), so these images differ from validation"
        sentences.append(f"{held}.")
    sentences.append(
        f"With {w.count(num_validation)} validation images, a promise of {w.percent(wanted, 0)} means "
        f"{w.percent(low)} to {w.percent(high)}; more of them narrow it."
    )
    return sentences


def expected_coverage(num_validation: int, num_examples: int, wanted: float) -> tuple[float, float]:
    """The middle 95 % of coverage on a test of this size, where the threshold came from so many validation images.

    Beta-binomial (Angelopoulos and Bates 2021, arXiv 2107.07511, section 3.2): the promise is kept on average over
    validation sets; this one may be a lucky or an unlucky one.
    """
    above = math.floor((num_validation + 1) * (1 - wanted) + 1e-9)
    spread = betabinom(num_examples, num_validation + 1 - above, max(1, above))
    return float(spread.ppf(0.025)) / num_examples, float(spread.ppf(0.975)) / num_examples


def _abstention(name: str, figures: dict[str, Any]) -> list[str]:
    wanted = w.percent(figures["wanted_precision"], 0)
    if figures["threshold"] is None:
        return [f"No threshold on validation makes {wanted} of the answers right."]
    return [
        f"Answering only when {name} states {w.percent(figures['threshold'])} or more (fitted for {wanted} right), it "
        f"answers {w.percent(figures['answered_share'])} of the images and is right on "
        f"{w.percent(figures['precision'])} of those (95% interval {w.interval(figures['precision_interval'])})."
    ]
