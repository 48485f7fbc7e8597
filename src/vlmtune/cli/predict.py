"""`vlmtune predict`: labels with probabilities, or answers, for a person's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmtune.cli.console import print_json, print_table
from vlmtune.cli.options import JsonOption
from vlmtune.errors import UserError


def predict(
    model: Annotated[str, typer.Argument(help="A run, checkpoint or model folder, a hub id, or builtin:tiny.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    labels: Annotated[str | None, typer.Option(help="Comma-separated labels. Default: those the run learned.")] = None,
    question: Annotated[str | None, typer.Option(help="Ask this instead of classifying.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to show for each image.")] = 3,
    json_: JsonOption = False,
) -> None:
    """Classify images by exact label probability, or ask a question about them.

    Probabilities are over the whole label set and sum to 1; `--json` prints all of them.
    """
    from vlmtune.inference.open import open_predictor
    from vlmtune.inference.predictor import Query
    from vlmtune.records import ImageSource, LabelScores

    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise UserError(f"not found: {', '.join(missing)}. Give paths of image files.")
    predictor = open_predictor(model, labels=labels.split(",") if labels else None, is_question=question is not None)
    queries = [Query(ImageSource(path=path, name=str(path)), question) for path in images]
    results: list[dict[str, Any]] = []
    if question is not None:
        for path, answer in zip(images, predictor.answer(queries), strict=True):
            is_text = isinstance(answer, str)
            results.append({"image": str(path), "answer" if is_text else "error": str(answer)})
    else:
        assert predictor.labels is not None
        for path, scores in zip(images, predictor.classify(queries), strict=True):
            if not isinstance(scores, LabelScores):
                results.append({"image": str(path), "error": scores.reason})
                continue
            assert scores.log_probs is not None
            import math

            probabilities = {
                label: math.exp(log_prob)
                for label, log_prob in zip(predictor.labels.stored, scores.log_probs, strict=True)
            }
            ranked = dict(sorted(probabilities.items(), key=lambda item: -item[1]))
            results.append({"image": str(path), "label": scores.prediction, "probabilities": ranked})
    if json_:
        print_json(results)
    else:
        rows = []
        for result in results:
            if "error" in result:
                rows.append([result["image"], f"error: {result['error']}"])
            elif "answer" in result:
                rows.append([result["image"], result["answer"]])
            else:
                shown = list(result["probabilities"].items())[:top]
                rows.append([result["image"], ", ".join(f"{label} {100 * p:.1f} %" for label, p in shown)])
        print_table(["image", "answer" if question else "labels"], rows)
    failed = sum("error" in result for result in results)
    if failed:
        raise UserError(f"{failed} of {len(results)} images could not be read (listed above).")
