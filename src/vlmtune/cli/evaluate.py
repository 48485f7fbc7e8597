"""`vlmtune evaluate`: the closed-set accuracy of a model on a whole split."""

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
    """Score every image of a split and write an evaluation folder into the run's folder.

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
    if measured.facts["task"] == "vqa":
        _print_vqa(measured.facts)
    else:
        _print_labels(measured.facts)
    _list_unreadable(measured.facts["unreadable"])
    print(f"written to {measured.folder}")


def _print_labels(facts: dict[str, Any]) -> None:
    """The figures of one evaluation; the choice of scoring and the calibration where there are any."""
    from vlmtune.report import numbers as w

    metrics, limit = facts["metrics"], facts["data"].get("limit")
    rows = [
        ["accuracy", f"{w.percent(metrics['accuracy'])}  ({w.interval(metrics['accuracy_interval'])})"],
        ["right", f"{w.count(metrics['num_correct'])} of {w.count(metrics['num_examples'])}"],
        *([["limited to", f"{w.count(limit)} images, by request"]] if limit else []),
        ["unreadable (counted as wrong)", w.count(metrics["num_unreadable"])],
        *(
            [f"right among the first {k}", w.percent(share)]
            for k, share in (metrics["top_k"] or {}).items()
            if k != "1"
        ),
        ["macro F1, weighted F1", f"{w.number(metrics['macro_f1'])}, {w.number(metrics['weighted_f1'])}"],
        ["balanced accuracy", w.percent(metrics["balanced_accuracy"])],
        ["NLL, Brier", f"{w.number(metrics['nll'])}, {w.number(metrics['brier'])}"],
        ["ECE", w.percent(metrics["ece"])],
        ["time", f"{w.duration(facts['seconds'])}, {w.per_image(metrics['seconds_per_example'])} an image"],
        ["tokens an image", _tokens(facts)],
    ]
    print_table(["", facts["name"]], rows)
    _print_scoring(facts["scoring"])
    if facts.get("calibration"):
        _print_calibration(facts["calibration"])


def _print_vqa(facts: dict[str, Any]) -> None:
    """The official accuracy of answers, whole and by type of answer."""
    from vlmtune.report import numbers as w

    metrics, limit = facts["metrics"], facts["data"].get("limit")
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
    told = f"{w.count(metrics['num_examples'])} questions about {w.count(metrics['num_images'])} images"
    title = f"{facts['name']}: {told}" + (f" (limited to {w.count(limit)}, by request)" if limit else "")
    print_table(["type of answer", "questions", "official accuracy", "95% over images"], rows, title=title)
    print(f"unreadable (counted as wrong): {w.count(metrics['num_unreadable'])}; {w.duration(facts['seconds'])}")
    if metrics["accuracy"] is None:
        print("The answers are not known: submission.json is the results file for the official server.")


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
    chosen = (scoring["form"], scoring["calibration"])
    rows = [
        [
            f"{entry['form']}, {entry['calibration']}",
            w.percent(entry["accuracy"]),
            w.number(entry["nll"]),
            "chosen" if (entry["form"], entry["calibration"]) == chosen else "",
        ]
        for entry in scoring["candidates"]
    ]
    title = f"scoring, chosen on {w.count(scoring['num_validation'])} validation images"
    print_table(["form, calibration", "validation accuracy", "NLL", ""], rows, title=title)


def _print_calibration(found: dict[str, Any]) -> None:
    from vlmtune.report import numbers as w

    conformal, abstention = found["conformal"], found["abstention"]
    rows = [
        ["temperature", w.number(found["temperature"])],
        ["NLL", f"{w.number(found['nll_before'])} → {w.number(found['nll_after'])}"],
        ["ECE", f"{w.percent(found['ece_before'])} → {w.percent(found['ece_after'])}"],
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
    wanted = f"answers wanted right in {w.percent(abstention['wanted_precision'])}"
    if abstention["threshold"] is None:
        rows.append([wanted, "no threshold reached that on validation"])
    else:
        right = f"right in {w.percent(abstention['precision'])}" if abstention["num_answered"] else "none to judge"
        answered = f"{w.percent(abstention['answered_share'])} answered, from {w.percent(abstention['threshold'])} on"
        rows.append([wanted, f"{right}: {answered}"])
    fitted = f"fitted on {w.count(found['num_validation'])} validation images"
    print_table([fitted, "measured on these images"], rows, title="calibration")
