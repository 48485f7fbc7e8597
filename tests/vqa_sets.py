"""Miniature VQA sets for tests: drawn scenes with their questions, as official JSON files or in the hub's layout."""

from __future__ import annotations

import io
import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from tiny.drawn.questions import questions
from vlmtune.data.drawn.scenes import compose_scene

NUM_QUESTIONS = 3
"""About each image."""


def annotations(image_set: str, num_images: int) -> list[tuple[Image.Image, list[dict[str, Any]]]]:
    """Images, each with its questions as VQA's annotations have them: nine annotators agree and one does not."""
    first = {"train2014": 1000, "val2014": 2000, "test2015": 3000}[image_set]
    found = []
    for number in range(num_images):
        image_id = first + number
        scene = compose_scene(Random(f"test {image_id}"))
        asked = [q for q in questions(scene.facts, image_id) if q.type != "caption"][:NUM_QUESTIONS]
        items = []
        for place, question in enumerate(asked):
            given = [question.answer] * 9 + ["not sure"]
            items.append(
                {
                    "question_id": image_id * 1000 + place,
                    "image_id": image_id,
                    "question": question.question,
                    "question_type": question.question.lower().split()[0],
                    "answer_type": {"yes/no": "yes/no", "count": "number"}.get(question.type, "other"),
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": i}
                        for i, answer in enumerate(given, start=1)
                    ],
                }
            )
        found.append((scene.draw(), items))
    return found


def write_official(root: Path, images: dict[str, int], *, in_subfolders: bool = False) -> Path:
    """`root` with questions, annotations (none for test2015) and JPEG images of each set."""
    for image_set, num in images.items():
        set_ = annotations(image_set, num)
        folder = root / "Images" / image_set if in_subfolders else root / image_set
        folder.mkdir(parents=True)
        for image, items in set_:
            image.save(folder / f"COCO_{image_set}_{items[0]['image_id']:012d}.jpg", quality=95)
        every = [item for _, items in set_ for item in items]
        asked = [{key: item[key] for key in ("image_id", "question", "question_id")} for item in every]
        told = [{key: value for key, value in item.items() if key != "question"} for item in every]
        about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": image_set}
        name = f"mscoco_{image_set}"
        _write(
            root / ("Questions" if in_subfolders else "") / f"v2_OpenEnded_{name}_questions.json",
            {**about, "task_type": "Open-Ended", "questions": asked},
        )
        if image_set != "test2015":
            _write(
                root / ("Annotations" if in_subfolders else "") / f"v2_{name}_annotations.json",
                {**about, "annotations": told},
            )
    return root


def write_hub(root: Path, images: dict[str, int], *, old_sequence: bool = False) -> Path:
    """`root` in the layout and with the features of VQAv2 on the hub; its test questions have no answers.

    With ``old_sequence`` answers are a record of lists, as data sets written before `datasets` 4 may have them.
    """
    import datasets

    record = {"answer": datasets.Value("string"), "answer_confidence": datasets.Value("string"),
              "answer_id": datasets.Value("int64")}  # fmt: skip
    answers: Any = {k: datasets.List(v) for k, v in record.items()} if old_sequence else datasets.List(record)
    features = datasets.Features(
        {
            "question_type": datasets.Value("string"),
            "multiple_choice_answer": datasets.Value("string"),
            "answers": answers,
            "image_id": datasets.Value("int64"),
            "answer_type": datasets.Value("string"),
            "question_id": datasets.Value("int64"),
            "question": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    names = {"train2014": "train", "val2014": "validation", "test2015": "test"}
    for image_set, num in images.items():
        rows = []
        for image, items in annotations(image_set, num):
            file = io.BytesIO()
            image.save(file, "JPEG", quality=95)
            for item in items:
                row = {**item, "image": {"bytes": file.getvalue(), "path": f"{item['image_id']}.jpg"}}
                if image_set == "test2015":
                    row |= {"answers": None, "question_type": None, "answer_type": None, "multiple_choice_answer": None}
                elif old_sequence:
                    row["answers"] = {key: [answer[key] for answer in item["answers"]] for key in record}
                rows.append(row)
        columns = {name: [row[name] for row in rows] for name in features}
        target = root / "data" / f"{names[image_set]}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(target)
    return root


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
