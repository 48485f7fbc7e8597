"""A search in words, as a table, as search.json, search.md and charts/*.png. Called by `vlmtune search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmtune.evaluate.statistics import SIGNIFICANCE, wilson_interval
from vlmtune.report import numbers as w
from vlmtune.report import png
from vlmtune.report.files import write_json, write_text
from vlmtune.report.table import Cell, Table, table, without_empty

FEW_FOR_IMPORTANCE = 20


def write_search(folder: Path, search: dict[str, Any]) -> Path:
    """Write the files of a search; returns the path of search.md.

    Args:
        search: ``name``; ``keys``; ``trials``, the best first (number, outcome, point, accuracy, loss, steps, seconds,
            error, repeat_of); ``best``: a trial's number or None; ``baseline``: that of the experiment as it was;
            ``num_validation``; ``num_planned``; ``importance``: key -> share; ``against``: the runner-up, or None.
    """
    charts = folder / "charts"
    charts.mkdir(parents=True, exist_ok=True)
    told = findings(search)
    write_json(folder / "search.json", {**search, "findings": told})
    parts = [f"# Search: {w.plain(search['name'])}", " ".join(w.plain(sentence) for sentence in told)]
    if any(trial["accuracy"] is not None for trial in search["trials"]):
        png.search_history(charts / "history.png", search)
        parts.append("![Validation accuracy by trial](charts/history.png)")
    parts.append(trial_table(search).markdown())
    if search["importance"]:
        png.search_importance(charts / "importance.png", search["importance"])
        parts += [
            "## What mattered",
            "![Importance of each key](charts/importance.png)",
            w.plain(_importance_sentence(search)),
        ]
    write_text(folder / "search.md", "\n\n".join(parts) + "\n")
    return folder / "search.md"


def findings(search: dict[str, Any]) -> list[str]:
    """What was found and how sure that is, in sentences."""
    outcomes = [trial["outcome"] for trial in search["trials"]]
    counts = {name: outcomes.count(name) for name in ("finished", "pruned", "failed", "killed")}
    others = [f"{counts[name]} {name}" for name in ("pruned", "failed") if counts[name]]
    killed = f"; {w.counted(counts['killed'], 'trial')} killed and repeated" if counts["killed"] else ""
    trained = f"{w.counted(counts['finished'], 'trial')} trained to the end"
    sentences = [f"{', '.join([trained, *others])}{killed}."]
    best = next((trial for trial in search["trials"] if trial["number"] == search["best"]), None)
    if best is None:
        return [*sentences, "No trial was trained to the end, so there is no best configuration."]
    sentences.append(
        f"The best, trial {best['number']}, is right on {w.percent(best['accuracy'])} of "
        f"{w.count(search['num_validation'])} validation images (95% interval "
        f"{w.interval(accuracy_interval(best, search))}): {_point(best)}."
    )
    baseline = next((trial for trial in search["trials"] if trial["number"] == search["baseline"]), None)
    if baseline is best:
        sentences.append("That is the experiment as it was: nothing tried was better.")
    elif baseline is not None and baseline["outcome"] == "finished":
        gain = best["accuracy"] - baseline["accuracy"]
        sentences.append(f"The experiment as it was has {w.percent(baseline['accuracy'])} ({w.points(gain)} points).")
    sentences += _against(search)
    left = search["num_planned"] - sum(counts[name] for name in ("finished", "pruned", "failed"))
    if left > 0:
        sentences.append(f"{w.counted(left, 'trial')} of {search['num_planned']} left: run the command again to go on.")
    return sentences


def _against(search: dict[str, Any]) -> list[str]:
    """How far the best stands from the runner-up, and what the choice of the best does to its figure."""
    warning = (
        f"The best of {len(search['trials'])} measurements on the same images is partly the luckiest: only the test "
        "split, which no trial saw, says how good it is."
    )
    against = search["against"]
    if against is None:
        return [warning]
    told = (
        f"Against trial {against['runner_up']}, the runner-up, it differs by {w.points(against['difference'])} points "
        f"on the same images (95% interval {w.points_interval(against['interval'])}; {w.p_value(against['p_value'])})"
    )
    if against["p_value"] < SIGNIFICANCE:
        return [f"{told}: significantly better.", warning]
    few = search["num_validation"] < w.FEW_IMAGES
    more = " There are few: a larger data.validation_fraction would tell more." if few else ""
    return [f"{told}: not significant, so these images do not tell which is better.{more}", warning]


def _importance_sentence(search: dict[str, Any]) -> str:
    finished = sum(trial["outcome"] == "finished" for trial in search["trials"])
    few = f" With {finished} finished trials these shares are rough." if finished < FEW_FOR_IMPORTANCE else ""
    return f"Share of the variance of validation accuracy over finished trials that each key explains (fANOVA).{few}"


def trial_table(search: dict[str, Any]) -> Table:
    """All trials, the best first."""
    rows: list[list[str | Cell]] = []
    for rank, trial in enumerate(search["trials"], start=1):
        is_ranked = trial["outcome"] == "finished"
        rows.append(
            [
                Cell(str(rank) if is_ranked else "–", rank),
                Cell(str(trial["number"]), trial["number"]),
                *(str(trial["point"].get(key, "–")) for key in search["keys"]),
                w.percent(trial["accuracy"]),
                w.interval(accuracy_interval(trial, search)) if is_ranked else "–",
                w.number(trial["loss"]),
                w.count(trial["steps"]),
                w.duration(trial["seconds"]),
                _outcome(trial),
            ]
        )
    figures = ("#validation accuracy", "~95% interval", "#loss", "#steps", "#time", "outcome")
    columns = " | ".join(["#place", "#trial", *map(_short, search["keys"]), *figures])
    return without_empty(table(columns, rows, main=0 if search["best"] is not None else None))


def accuracy_interval(trial: dict[str, Any], search: dict[str, Any]) -> list[float] | None:
    """Of a trial's validation accuracy, by Wilson."""
    if trial["accuracy"] is None:
        return None
    low, high = wilson_interval(trial["accuracy"] * search["num_validation"], search["num_validation"])
    return [float(low), float(high)]


def _outcome(trial: dict[str, Any]) -> str:
    if trial["outcome"] == "failed":
        return f"failed: {trial['error']}"
    if trial["repeat_of"] is not None:
        return f"{trial['outcome']} (repeats {trial['repeat_of']})"
    return str(trial["outcome"])


def _point(trial: dict[str, Any]) -> str:
    return ", ".join(f"{_short(key)} {value}" for key, value in trial["point"].items())


def _short(key: str) -> str:
    """`adapter.alpha_per_rank` -> "alpha per rank"."""
    return key.partition(".")[2].replace("_", " ")
