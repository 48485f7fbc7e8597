"""Numbers and findings in plain words: what is significant, what is not, and where a model fails."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

FEW_IMAGES = 200
GOOD_CALIBRATION = 0.03
NUM_WEAK = 3


def percent(value: float | None, digits: int = 1) -> str:
    """0.987 -> "98.7%"; "–" where there is no number."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign: 0.431 -> "+43.1"."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(pair: Sequence[float] | None) -> str:
    """[0.97, 0.99] -> "97.0 to 99.0%"."""
    return "–" if pair is None else f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}%"


def points_interval(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"{points(pair[0])} to {points(pair[1])}"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """0.0123 -> "+0.012"."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """12345 -> "12,345"."""
    return "–" if value is None else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def duration(seconds: float | None) -> str:
    """95 -> "1 min 35 s"."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def per_image(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def shortened(name: str, most: int) -> str:
    """A name as a chart has room for."""
    return name if len(name) <= most else name[: most - 1] + "…"


def plain(value: str) -> str:
    """Text that reads as itself in Markdown: it can break no table and start no tag, link or emphasis."""
    return re.sub(r"([\\|\[\]*`])", r"\\\1", " ".join(str(value).split())).replace("<", "&lt;")


def counted(amount: int, one: str, many: str | None = None) -> str:
    """3, "image" -> "3 images"."""
    return f"{count(amount)} {plural(amount, one, many)}"


def summary(runs: Sequence[dict[str, Any]], comparison: dict[str, Any] | None, main: dict[str, Any]) -> list[str]:
    """The report's opening, one sentence an entry.

    Args:
        runs: {"name", "is_baseline", "metrics", "limit", "split"} in the order shown; the last one is the subject.
        comparison: what `compare` returned for these runs, or None for a single run.
        main: the figures of the last run.
    """
    last = runs[-1]
    sentences = [_accuracy_sentence(last, main)]
    if comparison:
        sentences += [_pair_sentence(pair, runs) for pair in _told_pairs(comparison["pairs"], runs)]
        sentences.append(_class_change_sentence(pair_against_first(comparison["pairs"], runs)))
    sentences += [_weak_classes_sentence(main), _calibration_sentence(main), *_caveats(last, main)]
    return [sentence for sentence in sentences if sentence]


def _accuracy_sentence(run: dict[str, Any], figures: dict[str, Any]) -> str:
    where = f" {run['split']}" if run.get("split") else ""
    return (
        f"On {count(figures['num_examples'])}{where} images in {len(figures['per_class'])} classes, "
        f"{run['name']} is right on {percent(figures['accuracy'])} "
        f"(95% interval {interval(figures['accuracy_interval'])})."
    )


def headline(runs: Sequence[dict[str, Any]], comparison: dict[str, Any] | None) -> dict[str, Any] | None:
    """The page's large figures: accuracy of the last run, its change against the first."""
    if not runs:
        return None
    told = {
        "accuracy": percent(runs[-1]["accuracy"]),
        "interval": interval(runs[-1]["accuracy_interval"]),
        "change": None,
    }
    if comparison:
        pair = pair_against_first(comparison["pairs"], runs)
        told["change"] = points(pair["difference"])
        told["against"] = runs[0]["name"]
        told["verdict"] = "significant" if pair["is_significant"] else "not significant"
        told["p"] = p_value(pair["p_holm"])
    return told


def _told_pairs(pairs: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last run against the first, then each run against the one before it: a story, not a table."""
    names = [run["name"] for run in runs]
    wanted = [(names[0], names[-1])]
    if len(names) > 2:
        wanted += list(pairwise(names[1:]))[-2:]
    by_names = {(pair["first"], pair["second"]): pair for pair in pairs}
    return [by_names[pair] for pair in wanted]


def pair_against_first(pairs: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The paired test of the last run against the first."""
    return next(p for p in pairs if p["first"] == runs[0]["name"] and p["second"] == runs[-1]["name"])


def _pair_sentence(pair: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    baseline = next((run["name"] for run in runs if run.get("is_baseline")), None)
    first = (
        f"the base model ({percent(_accuracy(runs, pair['first']))})" if pair["first"] == baseline else pair["first"]
    )
    change, p = pair["difference"], p_value(pair["p_holm"])
    span = f"95% interval {points_interval(pair['difference_interval'])}"
    flipped = f"{count(pair['only_second'])} images became right, {count(pair['only_first'])} became wrong"
    if not pair["is_significant"]:
        return (
            f"Against {first}, {pair['second']} differs by {points(change)} points ({span}; {p}): "
            f"not significant, so these images do not tell which is better ({flipped})."
        )
    direction = "better" if change > 0 else "worse"
    return (
        f"Against {first}, {pair['second']} is significantly {direction}: "
        f"{points(change)} points ({span}; {p}); {flipped}."
    )


def _accuracy(runs: Sequence[dict[str, Any]], name: str) -> float:
    return float(next(run for run in runs if run["name"] == name)["metrics"]["accuracy"])


def _class_change_sentence(pair: dict[str, Any]) -> str:
    better = [c["label"] for c in pair["classes_gained"] if c["is_significant"]]
    worse = [c["label"] for c in pair["classes_lost"] if c["is_significant"]]
    won = (
        f"{len(better)} {plural(len(better), 'class')} gained significantly"
        if better
        else "No class gained significantly"
    )
    lost = f"{listed(worse)} lost significantly" if worse else "none lost significantly"
    if not better and not worse:
        return "Taken one by one, no class changed significantly."
    return f"Taken one by one, {won[0].lower() + won[1:]}, {lost}."


def _weak_classes_sentence(figures: dict[str, Any]) -> str:
    weak = [entry for entry in figures["per_class"] if entry["support"] and entry["recall"] < 1]
    if not weak:
        return "No image of any class was missed."
    weak.sort(key=lambda entry: entry["recall"])
    told = [f"{e['label']} ({e['correct']} of {e['support']})" for e in weak[:NUM_WEAK]]
    return f"It is weakest on {listed(told)}."


def _calibration_sentence(figures: dict[str, Any]) -> str:
    if figures.get("ece") is None:
        return ""
    if figures["ece"] <= GOOD_CALIBRATION:
        return (
            f"What it states as probabilities fits how often it is right (calibration error {percent(figures['ece'])})."
        )
    gap = figures["mean_confidence"] - figures["accuracy"]
    if abs(gap) < figures["ece"] / 3:
        return f"Its probabilities are off in both directions (calibration error {percent(figures['ece'])})."
    tendency = "too confident" if gap > 0 else "too cautious"
    return (
        f"Its probabilities are {tendency}: it states {percent(figures['mean_confidence'])} on average "
        f"(calibration error {percent(figures['ece'])})."
    )


def _caveats(run: dict[str, Any], figures: dict[str, Any]) -> list[str]:
    told = []
    if figures["num_unreadable"]:
        amount = figures["num_unreadable"]
        told.append(
            f"{amount} {plural(amount, 'image')} could not be read and {plural(amount, 'counts', 'count')} as wrong."
        )
    if run.get("limit"):
        told.append(f"Only {count(run['limit'])} images were measured, by request (limit), not the whole split.")
    if figures["num_examples"] < FEW_IMAGES:
        told.append("So few images leave wide intervals: measure more before deciding on small differences.")
    return told


def listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def plural(amount: int, one: str, many: str | None = None) -> str:
    return one if amount == 1 else many or (f"{one}es" if one.endswith("s") else f"{one}s")
