"""The opening of a report and its first section: how good each evaluation is and which differences are significant.

In: `Results`. Out: sentences, headlines, a section, and the tables that the command line prints too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from vlmtune.report import numbers as w
from vlmtune.report.charts import Chart, Score, draw_bars
from vlmtune.report.section import ColumnOf, Figures, Fold, Headline, Section, Table, limited, table
from vlmtune.report.sources import Entry, Results, score_name_of, unit_of

FEW_IMAGES = 200
FEW_OF_A_TYPE = 20
GOOD_CALIBRATION = 0.03
NUM_WEAK = 3
MOST_TYPES = 4

_OFFICIAL = (
    "The official VQA accuracy: an answer that at least four of ten annotators gave is worth 100%, that of three 90%, "
    "of two 60%, of one 30%."
)


def section(results: Results) -> Section | None:
    """Bars, the evaluations side by side, paired tests."""
    if not results.entries:
        return None
    subject, comparison = results.entries[-1], results.comparison
    rows = [entry.row for entry in results.entries]
    scores = [Score(e.name, e.row["accuracy"], e.row["accuracy_interval"], e.color) for e in results.entries]
    chance = chance_of(subject)
    name = f"{w.capitalized(results.score_name)} of each run with its 95% interval"
    parts = []
    if comparison is not None:
        title = f"Paired tests on the same {w.counted(comparison['num_examples'], results.unit)}"
        parts.append(Section("pairs", title, table=pairs_table(comparison), figures=comparison["pairs"]))
    folds = []
    if results.left_out:
        title = f"Not shown: {w.counted(len(results.left_out), 'evaluation')} of other {results.unit}s"
        folds.append(Fold(title, text=", ".join(results.left_out)))
    return Section(
        "accuracy",
        "Accuracy",
        _lead(results, chance),
        chart=Chart(draw_bars(scores, name, chance)) if subject.row["accuracy"] is not None else None,
        table=runs_table(rows),
        folds=folds,
        parts=parts,
        figures={"runs": [{**entry.row, "metrics": entry.figures} for entry in results.entries]},
    )


def _lead(results: Results, chance: float | None) -> list[str]:
    if results.unit == "question":
        intervals = "Intervals resample images with all their questions."
    else:
        intervals = "Bars with 95% intervals."
    return [
        *([_OFFICIAL] if results.score_name != "accuracy" else []),
        intervals,
        *([f"The dashed line is chance ({w.percent(chance)})."] if chance else []),
        "An unreadable image counts as wrong.",
    ]


def chance_of(entry: Entry) -> float | None:
    """The accuracy of guessing; None for open answers and several questions per image."""
    labels = entry.evaluation.labels
    return 1 / len(labels) if labels and unit_of(entry.row) == "image" else None


def runs_table(rows: Sequence[Figures]) -> Table:
    """Evaluations side by side, as `evaluate.compare.describe` gives them; the last is the subject."""
    unit, score = unit_of(rows[-1]), score_name_of(rows[-1])
    types = list(dict.fromkeys(type_name(entry) for row in rows for entry in row["by_answer_type"]))

    def of_type(name: str) -> Callable[[Figures], float | None]:
        return lambda row: next((e["accuracy"] for e in row["by_answer_type"] if type_name(e) == name), None)

    columns: list[ColumnOf] = [
        ("run", "name"),
        (f"#{unit}s", lambda row: limited(row["limit"])(row["num_measured"])),
        ("#images", lambda row: row["num_images"] if unit == "question" else None, w.count),
        ("#right", "num_correct", w.count),
        (f"#{score}", "accuracy", lambda share: w.percent(share, 1 if score == "accuracy" else 2)),
        (f"~{_span(unit)}", "accuracy_interval", w.interval),
        *((f"#{name}", of_type(name), w.percent) for name in (types if len(types) <= MOST_TYPES else ())),
        ("#levels off", "mean_absolute_error", w.number),
        ("#weighted kappa", "quadratic_weighted_kappa", w.number),
        ("#macro F1", "macro_f1", w.number),
        ("#balanced", "balanced_accuracy", w.percent),
        ("#top 3", lambda row: (row["top_k"] or {}).get("3"), w.percent),
        ("#NLL", "nll", w.number),
        ("#ECE", "ece", w.percent),
        (f"#time {w.article(unit)}", "seconds_per_example", w.per_image),
        ("#time in all", "seconds", w.duration),
        (f"#tokens {w.article(unit)}", "num_tokens", w.count),
    ]
    return table(rows, columns, main=len(rows) - 1)


def pairs_table(comparison: Figures) -> Table:
    """Paired tests, as `evaluate.compare.compare` gives them."""
    unit, pairs = unit_of(comparison), comparison["pairs"]
    limits = {run["name"]: run["limit"] for run in comparison["runs"]}
    is_mcnemar = all(pair["test"] == "mcnemar" for pair in pairs)
    columns: list[ColumnOf] = [
        ("from → to", lambda pair: f"{pair['first']} → {pair['second']}"),
        (f"#{unit}s", lambda p: limited(limits[p["first"]] or limits[p["second"]])(comparison["num_examples"])),
        ("#points", "difference", w.points),
        (f"~{_span(unit)}", "difference_interval", w.points_interval),
        ("#became right" if is_mcnemar else "#better", "num_better", w.count),
        ("#became wrong" if is_mcnemar else "#worse", "num_worse", w.count),
        ("#McNemar mid-p, Holm" if is_mcnemar else "#sign changes, Holm", "p_holm", w.p_value),
        ("significant", "is_significant", w.yes_no),
        ("#macro F1", lambda pair: pair["bootstrap"].get("macro_f1", {}).get("difference"), w.signed),
    ]
    return table(pairs, columns)


def _span(unit: str) -> str:
    return "95%, over images" if unit == "question" else "95% interval"


def type_name(entry: Figures) -> str:
    """A type's name; empty in data without types."""
    return str(entry["name"] or "no type")


# ── the opening ─────────────────────────────────────────────────────────────────────────────────────────────────────


def headlines(results: Results) -> list[Headline]:
    """The score of the subject in large type, and its change against the first evaluation."""
    subject, pair = results.subject, results.main_pair
    if subject is None or subject.row["accuracy"] is None:
        return []
    caption = f"{results.score_name} of {subject.name}, 95% interval {w.interval(subject.row['accuracy_interval'])}"
    lines = [Headline(w.percent(subject.row["accuracy"]), caption)]
    if pair is not None:
        verdict = "significant" if pair["is_significant"] else "not significant"
        caption = f"points against {pair['first']} ({w.p_value(pair['p_holm'])})"
        lines.append(Headline(w.points(pair["difference"]), caption, verdict))
    return lines


def summary(results: Results) -> list[str]:
    """The opening in sentences: what is significant, what is not, and where the model fails."""
    subject = results.subject
    if subject is None:
        return ["This run has no evaluation yet. Measure it with vlmtune evaluate, then render the report again."]
    if subject.row["accuracy"] is None:
        about = f"{w.counted(subject.row['num_examples'], 'question')} about {_images(subject)}"
        return [
            f"{subject.name} answered {about}. The true answers are not known here, so nothing is measured; "
            "submission.json in the evaluation folder is what the official server takes."
        ]
    sentences = [_score_sentence(results, subject), _level_sentence(subject.row)]
    if results.comparison is not None:
        sentences += [_pair_sentence(results, pair) for pair in _story(results)]
        sentences.append(_class_change_sentence(results.pair(results.entries[0].name, subject.name)))
    sentences += [
        _weakest_classes(subject.figures) or _weakest_types(subject.figures),
        _calibration_sentence(subject.figures),
        *_caveats(results, subject),
    ]
    return [sentence for sentence in sentences if sentence]


def _score_sentence(results: Results, subject: Entry) -> str:
    row, split = subject.row, f" {subject.row['split']}" if subject.row["split"] else ""
    labels = subject.evaluation.labels
    about = f" about {_images(subject)}" if results.unit == "question" else ""
    about += f" in {len(labels)} classes" if labels and results.unit == "image" else ""
    start = f"On {w.counted(row['num_measured'], f'{split} {results.unit}'.strip())}{about}, {subject.name}"
    span = w.interval(row["accuracy_interval"]) + (", over images" if results.unit == "question" else "")
    if results.score_name == "accuracy":
        return f"{start} is right on {w.percent(row['accuracy'])} (95% interval {span})."
    return f"{start} has an official VQA accuracy of {w.percent(row['accuracy'], 2)} (95% interval {span})."


def _level_sentence(row: Figures) -> str:
    """How far a score on a scale is off."""
    if row["mean_absolute_error"] is None:
        return ""
    kappa = f"quadratic-weighted kappa {w.number(row['quadratic_weighted_kappa'])}"
    return f"It is off by {w.number(row['mean_absolute_error'], 2)} levels on average ({kappa})."


def _images(subject: Entry) -> str:
    return w.counted(subject.row["num_images"], "image")


def _story(results: Results) -> list[Figures]:
    """The last against the first, then each against the one before it: a story, not a table."""
    names = [entry.name for entry in results.entries]
    steps = list(pairwise(names[1:]))[-2:] if len(names) > 2 else []
    return [results.pair(*names) for names in [(names[0], names[-1]), *steps]]


def _pair_sentence(results: Results, pair: Figures) -> str:
    baseline = next((entry for entry in results.entries if entry.is_baseline), None)
    first = str(pair["first"])
    if baseline is not None and baseline.name == first:
        first = f"the base model ({w.percent(baseline.row['accuracy'])})"
    span = f"95% interval {w.points_interval(pair['difference_interval'])}; {w.p_value(pair['p_holm'])}"
    better, worse = pair["num_better"], w.count(pair["num_worse"])
    if results.score_name == "accuracy":
        flipped = f"{w.counted(better, results.unit)} became right, {worse} became wrong"
    else:
        flipped = f"{w.counted(better, 'answer')} better, {worse} worse"
    change = w.points(pair["difference"])
    if not pair["is_significant"]:
        return (
            f"Against {first}, {pair['second']} differs by {change} points ({span}): not significant, so these "
            f"{results.unit}s do not tell which is better ({flipped})."
        )
    word = "better" if pair["difference"] > 0 else "worse"
    return f"Against {first}, {pair['second']} is significantly {word}: {change} points ({span}); {flipped}."


def _class_change_sentence(pair: Figures) -> str:
    if not pair["classes_gained"] and not pair["classes_lost"]:
        return ""
    better = [c["label"] for c in pair["classes_gained"] if c["is_significant"]]
    worse = [c["label"] for c in pair["classes_lost"] if c["is_significant"]]
    if not better and not worse:
        return "Taken one by one, no class changed significantly."
    gained = w.counted(len(better), "class") if better else "no class"
    lost = w.listed(worse) if worse else "none"
    return f"Taken one by one, {gained} gained significantly, {lost} lost significantly."


def _weakest_classes(figures: Figures) -> str:
    if not figures["per_class"]:
        return ""
    weak = [entry for entry in figures["per_class"] if entry["support"] and entry["recall"] < 1]
    if not weak:
        return "No image of any class was missed."
    weak.sort(key=lambda entry: float(entry["recall"]))
    names = [f"{entry['label']} ({entry['correct']} of {entry['support']})" for entry in weak[:NUM_WEAK]]
    return f"It is weakest on {w.listed(names)}."


def _weakest_types(figures: Figures) -> str:
    types = figures["by_question_type"] or figures["by_answer_type"]
    types = [entry for entry in types if entry["num"] >= FEW_OF_A_TYPE]
    if len(types) < 2:
        return ""
    weak = sorted(types, key=lambda entry: float(entry["accuracy"]))[:NUM_WEAK]
    names = [f"“{type_name(e)}” ({w.percent(e['accuracy'])} of {w.count(e['num'])})" for e in weak]
    return f"It is weakest on {w.listed(names)}."


def _calibration_sentence(figures: Figures) -> str:
    if figures["ece"] is None:
        return ""
    error = f"(calibration error {w.percent(figures['ece'])})"
    if figures["ece"] <= GOOD_CALIBRATION:
        return f"What it states as probabilities fits how often it is right {error}."
    gap = figures["mean_confidence"] - figures["accuracy"]
    if abs(gap) < figures["ece"] / 3:
        return f"Its probabilities are off in both directions {error}."
    tendency = "too confident" if gap > 0 else "too cautious"
    return f"Its probabilities are {tendency}: it states {w.percent(figures['mean_confidence'])} on average {error}."


def _caveats(results: Results, subject: Entry) -> list[str]:
    sentences, row = [], subject.row
    if row["num_unreadable"]:
        amount = row["num_unreadable"]
        verb = "counts" if amount == 1 else "count"
        failed = "could not be read" if results.unit == "image" else "had no readable image"
        sentences.append(f"{w.counted(amount, results.unit)} {failed} and {verb} as wrong.")
    sentences += w.limit_sentences(subject.limit, results.unit)
    if row["num_examples"] < FEW_IMAGES:
        sentences.append(f"So few {results.unit}s leave wide intervals: measure more to decide on small differences.")
    return sentences
