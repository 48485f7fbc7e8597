"""A search in words, as a table, as search.html, .md, .json and charts/. Called by `vlmtune search`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from vlmtune.evaluate.statistics import SIGNIFICANCE, wilson_interval
from vlmtune.report import numbers as w
from vlmtune.report.accuracy import FEW_IMAGES
from vlmtune.report.charts import SUBJECT_COLOR, Chart, Key, Plot, Score, draw_bars, round_range
from vlmtune.report.pages import write_report
from vlmtune.report.section import ColumnOf, Figures, Report, Section, Table, table

PAGE = "search.html"
FEW_FOR_IMPORTANCE = 20


def write_search(folder: Path, search: Figures) -> Path:
    """Write the files of a search; returns the path of the page.

    Args:
        search: ``name``; ``keys``; ``trials``, the best first (number, outcome, point, accuracy, loss, steps, seconds,
            error, repeat_of); ``best``: a trial's number or None; ``baseline``: that of the experiment as it was;
            ``num_validation``; ``num_planned``; ``importance``: key -> share; ``against``: the runner-up, or None.
    """
    sections = [Section("trials", "Trials", chart=_history(search), table=trial_table(search))]
    if search["importance"]:
        ranked = sorted(search["importance"].items(), key=lambda item: float(item[1]), reverse=True)
        scores = [Score(_short(key), share, None) for key, share in ranked]
        chart = Chart(draw_bars(scores, "Share of the variance of validation accuracy that each key explains"))
        sections.append(Section("importance", "What mattered", [_importance_sentence(search)], chart=chart))
    report = Report(f"Search: {search['name']}", "vlmtune search", findings(search), sections, figures=search)
    return write_report(folder / PAGE, report)


def _history(search: Figures) -> Chart | None:
    """Validation accuracy of every trial in the order they ran, and the best so far."""
    trials = sorted((t for t in search["trials"] if t["accuracy"] is not None), key=lambda trial: int(trial["number"]))
    if not trials:
        return None
    last = max(trial["number"] for trial in search["trials"])
    span = round_range([trial["accuracy"] for trial in trials], 0.05)
    plot = Plot("Validation accuracy of each trial", (-0.5, last + 0.5), span, 680, 360)
    digits = 1 if span[1] - span[0] < 0.05 else 0
    plot.axes(
        "trial", "validation accuracy", w.count, lambda v: w.percent(v, digits), range(0, last + 1, last // 12 + 1)
    )
    finished = [trial for trial in trials if trial["outcome"] == "finished"]
    best = list(accumulate((trial["accuracy"] for trial in finished), max))
    ends = [*(trial["number"] for trial in finished[1:]), last]
    steps = [
        (x, y) for trial, y, end in zip(finished, best, ends, strict=False) for x, y in ((trial["number"], y), (end, y))
    ]
    plot.curve(steps, "curve thin s3")
    for trial in trials:
        css = f"dot {SUBJECT_COLOR}" if trial["outcome"] == "finished" else f"ring {SUBJECT_COLOR}"
        title = f"trial {trial['number']}, {trial['outcome']}: {w.percent(trial['accuracy'])}"
        plot.dot(trial["number"], trial["accuracy"], 4 if trial["outcome"] == "finished" else 3.4, css, title)
        if trial["number"] == search["best"]:
            plot.dot(trial["number"], trial["accuracy"], 9, f"ring {SUBJECT_COLOR}", "best")
    legend = [Key(SUBJECT_COLOR, "a trial; hollow: pruned; ringed: the best"), Key("s3", "best so far")]
    return Chart(plot.canvas, legend, max_width=820, min_width=560)


def findings(search: Figures) -> list[str]:
    """The findings and their significance, in sentences."""
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


def _against(search: Figures) -> list[str]:
    """The margin of the best over the runner-up, and how selecting the best biases its figure."""
    warning = (
        f"The best of {len(search['trials'])} measurements on the same images is partly the luckiest: only the test "
        "split, which no trial saw, says how good it is."
    )
    against = search["against"]
    if against is None:
        return [warning]
    sentence = (
        f"Against trial {against['runner_up']}, the runner-up, it differs by {w.points(against['difference'])} points "
        f"on the same images (95% interval {w.points_interval(against['interval'])}; {w.p_value(against['p_value'])})"
    )
    if against["p_value"] < SIGNIFICANCE:
        return [f"{sentence}: significantly better.", warning]
    few = search["num_validation"] < FEW_IMAGES
    more = " There are few: a larger data.validation_fraction would tell more." if few else ""
    return [f"{sentence}: not significant, so these images do not tell which is better.{more}", warning]


def _importance_sentence(search: Figures) -> str:
    finished = sum(trial["outcome"] == "finished" for trial in search["trials"])
    few = f" With {finished} finished trials these shares are rough." if finished < FEW_FOR_IMPORTANCE else ""
    return f"Share of the variance of validation accuracy over finished trials that each key explains (fANOVA).{few}"


def trial_table(search: Figures) -> Table:
    """All trials, the best first."""
    places = {trial["number"]: rank for rank, trial in enumerate(search["trials"], start=1)}

    def value_of(key: str) -> Callable[[Figures], str]:
        return lambda trial: str(trial["point"].get(key, "–"))

    columns: list[ColumnOf] = [
        ("#place", lambda t: places[t["number"]] if t["outcome"] == "finished" else None, w.count),
        ("#trial", "number", str),
        *((_short(key), value_of(key)) for key in search["keys"]),
        ("#validation accuracy", "accuracy", w.percent),
        ("~95% interval", lambda t: accuracy_interval(t, search) if t["outcome"] == "finished" else None, w.interval),
        ("#loss", "loss", w.number),
        ("#steps", "steps", w.count),
        ("#time", "seconds", w.duration),
        ("outcome", _outcome),
    ]
    return table(search["trials"], columns, main=0 if search["best"] is not None else None, is_sortable=True)


def accuracy_interval(trial: Figures, search: Figures) -> list[float] | None:
    """Wilson interval of a trial's validation accuracy."""
    if trial["accuracy"] is None:
        return None
    low, high = wilson_interval(trial["accuracy"] * search["num_validation"], search["num_validation"])
    return [float(low), float(high)]


def _outcome(trial: Figures) -> str:
    if trial["outcome"] == "failed":
        return f"failed: {trial['error']}"
    if trial["repeat_of"] is not None:
        return f"{trial['outcome']} (repeats {trial['repeat_of']})"
    return str(trial["outcome"])


def _point(trial: Figures) -> str:
    return ", ".join(f"{_short(key)} {value}" for key, value in trial["point"].items())


def _short(key: str) -> str:
    """`adapter.alpha_per_rank` -> "alpha per rank"."""
    return key.partition(".")[2].replace("_", " ")
