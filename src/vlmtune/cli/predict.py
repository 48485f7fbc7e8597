"""`vlmtune predict`: labels with probabilities, or answers, for the user's images."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmtune.cli.console import ProgressBar, stderr_console
from vlmtune.cli.options import JsonOption, LabelsOption, read_labels
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from vlmtune.api.results import Prediction

Result = dict[str, Any]
_LABELS_SHOWN = 3


def predict(
    model: Annotated[
        str, typer.Argument(help="A run, checkpoint, exported or model folder, a hub id, or builtin:tiny.")
    ],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, 'globs', URLs, or - for a list on stdin.")
    ],
    labels: LabelsOption = None,
    question: Annotated[str | None, typer.Option(help="Ask this instead of classifying.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Labels of each image: 3 in the table, else all.")] = None,
    abstain_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="No label where the likeliest has less probability.")
    ] = None,
    json_: JsonOption = False,
    csv_: Annotated[bool, typer.Option("--csv", help="Print CSV: a column for each label's probability.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at once. Default: from their size.")] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from public web addresses.")] = False,
) -> None:
    """Classify images by exact label probability, or ask a question about them.

    Probabilities are over the whole label set and sum to 1; a run that was trained with a closed list of answers gives
    theirs. Results are printed as they come, in the order of the images, so ten thousand need no more memory than a
    hundred. Exit code 0: every image was answered; 1: some could not be read (they are listed with the reason, the
    others are answered).
    """
    if json_ and csv_:
        raise UserError("--json and --csv: choose one.")
    if question is not None and labels:
        raise UserError(
            "--question: no --labels. A run that was trained with task.labels chooses among those by itself."
        )
    from vlmtune.data.image_inputs import image_inputs, measure

    total, width = measure(images, allow_urls=allow_urls)
    from vlmtune.api.model import predict_each
    from vlmtune.inference.open import open_predictor

    predictor = open_predictor(
        model, labels=read_labels(labels), is_question=question is not None, batch_size=batch_size
    )
    if predictor.task.asks_from_data and question is None:
        raise UserError(f"{model}: trained to answer questions. Ask one: --question 'What is it?'")
    if predictor.labels is None and (top or abstain_below is not None):
        raise UserError("--question: an open answer has no --top or --abstain-below.")
    stored = None if predictor.labels is None else predictor.labels.stored
    num_labels = top if json_ or csv_ else top or _LABELS_SHOWN
    results = (
        _as_result(prediction, stored is not None, num_labels, abstain_below)
        for prediction in predict_each(predictor, image_inputs(images, allow_urls=allow_urls), question)
    )
    if json_:
        printed = _print_json(results)
    elif csv_:
        printed = _print_csv(results, stored)
    else:
        printed = _print_lines(results, width)
    num = num_failed = num_unsure = 0
    with ProgressBar("predict", total, unit="images") as bar:
        for result in printed:
            num += 1
            num_failed += "error" in result
            num_unsure += "label" in result and result["label"] is None
            bar.advance()
    if num_unsure:
        stderr_console().print(f"{num_unsure} of {num} images got no label: below {abstain_below:g}.")
    if num_failed:
        raise UserError(f"{num_failed} of {num} images could not be read (listed above).")


def _as_result(prediction: Prediction, is_closed: bool, top: int | None, abstain_below: float | None) -> Result:
    """The printed result of one image."""
    if prediction.error is not None:
        return {"image": prediction.image, "error": prediction.error}
    if not is_closed:
        return {"image": prediction.image, "answer": prediction.answer}
    probability = prediction.probability
    assert probability is not None
    return {
        "image": prediction.image,
        "label": prediction.label if abstain_below is None or probability >= abstain_below else None,
        "probability": probability,
        "probabilities": dict(islice(prediction.probabilities.items(), top)),
    }


# ── printing: every result as it comes ──────────────────────────────────────────────────────────────────────────────


def _print_lines(results: Iterable[Result], width: int) -> Iterator[Result]:
    """One line per image, names padded to ``width``."""
    for result in results:
        if "error" in result:
            text = f"error: {result['error']}"
        elif "answer" in result:
            text = result["answer"]
        else:
            ranked = ", ".join(f"{label} {100 * p:.1f} %" for label, p in result["probabilities"].items())
            text = f"unsure: {ranked}" if result["label"] is None else ranked
        print(f"{result['image']:<{width}}  {text}", flush=True)
        yield result


def _print_json(results: Iterable[Result]) -> Iterator[Result]:
    """A JSON list, one image per line."""
    before = "[\n"
    for result in results:
        print(before + json.dumps(result, ensure_ascii=False), end="", flush=True)
        before = ",\n"
        yield result
    print("\n]" if before == ",\n" else "[]")


def _print_csv(results: Iterable[Result], labels: Sequence[str] | None) -> Iterator[Result]:
    """image, label, probability, error and a column per label; for questions image, answer, error."""
    fixed = ["image", "answer", "error"] if labels is None else ["image", "label", "probability", "error"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*fixed, *(labels or ())])
    for result in results:
        shares = result.get("probabilities", {})
        writer.writerow([*(result.get(key) for key in fixed), *(shares.get(label) for label in labels or ())])
        sys.stdout.flush()
        yield result
