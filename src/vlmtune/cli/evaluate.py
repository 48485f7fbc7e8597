"""`vlmtune evaluate`: the accuracy of a model on a whole split."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlmtune.cli.console import ConsoleObserver, print_json, print_table, stderr_console
from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment

NUM_UNREADABLE_SHOWN = 10


def evaluate(
    config: ConfigArgument,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="A checkpoint or run folder, or 'base'. Default: what the file says, or the run's best."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many images, stratified; every table says so.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Also fit temperature, label sets and an abstention threshold on validation."),
    ] = False,
    set_: SetOption = None,
    faithful: FaithfulOption = False,
    json_: JsonOption = False,
) -> None:
    """Ask every question of a split and write an evaluation folder into the run's folder.

    If it is interrupted, the same command resumes it and writes the same predictions.
    """
    from vlmtune.runs.prepare import load_data, run_path
    from vlmtune.workflows.evaluate import choose_checkpoint
    from vlmtune.workflows.evaluate import evaluate as run_evaluation

    overrides = [*(set_ or ()), *([f"evaluate.limit={limit}"] if limit else [])]
    overrides += ["evaluate.calibrate=true"] if calibrate else []
    overrides += ["evaluate.checkpoint="] if checkpoint is not None else []
    resolved, splits = load_data(open_experiment(config, overrides, faithful=faithful))
    run = config if config.is_dir() else run_path(resolved)  # a run folder may have been moved
    observer = ConsoleObserver()
    chosen = choose_checkpoint(checkpoint, resolved.evaluate.checkpoint, run, observer)
    measured = run_evaluation(resolved, splits, checkpoint=chosen, folder=run, observer=observer)
    if json_:
        print_json({"folder": str(measured.folder), **measured.facts})
        return
    _print(measured.facts)
    _list_unreadable(measured.facts["unreadable"])
    print(f"written to {measured.folder}")


def _print(facts: dict[str, Any]) -> None:
    """The figures of one evaluation; with answer types, the choice of scoring and calibration if present."""
    from vlmtune.report import numbers as w

    metrics, limit = facts["metrics"], facts["data"].get("limit")
    if facts["task"]["question_from"] == "data":
        _print_types(facts)
    rows = [
        ["accuracy", f"{w.percent(metrics['accuracy'])}  ({w.interval(metrics['accuracy_interval'])})"],
        *([["right", f"{w.count(metrics['num_correct'])} of {w.count(metrics['num_measured'])}"]]
          if metrics["num_correct"] is not None and metrics["num_measured"] else []),
        *([["limited to", f"{w.count(limit)} {_unit(facts)}, by request"]] if limit else []),
        ["unreadable (counted as wrong)", w.count(metrics["num_unreadable"])],
        *([["true answer not among the labels (wrong)", w.count(metrics["num_outside_labels"])]]
          if metrics["num_outside_labels"] else []),
    ]  # fmt: skip
    rows += _closed_rows(metrics) if facts["labels"] else []
    rows.append(["time", f"{w.duration(facts['seconds'])}, {w.per_image(metrics['seconds_per_example'])} each"])
    if facts["num_tokens"] is not None:
        rows.append(["tokens each", _tokens(facts)])
    print_table(["", facts["name"]], rows)
    if metrics["accuracy"] is None:
        print("The answers are not known: submission.json is the results file for the official server.")
    if facts["scoring"]:
        _print_scoring(facts["scoring"])
    if facts.get("calibration"):
        _print_calibration(facts["calibration"])


def _closed_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """The figures for closed answers that apply to this evaluation."""
    from vlmtune.report import numbers as w

    rows = [
        [f"right among the first {k}", w.percent(share)] for k, share in (metrics["top_k"] or {}).items() if k != "1"
    ]
    if metrics["yes"]:
        yes = metrics["yes"]
        rows.append(["yes: precision", f"{w.percent(yes['precision'])}  ({w.interval(yes['precision_interval'])})"])
        rows.append(["yes: recall", f"{w.percent(yes['recall'])}  ({w.interval(yes['recall_interval'])})"])
        rows.append(["yes: F1", w.number(yes["f1"])])
    if metrics["mean_absolute_error"] is not None:
        for key, name in (
            ("mean_absolute_error", "mean absolute error (levels)"),
            ("quadratic_weighted_kappa", "quadratic-weighted kappa"),
        ):
            low, high = metrics[f"{key}_interval"] or (None, None)
            rows.append([name, f"{w.number(metrics[key])}  ({w.number(low)} to {w.number(high)})"])
    return [
        *rows,
        ["macro F1, weighted F1", f"{w.number(metrics['macro_f1'])}, {w.number(metrics['weighted_f1'])}"],
        ["balanced accuracy", w.percent(metrics["balanced_accuracy"])],
        ["NLL, Brier", f"{w.number(metrics['nll'])}, {w.number(metrics['brier'])}"],
        ["ECE", w.percent(metrics["ece"])],
    ]


def _unit(facts: dict[str, Any]) -> str:
    return "questions" if facts["task"]["question_from"] == "data" else "images"


def _print_types(facts: dict[str, Any]) -> None:
    """The official accuracy of answers, whole and by type of answer."""
    from vlmtune.report import numbers as w

    metrics = facts["metrics"]
    entries = [{"name": "all", "num": metrics["num_measured"], **metrics}, *metrics["by_answer_type"]]
    rows = [
        [
            entry["name"] or "untyped",
            w.count(entry["num"]),
            w.percent(entry["accuracy"], 2),
            w.interval(entry["accuracy_interval"]),
        ]
        for entry in entries
    ]
    title = (
        f"{facts['name']}: {w.count(metrics['num_examples'])} questions about {w.count(metrics['num_images'])} images"
    )
    print_table(["type of answer", "questions", "official accuracy", "95% over images"], rows, title=title)


def _list_unreadable(unreadable: list[dict[str, Any]]) -> None:
    for entry in unreadable[:NUM_UNREADABLE_SHOWN]:
        stderr_console().print(f"unreadable: {entry['id']} ({entry['error']})", markup=False, soft_wrap=True)
    if len(unreadable) > NUM_UNREADABLE_SHOWN:
        stderr_console().print(f"… and {len(unreadable) - NUM_UNREADABLE_SHOWN} more unreadable images.")


def _tokens(facts: dict[str, Any]) -> str:
    ran, unshared = facts["num_tokens"], facts["num_tokens_unshared"]
    return f"{ran:,.0f} run" + (f" ({unshared:,.0f} had nothing been shared)" if unshared else "")


def _print_scoring(scoring: dict[str, Any]) -> None:
    from vlmtune.report import numbers as w

    if scoring["chosen_on"] is None:
        return
    chosen = (scoring["reduce"], scoring["prior"])
    rows = [
        [
            f"{entry['reduce']}, {entry['prior']}",
            w.percent(entry["accuracy"]),
            w.number(entry["nll"]),
            "chosen" if (entry["reduce"], entry["prior"]) == chosen else "",
        ]
        for entry in scoring["candidates"]
    ]
    title = f"scoring, chosen on {w.count(scoring['num_validation'])} validation images"
    print_table(["reduce, prior", "validation accuracy", "NLL", ""], rows, title=title)


def _print_calibration(figures: dict[str, Any]) -> None:
    from vlmtune.report import numbers as w

    conformal, abstention = figures["conformal"], figures["abstention"]
    rows = [
        ["temperature", w.number(figures["temperature"])],
        ["NLL", f"{w.number(figures['nll_before'])} → {w.number(figures['nll_after'])}"],
        ["ECE", f"{w.percent(figures['ece_before'])} → {w.percent(figures['ece_after'])}"],
    ]
    for method in ("lac", "aps"):
        sets = conformal[method]
        rows.append(
            [
                f"{method.upper()} sets wanted to hold the truth in {w.percent(conformal['wanted_coverage'])}",
                f"hold it in {w.percent(sets['coverage'])} ({w.interval(sets['coverage_interval'])}), "
                f"{w.number(sets['mean_size'])} labels on average",
            ]
        )
    label = f"answers wanted right in {w.percent(abstention['wanted_precision'])}"
    if abstention["threshold"] is None:
        rows.append([label, "no threshold reached that on validation"])
    else:
        right = f"right in {w.percent(abstention['precision'])}" if abstention["num_answered"] else "none to judge"
        answered = f"{w.percent(abstention['answered_share'])} answered, from {w.percent(abstention['threshold'])} on"
        rows.append([label, f"{right}: {answered}"])
    fitted = f"fitted on {w.count(figures['num_validation'])} validation images"
    print_table([fitted, "measured on these images"], rows, title="calibration")
