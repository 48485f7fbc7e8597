"""How far to trust probabilities: reliability, answering only when confident, and calibration if there is one.

In: `Results`. Out: a section with sentences for users of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import betabinom

from vlmtune.report import numbers as w
from vlmtune.report.charts import Canvas, Chart, Key, Plot
from vlmtune.report.numbers import percent
from vlmtune.report.section import ColumnOf, Figures, Fold, Section, Table, limited, table
from vlmtune.report.sources import Entry, Results

NUM_CURVE_ROWS = 20
_MEASURED_ON: tuple[ColumnOf, ...] = (
    ("run", "name"),
    ("#images", lambda row: limited(row["limit"])(row["num_measured"])),
)


@dataclass(frozen=True, slots=True)
class _Bins:
    """A reliability curve: bins of equally many examples by stated probability."""

    name: str
    color: str
    limit: int | None
    bins: Sequence[Figures]


def section(results: Results) -> Section | None:
    """Reliability and risk of every evaluation with probabilities; calibrations below."""
    curves = [entry for entry in results.entries if entry.figures["reliability"]]
    if not curves:
        return None
    reliability = _reliability(curves)
    limit = " (limit)" if curves[-1].limit else ""
    calibrated = [entry for entry in results.entries if _calibration(entry)]
    lead = (
        f"Left: on the dashed line, answers stated with 80% are right 80% of the time (bins of equally many "
        f"{results.unit}s). Right: what is left wrong if only the surest answers are given."
    )
    parts = [
        Section(
            "reliability",
            "Reliability",
            chart=Chart(_draw_reliability(reliability), _legend(reliability)),
            folds=[Fold("Numbers", _reliability_table(reliability))],
        ),
        Section(
            "risk",
            f"Answering only when sure{limit}",
            chart=Chart(_draw_risk(curves), _legend(curves)),
            folds=[Fold("Numbers", _risk_table(curves))],
        ),
    ]
    if calibrated:
        parts += _calibration_parts(calibrated)
    return Section("confidence", "Confidence", [lead], parts=parts, is_grid=True)


def _legend(entries: Sequence[Entry | _Bins]) -> list[Key]:
    return [Key(entry.color, entry.name) for entry in entries] if len(entries) > 1 else []


def _calibration(entry: Entry) -> Figures:
    """The result of `evaluate.calibration.calibrate`; empty if there is none."""
    return entry.evaluation.facts.get("calibration") or {}


def _reliability(entries: Sequence[Entry]) -> list[_Bins]:
    """The first and the last curve, since more would tangle; and the last with its temperature if it has one."""
    ends = list(entries) if len(entries) < 2 else [entries[0], entries[-1]]
    curves = [_Bins(entry.name, entry.color, entry.limit, entry.figures["reliability"]) for entry in ends]
    last, fitted = ends[-1], _calibration(ends[-1])
    if fitted:
        name = f"{last.name}, temperature {w.number(fitted['temperature'], 2)}"
        curves.append(_Bins(name, "s3", last.limit, fitted["reliability"]))
    return curves


def _draw_reliability(curves: Sequence[_Bins]) -> Canvas:
    """Accuracy against confidence."""
    plot = Plot("Accuracy against stated confidence", (0, 1), (0, 1), height=330)
    plot.axes("stated probability", "share right", lambda v: percent(v, 0), lambda v: percent(v, 0))
    plot.curve([(0, 0), (1, 1)], "ideal")
    for curve in curves:
        plot.curve([(b["confidence"], b["accuracy"]) for b in curve.bins], f"curve thin {curve.color}")
        for b in curve.bins:
            if b["accuracy_interval"]:
                low, high = b["accuracy_interval"]
                plot.whisker(b["confidence"], low, high, f"error {curve.color}")
            title = f"{b['count']} answers: stated {percent(b['confidence'])}, right {percent(b['accuracy'])}"
            plot.dot(b["confidence"], b["accuracy"], 3.6, f"dot {curve.color}", title)
    return plot.canvas


def _reliability_table(curves: Sequence[_Bins]) -> Table:
    columns: list[ColumnOf] = [
        ("run", "name"),
        ("#answers", lambda row: limited(row["limit"])(row["count"])),
        ("#stated", "confidence", percent),
        ("#right", "accuracy", percent),
        ("~95% interval", "accuracy_interval", w.interval),
    ]
    return table([{"name": c.name, "limit": c.limit, **b} for c in curves for b in c.bins], columns)


def _draw_risk(entries: Sequence[Entry]) -> Canvas:
    """Share wrong among the most confident answers."""
    curves = [(entry.color, entry.figures["risk_coverage"]) for entry in entries]
    highest = max(max(curve["risk"]) for _, curve in curves)
    plot = Plot("Share wrong against share answered", (0, 1), (0, max(0.02, highest * 1.08)), height=330)
    digits = 0 if highest > 0.05 else 1
    plot.axes("share answered, surest first", "share wrong", lambda v: percent(v, 0), lambda v: percent(v, digits))
    for color, curve in curves:
        plot.curve(list(zip(curve["coverage"], curve["risk"], strict=True)), f"curve {color}")
    return plot.canvas


def _risk_table(entries: Sequence[Entry]) -> Table:
    """The share wrong among the most confident answers, at about twenty shares."""
    rows = []
    for entry in entries:
        figures = entry.figures["risk_coverage"]
        curve = list(zip(figures["coverage"], figures["risk"], strict=True))
        step = max(1, len(curve) // NUM_CURVE_ROWS)  # counted from the end, so that "all answered" is included
        rows += [{"name": entry.name, "coverage": x, "risk": y} for x, y in curve[::-1][::step][::-1]]
    columns: list[ColumnOf] = [
        ("run", "name"),
        ("#answered", "coverage", percent),
        ("#wrong among them", "risk", percent),
    ]
    return table(rows, columns)


# ── calibration ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _calibration_parts(entries: Sequence[Entry]) -> list[Section]:
    last = entries[-1]
    figures = _calibration(last)
    sets = _set_sentences(figures["conformal"], figures["num_validation"], last.row["num_measured"])
    abstention = _abstention_sentences(last.name, figures["abstention"])
    return [
        Section("temperature", "Temperature", _temperature_sentences(figures), table=_temperature_table(entries)),
        Section("label-sets", "Sets of labels", sets, table=_set_table(entries)),
        Section("abstaining", "Abstaining", abstention, table=_abstention_table(entries)),
    ]


def _temperature_sentences(figures: Figures) -> list[str]:
    value = figures["temperature"]
    meaning = "it was too sure of itself" if value > 1 else "it was surer than it said"
    outcome = "improves" if figures["nll_after"] < figures["nll_before"] else "does not improve"
    return [
        f"The best temperature on {w.count(figures['num_validation'])} validation images is {w.number(value, 2)}: "
        f"there {meaning}.",
        f"On these images it {outcome} the loss ({w.number(figures['nll_before'])} to "
        f"{w.number(figures['nll_after'])}; calibration error {percent(figures['ece_before'])} to "
        f"{percent(figures['ece_after'])}). No prediction changes.",
    ]


def _rows(entries: Sequence[Entry], key: str = "") -> list[Figures]:
    """A row for each calibration, or for its entries under ``key``, with what it was measured on."""
    return [{**entry.row, **(_calibration(entry)[key] if key else _calibration(entry))} for entry in entries]


def _temperature_table(entries: Sequence[Entry]) -> Table:
    columns: list[ColumnOf] = [
        *_MEASURED_ON,
        ("#fitted on", "num_validation", w.count),
        ("#temperature", "temperature", w.number),
        ("#NLL before", "nll_before", w.number),
        ("#after", "nll_after", w.number),
        ("#ECE before", "ece_before", percent),
        ("#after", "ece_after", percent),
    ]
    return table(_rows(entries), columns)


def _set_sentences(conformal: Figures, num_validation: int, num_examples: int) -> list[str]:
    coverage = conformal["wanted_coverage"]
    low, high = expected_coverage(num_validation, num_examples, coverage)
    sentences = [f"Instead of one label, as many as it takes to hold the true one {percent(coverage, 0)} of the time."]
    for method, name in (("lac", "the smallest sets (LAC)"), ("aps", "sets that adapt to each image (APS)")):
        figures = conformal[method]
        if figures["threshold"] is None:
            sentences.append(f"For {name} there are too few validation images: every label is in every set.")
            continue
        held = (
            f"{percent(figures['coverage'])} of {name} do, with {w.number(figures['mean_size'], 2)} labels on average"
        )
        if figures["coverage"] < low:
            held += f": fewer than chance explains (from {percent(low)} on), so these images differ from validation"
        sentences.append(f"{held}.")
    sentences.append(
        f"With {w.count(num_validation)} validation images, a promise of {percent(coverage, 0)} means "
        f"{percent(low)} to {percent(high)}; more of them narrow it."
    )
    return sentences


def expected_coverage(num_validation: int, num_examples: int, wanted: float) -> tuple[float, float]:
    """The middle 95 % of coverage on a test of this size, where the threshold came from ``num_validation`` images.

    Beta-binomial (Angelopoulos and Bates 2021, arXiv 2107.07511, section 3.2): the promise is kept on average over
    validation sets; this one may be a lucky or an unlucky one.
    """
    above = math.floor((num_validation + 1) * (1 - wanted) + 1e-9)
    spread = betabinom(num_examples, num_validation + 1 - above, max(1, above))
    return float(spread.ppf(0.025)) / num_examples, float(spread.ppf(0.975)) / num_examples


def _set_table(entries: Sequence[Entry]) -> Table:
    """Conformal sets: how often they hold the truth, and how many labels that takes."""
    rows = [
        {**row, "method": method.upper() + too_few, **row[method]}
        for row in _rows(entries, "conformal")
        for method in ("lac", "aps")
        for too_few in ["" if row[method]["threshold"] is not None else " (too few validation images)"]
    ]
    columns: list[ColumnOf] = [
        *_MEASURED_ON,
        ("method", "method"),
        ("#promised", "wanted_coverage", lambda share: percent(share, 0)),
        ("#holds the truth", "coverage", percent),
        ("~95% interval", "coverage_interval", w.interval),
        ("#labels in a set", "mean_size", lambda size: w.number(size, 2)),
        ("#sets of one label", "single_share", percent),
    ]
    return table(rows, columns)


def _abstention_sentences(name: str, figures: Figures) -> list[str]:
    precision = percent(figures["wanted_precision"], 0)
    if figures["threshold"] is None:
        return [f"No threshold on validation makes {precision} of the answers right."]
    return [
        f"Answering only when {name} states {percent(figures['threshold'])} or more (fitted for {precision} right), it "
        f"answers {percent(figures['answered_share'])} of the images and is right on "
        f"{percent(figures['precision'])} of those (95% interval {w.interval(figures['precision_interval'])})."
    ]


def _abstention_table(entries: Sequence[Entry]) -> Table:
    """Abstaining below a threshold: how much is answered, and how much of that is right."""
    columns: list[ColumnOf] = [
        *_MEASURED_ON,
        ("#aimed at", "wanted_precision", lambda share: percent(share, 0)),
        ("#answer from", "threshold", lambda share: "none reaches it" if share is None else percent(share)),
        ("#answered", "answered_share", percent),
        ("#right among them", "precision", percent),
        ("~95% interval", "precision_interval", w.interval),
    ]
    return table(_rows(entries, "abstention"), columns)
