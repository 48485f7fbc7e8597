"""Evaluation and run folders drawn from a random number generator, for tests of figures, comparisons and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlmtune.evaluate.files import Evaluation, read_evaluation, thumbnail, thumbnail_rows
from vlmtune.evaluate.files import write_evaluation as write_folder
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.table import AnswerSpace, PredictionTable
from vlmtune.records import Example, ImageSource
from vlmtune.text.vqa_accuracy import vqa_accuracy

QUESTION = "question"
ASKED = {"type": "choice", "question_from": "prompt"}


def label_names(num_labels: int) -> tuple[str, ...]:
    if num_labels == 10:
        return ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return tuple(f"class {index:03d}" for index in range(num_labels))


def random_table(
    num: int = 200,
    num_labels: int = 10,
    skill: float = 4.0,
    seed: int = 0,
    num_unreadable: int = 0,
    has_probabilities: bool = True,
    data_seed: int = 0,
) -> PredictionTable:
    """Predictions of a model whose logit of the true label is `skill` higher on average.

    Two tables with one `data_seed` have the same images, of which the same are hard.
    """
    data = np.random.default_rng(data_seed)
    truth = data.integers(0, num_labels, num)
    hard = data.normal(size=num)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num, num_labels))
    logits[np.arange(num), truth] += skill - hard
    logits[np.arange(num), (truth + 3) % num_labels] += 0.8  # one class is often taken for another
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    prediction = log_probs.argmax(axis=1)
    errors = np.full(num, None, dtype=object)
    prediction[:num_unreadable] = -1
    log_probs[:num_unreadable] = np.nan
    errors[:num_unreadable] = "truncated file"
    return table_of(
        truth,
        prediction,
        label_names(num_labels),
        log_probs=log_probs.astype(np.float32) if has_probabilities else None,
        seconds=rng.uniform(0.01, 0.02, num),
        error=errors,
        num_tokens=np.where(prediction < 0, 0, 70),
    )


def table_of(
    truth: np.ndarray, prediction: np.ndarray, labels: Sequence[str], kind: str = "choice", **columns: Any
) -> PredictionTable:
    """A table from positions in the labels, -1 for an unreadable image; each row is an image of its own."""
    ids = [f"test/{row:06d}" for row in range(len(truth))]
    return PredictionTable.from_columns(
        {QUESTION: AnswerSpace(kind, tuple(labels))},  # type: ignore[arg-type]
        id=ids,
        image=[f"{id_}.png" for id_ in ids],
        truth=[[labels[label]] for label in truth],
        prediction=[labels[label] if label >= 0 else None for label in prediction],
        score=(truth == prediction).astype(np.float64),
        **{"seconds": np.full(len(truth), 0.01), **columns},
    )


def facts(name: str, table: PredictionTable, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "model": f"runs/{name}",
        "base": "builtin:tiny",
        "checkpoint": None if name == "baseline" else "checkpoints/step-000100",
        "data": {
            "source": "builtin:digits",
            "split": "test",
            "num_examples": len(table),
            "limit": None,
            "left_out": [],
        },
        "task": {**ASKED, "type": table.space.type},
        "labels": None if table.labels is None else list(table.labels),
        "mode": "full" if table.closed is not None and table.closed.log_probs is not None else "argmax",
        "seconds": float(table.seconds.sum()),
        "num_tokens": 70.5,
        "num_tokens_unshared": 812.0,
        "unreadable": [
            {"id": table.ids[row], "error": table.texts("error")[row]} for row in np.flatnonzero(~table.readable)
        ],
        "created": "2026-11-21T05:00:00+00:00",
        "versions": {"vlmtune": "0.1.0"},
        "metrics": measure(table),
        **more,
    }


def in_memory(name: str, table: PredictionTable, **more: Any) -> Evaluation:
    return Evaluation(facts(name, table, **more), table)


def write_evaluation(folder: Path, name: str, table: PredictionTable, with_thumbnails: bool = True) -> Evaluation:
    thumbnails = {}
    if with_thumbnails:
        thumbnails = {table.ids[row]: make_image(table, row) for row in thumbnail_rows(table)}
    write_folder(folder, facts(name, table), table, thumbnails)
    return read_evaluation(folder)


def make_image(table: PredictionTable, row: int) -> bytes:
    """A drawn stand-in: the true position as a figure on a tinted ground with noise."""
    rng = np.random.default_rng(row)
    ground = rng.integers(150, 250, 3) + rng.integers(-30, 5, (96, 96, 1)) + np.zeros((96, 96, 3), dtype=int)
    image = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).text((30, 22), str(table.texts("truth")[row][0])[:3], fill=(30, 30, 60), font_size=44)
    return thumbnail(image)


def write_run(folder: Path, name: str, seed: int = 0, num_steps: int = 100, final: float = 0.95) -> Path:
    """run.json, metrics.jsonl, preflight.json and config.yaml as `vlmtune train` writes them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        lines.append(
            {
                "kind": "train",
                "step": step,
                "epoch": 5 * done,
                "loss": float(2.4 * np.exp(-4 * done) + 0.08 + 0.15 * rng.random()),
                "lr": 2e-3 * (1 - done),
                "grad_norm": 1.0,
                "samples": 16 * step,
                "samples_per_s": 90.0,
                "seconds": 0.7 * step,
            }
        )
        if step % (num_steps // 10) == 0:
            accuracy = 0.55 + (final - 0.55) * (1 - np.exp(-4 * done))
            loss = float(2.1 * np.exp(-4 * done) + 0.12)
            lines.append(
                {
                    "kind": "validation",
                    "step": step,
                    "accuracy": float(accuracy),
                    "loss": loss,
                    "num": 140,
                    "seconds": 2,
                }
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = {
        "name": name,
        "base": "builtin:tiny",
        "seed": 0,
        "data": {
            "source": "builtin:digits",
            "splits": {
                "train": {"found": 1293, "used": 129},
                "validation": {"found": 144, "used": 144},
                "test": {"found": 360, "used": 360},
            },
            "left_out": [],
        },
        "trainable_parameters": 180_224,
        "total_parameters": 3_412_992,
        "started": "2026-11-21T04:00:00+00:00",
        "finished": "2026-11-21T04:01:15+00:00",
        "progress": {"step": num_steps, "seconds": 75.0},
        "environment": {"versions": {"vlmtune": "0.1.0", "torch": "2.13.0"}},
        "labels": list(label_names(10)),
    }
    (folder / "run.json").write_text(json.dumps(run))
    findings = [
        {"name": "adapter", "level": "ok", "message": "LoRA on 20 layers"},
        {
            "name": "images",
            "level": "warning",
            "message": "1 image stands in both train and test: train/0012.png, test/0007.png",
        },
    ]
    (folder / "preflight.json").write_text(json.dumps({"findings": findings}))
    (folder / "config.yaml").write_text("model:\n  base: builtin:tiny\ndata:\n  source: builtin:digits\n")
    return folder


def demo(root: Path, skills: Sequence[float] = (1.6, 3.6, 6.0), **table: Any) -> list[Path]:
    """Three evaluations of the same images: baseline, tuned_10, tuned_100."""
    folders = []
    for seed, (name, skill) in enumerate(zip(("baseline", "tuned_10", "tuned_100"), skills, strict=True)):
        folder = root / "evaluation" / name
        write_evaluation(folder, name, random_table(skill=skill, seed=seed + 1, **table))
        folders.append(folder)
    return folders


def write_questions(
    folder: Path, name: str, skill: float = 0.5, num: int = 120, seed: int = 0, is_known: bool = True
) -> Path:
    """An evaluation folder of questions, three about each image, as `vlmtune evaluate` writes it."""
    draw = np.random.default_rng(seed)
    kinds = (
        ("how many", "number", "How many balls are there?", ("2", "3", "4")),
        ("is the", "yes/no", "Is the ball red?", ("yes", "no")),
        ("what color", "other", "What color is the box?", ("red", "blue", "dark green")),
    )
    examples, answers = [], []
    for row in range(num):
        kind, answer_type, question, choices = kinds[row % 3]
        truth = choices[row % len(choices)]
        image = ImageSource(data=_question_image(row // 3), name=f"image-{row // 3}")
        given = (truth,) * 8 + (choices[0],) * 2 if is_known else ()
        examples.append(Example(f"{row}", image, given, question, kind, answer_type, image_id=f"{row // 3}"))
        answers.append(truth if draw.random() < skill else str(draw.choice(choices)))
    table = answered(examples, answers)
    shown = [str(table.texts("image_id")[row]) for row in thumbnail_rows(table)]
    facts = {
        "name": name,
        "task": {"type": "text", "question_from": "data"},
        "base": "builtin:tiny",
        "model": "builtin:tiny" if name == "base" else f"runs/{name}",
        "checkpoint": None if name == "base" else "step-000100",
        "data": {"source": "builtin:drawn-vqa", "split": "test", "num_examples": num, "limit": None},
        "metrics": measure(table, num_resamples=100),
        "seconds": 2.4,
        "mode": "generate",
        "unreadable": [],
        "created": f"2026-11-21T05:0{seed}:00+00:00",
    }
    return write_folder(folder, facts, table, {id_: _question_image(int(id_)) for id_ in shown})


def answered(
    examples: Sequence[Example], answers: Sequence[str | None], labels: Sequence[str] | None = None, **columns: Any
) -> PredictionTable:
    """Questions with what was answered, scored by the official VQA accuracy; with labels, of a closed list."""
    space = AnswerSpace("text") if labels is None else AnswerSpace("choice", tuple(labels))
    columns = {"error": [None if answer is not None else "broken" for answer in answers], **columns}
    seconds = np.full(len(examples), 0.02)

    def score(answer: str | None, example: Example) -> float | None:
        if not example.answers:
            return None
        return 0.0 if answer is None else vqa_accuracy(answer, example.answers)

    return PredictionTable.of_examples(examples, answers, {QUESTION: space}, score, seconds=seconds, **columns)


def _question_image(number: int) -> bytes:
    image = Image.new("RGB", (96, 96), (240, 240, 236))
    drawing = ImageDraw.Draw(image)
    drawing.rectangle((12, 40, 50, 84), fill=(40, 90 + number % 100, 160))
    drawing.ellipse((54, 20, 84, 50), fill=(200, 60, 40))
    return thumbnail(image)
