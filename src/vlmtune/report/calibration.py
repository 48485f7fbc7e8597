"""What temperature, label sets and abstention mean for who uses the model, in words."""

from __future__ import annotations

from typing import Any

from vlmtune.report import wording as w


def findings(run: dict[str, Any]) -> dict[str, list[str]]:
    """Sentences on one evaluation whose ``calibration`` is what `evaluate.calibration.calibrate` gave."""
    figures = run["calibration"]
    return {
        "temperature": _temperature(figures),
        "sets": _sets(figures["conformal"]),
        "abstention": _abstention(run["name"], figures["abstention"]),
    }


def _temperature(figures: dict[str, Any]) -> list[str]:
    value = figures["temperature"]
    meaning = "it was too sure of itself" if value > 1 else "it was surer than it said"
    helps = figures["nll_after"] < figures["nll_before"]
    outcome = "improves" if helps else "does not improve"
    return [
        f"The best temperature on {w.count(figures['num_validation'])} validation pictures is {w.number(value, 2)}: "
        f"there {meaning}.",
        f"On these pictures it {outcome} the loss ({w.number(figures['nll_before'])} to "
        f"{w.number(figures['nll_after'])}; calibration error {w.percent(figures['ece_before'])} to "
        f"{w.percent(figures['ece_after'])}). "
        "No prediction changes.",
    ]


def _sets(conformal: dict[str, Any]) -> list[str]:
    wanted = w.percent(conformal["wanted_coverage"], 0)
    sentences = [f"Instead of one label, as many as are needed to hold the true one {wanted} of the time."]
    for method, name in (("lac", "the smallest sets (LAC)"), ("aps", "sets that adapt to each picture (APS)")):
        figures = conformal[method]
        if figures["threshold"] is None:
            sentences.append(f"For {name} there are too few validation pictures: every label is in every set.")
            continue
        low, high = figures["coverage_interval"]
        if low > conformal["wanted_coverage"]:
            kept = "more than promised"
        elif high < conformal["wanted_coverage"]:
            kept = "less than promised"
        else:
            kept = "as promised"
        sentences.append(
            f"With {name}, {w.percent(figures['coverage'])} do ({kept}), by {w.number(figures['mean_size'], 2)} labels "
            "on average."
        )
    return sentences


def _abstention(name: str, figures: dict[str, Any]) -> list[str]:
    wanted = w.percent(figures["wanted_precision"], 0)
    if figures["threshold"] is None:
        return [f"No threshold on validation makes {wanted} of the answers right."]
    return [
        f"Answering only when {name} states {w.percent(figures['threshold'])} or more (fitted for {wanted} right), it "
        f"answers {w.percent(figures['answered_share'])} of the pictures and is right on "
        f"{w.percent(figures['precision'])} of those (95% interval {w.interval(figures['precision_interval'])})."
    ]
