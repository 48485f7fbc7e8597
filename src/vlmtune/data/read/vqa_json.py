"""VQA's official files: questions, annotations, and a folder of COCO images named by their number.

`v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json` and
`val2014/COCO_val2014_000000262148.jpg`; beside each other, or in sub-folders as the official instructions lay them
out. A test file has no annotations. Each questions file is one split.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.source import Source, refuse_problems, refuse_repeated_ids
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource

_QUESTIONS = re.compile(r"(?P<version>v\d+_)?(?:(?P<form>OpenEnded|MultipleChoice)_)?(?P<set>.+)_questions\.json")
_SPLITS = {"train2014": "train", "val2014": "validation", "test2015": "test", "test-dev2015": "testdev"}


def question_files(folder: Path) -> list[Path]:
    """The questions files of a folder and its sub-folders, multiple-choice ones left out."""
    paths = sorted([*folder.glob("*_questions.json"), *folder.glob("*/*_questions.json")])
    return [path for path in paths if "MultipleChoice" not in path.name]


def read_official_files(files: list[Path], mapper: ColumnMapper) -> Source:
    """Open questions files as splits named train, validation, test and testdev, or as their sets are called.

    Raises DataError for another file name, and for two files of one split.
    """
    root = Path(os.path.commonpath([path.parent for path in files]))
    if root.name == "Questions":  # the official instructions' folder, beside Annotations and Images
        root = root.parent
    source = Source(str(root), "VQA's official files", {})
    for path in files:
        name = _QUESTIONS.fullmatch(path.name)
        if name is None:
            raise DataError(
                f"{path}: not the name of a questions file. Expected v2_OpenEnded_mscoco_val2014_questions.json or "
                f"the like; a table of your own must be .csv, .jsonl or .parquet."
            )
        image_set = name["set"].removeprefix("mscoco_")
        split = _SPLITS.get(image_set, image_set)
        if split in source.splits:
            raise DataError(f"{root}: two questions files for the split '{split}' ({path.name} is one). Keep one.")
        annotations = f"{name['version'] or ''}{name['set']}_annotations.json"
        source.splits[split] = partial(_read_split, path, annotations, image_set, root, mapper.data, source)
    return source


def _read_split(
    path: Path, annotations_name: str, image_set: str, root: Path, data: DataSection, source: Source
) -> list[Example]:
    """The questions in the file's order, which is what slices of the split count on."""
    annotations_path = _beside(path, annotations_name, root)
    annotations = None if annotations_path is None else _by_question(annotations_path)
    if annotations is None:
        source.notes.append(f"{path.name} has no annotations beside it ({annotations_name}): no answers are known")
    images = _Images(Path(data.image_folder).expanduser() if data.image_folder else root, image_set)
    rows: list[Example] = []
    problems: list[str] = []
    for number, item in enumerate(_read_list(path, "questions")):
        origin = f"{path}, questions[{number}]"
        try:
            rows.append(_row(item, annotations, annotations_path, images, origin))
        except ValueError as problem:
            problems.append(f"{origin}: {problem}")
    refuse_problems(problems, path.name)
    refuse_repeated_ids(rows, str(path))
    if rows and not any(row.has_image for row in rows):
        raise DataError(
            f"{path}: none of its {len(rows)} questions has an image. The first would be "
            f"{images.expected(rows[0].image_id or '')}. Set data.image_folder to the folder that holds {image_set}/."
        )
    if annotations is not None and (unknown := len(annotations) - len(rows)) > 0:
        source.notes.append(f"{annotations_name} has {unknown} annotations to which {path.name} has no question")
    return rows


def _row(
    item: Any, annotations: dict[int, Any] | None, annotations_path: Path | None, images: _Images, origin: str
) -> Example:
    question_id, image_id = _number(item, "question_id"), _number(item, "image_id")
    question = item.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question {question_id} has no text in 'question'.")
    annotation: dict[str, Any] = {}
    if annotations is not None:
        if question_id not in annotations:
            raise ValueError(f"question {question_id} has no annotation in {annotations_path}.")
        annotation = annotations[question_id]
        if annotation.get("image_id", image_id) != image_id:
            raise ValueError(
                f"question {question_id} is about image {image_id}, and its annotation in {annotations_path} about "
                f"image {annotation['image_id']}."
            )
    image, exists = images.find(image_id)
    return Example(
        id=str(question_id),
        image=image,
        answers=_answers(annotation, question_id, annotations_path) if annotation else (),
        origin=origin,
        question=question.strip(),
        question_type=annotation.get("question_type"),
        answer_type=annotation.get("answer_type"),
        image_id=str(image_id),
        has_image=exists,
    )


def _answers(annotation: dict[str, Any], question_id: int, path: Path | None) -> tuple[str, ...]:
    records = annotation.get("answers")
    if not isinstance(records, list) or not records:
        raise ValueError(f"the annotation of question {question_id} in {path} has no list 'answers'.")
    texts: list[str] = []
    ids: set[Any] = set()
    for number, record in enumerate(records, start=1):
        text = record.get("answer") if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise ValueError(
                f"answer {number} to question {question_id} in {path} is no record with the text 'answer'."
            )
        if (answer_id := record.get("answer_id", number)) in ids:
            # The official accuracy tells annotators apart by it, and would leave both out together.
            raise ValueError(f"question {question_id} in {path} has two answers with the answer_id {answer_id}.")
        ids.add(answer_id)
        texts.append(text)
    return tuple(texts)


class _Images:
    """Where COCO's images of one set are. Folders are listed once: 80,000 single look-ups would take minutes."""

    def __init__(self, root: Path, image_set: str) -> None:
        # Questions of test-dev are about images of test.
        self.image_set = image_set.replace("test-dev", "test")
        names = (
            "",
            self.image_set,
            f"Images/{self.image_set}",
            f"Images/mscoco/{self.image_set}",
            f"images/{self.image_set}",
        )
        self.folders = [root / name for name in names]
        self._files: dict[str, Path] = {}
        for folder in self.folders:
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    self._files |= {entry.name: folder / entry.name for entry in entries}
        self._sources: dict[int, tuple[ImageSource, bool]] = {}

    def find(self, image_id: int) -> tuple[ImageSource, bool]:
        """The image, one source for all questions about it, and whether its file exists."""
        if image_id not in self._sources:
            path = next((self._files[name] for name in self._names(image_id) if name in self._files), None)
            file = path or self.expected(str(image_id))
            self._sources[image_id] = ImageSource(path=file, name=str(file)), path is not None
        return self._sources[image_id]

    def expected(self, image_id: str) -> Path:
        """The usual place of an image."""
        return self.folders[1] / self._names(int(image_id))[0]

    def _names(self, image_id: int) -> tuple[str, str]:
        # Since 2017 COCO names its files by the number alone.
        return f"COCO_{self.image_set}_{image_id:012d}.jpg", f"{image_id:012d}.jpg"


def _beside(path: Path, name: str, root: Path) -> Path | None:
    files = [path.parent / name, root / name, *sorted(root.glob(f"*/{name}"))]
    return next((file for file in files if file.is_file()), None)


def _by_question(path: Path) -> dict[int, Any]:
    annotations: dict[int, Any] = {}
    for number, item in enumerate(_read_list(path, "annotations")):
        try:
            question_id = _number(item, "question_id")
        except ValueError as problem:
            raise DataError(f"{path}, annotations[{number}]: {problem}") from problem
        if question_id in annotations:
            raise DataError(f"{path}, annotations[{number}]: question {question_id} is annotated twice.")
        annotations[question_id] = item
    return annotations


def _number(item: Any, key: str) -> int:
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"'{key}' is {value!r}, expected a whole number.")
    return value


def _read_list(path: Path, key: str) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot read this file ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this is not UTF-8 text (byte {error.start}: {error.reason}).") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: this is not valid JSON ({error.msg}). Download it again."
        ) from error
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a JSON object with the list '{key}', as VQA's official files have it.")
    return items
