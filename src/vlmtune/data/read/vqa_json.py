"""VQA's official files: questions, annotations, and a folder of COCO images named by their number.

`v2_OpenEnded_mscoco_val2014_questions.json`, `v2_mscoco_val2014_annotations.json` and
`val2014/COCO_val2014_000000262148.jpg`; beside each other, or in sub-folders as the official instructions lay them
out. A test file has no annotations. Each questions file is one split.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from vlmtune.config.schema import DataSection
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.rows import Questions, TableRow
from vlmtune.data.read.source import Source
from vlmtune.data.read.text_table import read_json
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource

_QUESTIONS = re.compile(r"(?P<version>v\d+_)?(?:(?P<form>OpenEnded|MultipleChoice)_)?(?P<set>.+)_questions\.json")
_QUESTION_KEYS = {"question": "question", "question_id": "question_id", "image_id": "image_id"}
_ANNOTATION_KEYS = {"answer": "answers", "question_type": "question_type", "answer_type": "answer_type"}
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
    """The questions in the file's order, on which slices of the split rely."""
    annotations_path = _beside(path, annotations_name, root)
    annotations = None if annotations_path is None else _by_question(annotations_path)
    if annotations is None:
        source.notes.append(f"{path.name} has no annotations beside it ({annotations_name}): no answers are known")
    images = _Images(Path(data.image_folder).expanduser() if data.image_folder else root, image_set)
    items = _read_list(path, "questions")
    rows = (
        _row(item, annotations, annotations_path, images, f"{path}, questions[{i}]") for i, item in enumerate(items)
    )
    mapping = Questions(_QUESTION_KEYS | ({} if annotations is None else _ANNOTATION_KEYS))
    examples = mapping.map_rows(rows, source, str(path), Counter())
    if examples and not any(example.has_image for example in examples):
        raise DataError(
            f"{path}: none of its {len(examples)} questions has an image. The first would be "
            f"{images.expected(examples[0].image_id or '')}. Set data.image_folder to the folder that holds "
            f"{image_set}/."
        )
    if annotations is not None and (unknown := len(annotations) - len(examples)) > 0:
        source.notes.append(f"{annotations_name} has {unknown} annotations to which {path.name} has no question")
    return examples


def _row(
    item: Any, annotations: dict[int, Any] | None, annotations_path: Path | None, images: _Images, origin: str
) -> TableRow:
    """One question with its annotation as the row of a table."""
    try:
        question_id, image_id = _number(item, "question_id"), _number(item, "image_id")
        annotation = {} if annotations is None else annotations.get(question_id)
        if annotation is None:
            raise ValueError(f"question {question_id} has no annotation in {annotations_path}.")
        _check_annotation(annotation, question_id, image_id, annotations_path)
    except ValueError as problem:
        return TableRow("", origin, {}, None, problem=str(problem))
    image, exists = images.find(image_id)
    return TableRow("", origin, annotation | item, image, str(image_id), has_image=exists)


def _check_annotation(annotation: dict[str, Any], question_id: int, image_id: int, path: Path | None) -> None:
    """Raise ValueError for an annotation of another image, without answers, or with a repeated annotator."""
    if annotation.get("image_id", image_id) != image_id:
        raise ValueError(
            f"question {question_id} is about image {image_id}, and its annotation in {path} about image "
            f"{annotation['image_id']}."
        )
    answers = annotation.get("answers", [])
    if annotation and (not isinstance(answers, list) or not answers):
        raise ValueError(f"the annotation of question {question_id} in {path} has no list 'answers'.")
    ids = [answer.get("answer_id", number) for number, answer in enumerate(answers, 1) if isinstance(answer, dict)]
    if len(set(ids)) < len(ids):
        # The official accuracy identifies annotators by it, and would leave out both.
        twice = next(id_ for id_ in ids if ids.count(id_) > 1)
        raise ValueError(f"question {question_id} in {path} has two answers with the answer_id {twice}.")


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
    content = read_json(path)
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a JSON object with the list '{key}', as VQA's official files have it.")
    return items
