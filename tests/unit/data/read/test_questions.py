"""Questions from every kind of source: the same rows, ten answers, shared images, and errors that name the row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.vqa_sets import NUM_QUESTIONS, write_hub, write_official
from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.read.open import open_source
from vlmtune.data.sampling import subset
from vlmtune.data.split_names import SplitPart, assign_roles, parse_split
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.records import Example

pytestmark = pytest.mark.unit

SETS = {"train2014": 8, "val2014": 4, "test2015": 2}
VQA = TaskSection(type="text")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_official(tmp_path_factory.mktemp("official"), SETS)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hub(tmp_path_factory.mktemp("hub"), SETS)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def load(source: Path | str, task: TaskSection = VQA, seed: int = 0, **keys: Any) -> Splits:
    return load_splits(DataSection(source=str(source), **keys), task, seed)


def facts(examples: list[Example]) -> list[tuple[Any, ...]]:
    return [(e.id, e.question, e.answers, e.question_type, e.answer_type, e.image_id) for e in examples]


# --- sources


def test_official_files_and_the_hubs_layout_give_the_same_questions(official: Path, hub: Path) -> None:
    first, second = load(official), load(hub)
    for role in ("train", "validation"):
        assert facts(first.split(role)) == facts(second.split(role))
    assert [e.id for e in first.test] == [e.id for e in second.test]
    assert len(first.train) == SETS["train2014"] * NUM_QUESTIONS and len(first.train[0].answers) == 10
    assert first.train[0].answers.count("not sure") == 1
    assert first.test[0].answers == second.test[0].answers == ()
    assert first.train[0].image.open().size == second.train[0].image.open().size


def test_records_of_lists_are_read_as_lists_of_records(hub: Path, tmp_path: Path) -> None:
    old = write_hub(tmp_path / "old", {"train2014": 2, "val2014": 1}, old_sequence=True)
    assert facts(load(old).validation) == facts(load(hub).validation)[:NUM_QUESTIONS]


def test_subfolders_of_the_official_instructions_are_found(official: Path, tmp_path: Path) -> None:
    other = load(write_official(tmp_path / "vqa", SETS, in_subfolders=True))
    assert facts(other.train) == facts(load(official).train)
    other.train[0].image.open()


def test_images_may_be_elsewhere_and_named_by_number_alone(official: Path, tmp_path: Path) -> None:
    folder = tmp_path / "coco" / "train2014"
    folder.mkdir(parents=True)
    for path in (official / "train2014").iterdir():
        (folder / path.name.removeprefix("COCO_train2014_")).write_bytes(path.read_bytes())
    questions = official / "v2_OpenEnded_mscoco_train2014_questions.json"
    rows = open_source(
        DataSection(source=str(questions), image_folder=str(tmp_path / "coco")), has_questions=True
    ).splits["train"]()
    assert rows[0].image.path == folder / "000000001000.jpg" and all(row.has_image for row in rows)


@pytest.mark.parametrize("source", ["official", "hub"])
def test_questions_about_a_image_share_one_source_of_it(source: str, request: pytest.FixtureRequest) -> None:
    train = load(request.getfixturevalue(source)).train
    sources: dict[str | None, set[int]] = {}
    for example in train:
        sources.setdefault(example.image_id, set()).add(id(example.image))
    assert len(sources) == SETS["train2014"] and all(len(ids) == 1 for ids in sources.values())


def test_images_without_ids_are_told_apart_by_their_content(tmp_path: Path) -> None:
    import datasets

    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    columns = {
        "image": [str(tmp_path / f"{name}.png") for name in "aabb"],
        "question": ["what?", "why?", "what?", "how?"],
        "answer": ["red", "paint", "blue", "paint"],
    }
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.map(lambda row: row).to_parquet(tmp_path / "own.parquet")
    rows = open_source(DataSection(source=str(tmp_path / "own.parquet")), has_questions=True).splits["train"]()
    assert [row.image_id for row in rows] == ["train/0", "train/0", "train/2", "train/2"]
    assert rows[0].image is rows[1].image and rows[0].answers == ("red",) * 10


def test_a_table_needs_images_questions_and_answers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "asked.csv").write_text("image,question,answer\na.png,What?,red\na.png,How many?,2\nb.png,What?,red\n")
    source = open_source(DataSection(source=str(tmp_path / "asked.csv")), has_questions=True)
    rows = source.splits["all"]()
    assert [(row.id, row.answers[0], len(row.answers)) for row in rows] == [
        ("a.png", "red", 10), ("a.png#2", "2", 10), ("b.png", "red", 10),
    ]  # fmt: skip
    assert rows[0].image is rows[1].image and rows[0].image_id == "a.png"
    assert "one answer a question" in source.notes[0]

    lines = [{"image": "a.png", "query": "What?", "replies": ["red", "scarlet"], "question_id": 7}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, lines)))
    keys = {"question_column": "query", "answer_column": "replies"}
    (row,) = open_source(DataSection(source=str(tmp_path / "asked.jsonl"), **keys), has_questions=True).splits["all"]()
    assert (row.id, row.answers) == ("7", ("red", "scarlet"))


# --- what is wrong with a source is said, with its place


def edited(root: Path, official: Path, name: str, change: Any) -> Path:
    """A copy of the official set in which one JSON file is changed."""
    import shutil

    shutil.copytree(official, root)
    (path,) = root.glob(f"*{name}.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


def questions(content: Any) -> Any:
    return content["questions"]


def annotated(content: Any) -> Any:
    return content["annotations"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: questions(c)[4].update(question=" "), r"questions\[4\]: the question \(column 'question'\) is ' '"),
        (lambda c: questions(c)[4].update(question_id="x"), r"questions\[4\]: 'question_id' is 'x'"),
        (lambda c: questions(c).append(questions(c)[0]), "the question id 1000000 appears twice"),
        (lambda c: c.pop("questions"), "expected a JSON object with the list 'questions'"),
    ],
)
def test_bad_questions_of_official_files_are_named(change: Any, message: str, official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(edited(tmp_path / "edited", official, "train2014_questions", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: annotated(c).pop(4), r"questions\[4\]: question 1001001 has no annotation in"),
        (lambda c: annotated(c)[4].update(image_id=5), "and its annotation in .* about image 5"),
        (lambda c: annotated(c)[4].update(answers=[]), "has no list 'answers'"),
        (lambda c: annotated(c)[4]["answers"][3].update(answer_id=1), "has two answers with the answer_id 1"),
        (
            lambda c: annotated(c)[4]["answers"][3].pop("answer"),
            r"questions\[4\]: answer 4 \(column 'answers'\) is .*or of records",
        ),
        (lambda c: annotated(c).append(annotated(c)[0]), r"annotations\[24\]: question 1000000 is annotated twice"),
    ],
)
def test_bad_annotations_of_official_files_are_named(change: Any, message: str, official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load(edited(tmp_path / "edited", official, "train2014_annotations", change))


def test_five_bad_rows_are_named_and_the_others_counted(official: Path, tmp_path: Path) -> None:
    def spoil(content: Any) -> None:
        for item in content["questions"][:9]:
            item["question"] = ""

    with pytest.raises(DataError) as caught:
        load(edited(tmp_path / "edited", official, "train2014_questions", spoil))
    assert str(caught.value).count("is empty") == 5 and "and 4 more rows" in str(caught.value)


def test_missing_images_are_counted_listed_and_not_learned_from(official: Path, tmp_path: Path) -> None:
    root = edited(tmp_path / "edited", official, "train2014_questions", lambda content: None)
    for path in [*sorted((root / "train2014").iterdir())[:2], *(root / "test2015").iterdir()][:-1]:
        path.unlink()
    splits = load(root)
    assert len(splits.train) == (SETS["train2014"] - 2) * NUM_QUESTIONS
    (item,) = [i for i in splits.description["left_out"] if "image is missing" in i["reason"]]
    assert item["count"] == 2 * NUM_QUESTIONS and item["examples"][0].endswith("COCO_train2014_000000001000.jpg")
    assert len(splits.test) == SETS["test2015"] * NUM_QUESTIONS, "a missing test image is a wrong answer"
    with pytest.raises(UnreadableImageError):
        for example in splits.test:
            example.image.open()


def test_a_wrong_image_folder_names_the_expected_file(official: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 24 questions has an image.*COCO_train2014_000000001000\.jpg"):
        load(official, image_folder=str(tmp_path))


def test_bad_rows_of_tables_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,question,answer\na.png,What?,red\na.png,,red\nb.png,What?,red\n")
    with pytest.raises(
        DataError, match=r"line 3: the question \(column 'question'\) is empty(.|\n)*line 4.*no image file"
    ):
        load(tmp_path / "t.csv")
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.png", "question": "What?", "answer": [{"text": "red"}]}))
    with pytest.raises(DataError, match=r"line 1: answer 1 \(column 'answer'\) is .*Expected text, a list of texts"):
        load(tmp_path / "t.jsonl")
    (tmp_path / "u.csv").write_text("image,asked,answer\na.png,What?,red\n")
    with pytest.raises(DataError, match=r"no column for the question.*data\.question_column"):
        load(tmp_path / "u.csv")


def test_sets_of_labels_and_of_questions_differ(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"builtin:digits is made for task\.question_from: prompt.*builtin:drawn-vqa"):
        load("builtin:digits")
    with pytest.raises(DataError, match=r"made for task\.question_from: data"):
        load("builtin:drawn-vqa", TaskSection())
    (tmp_path / "cats").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "cats" / "a.png")
    with pytest.raises(DataError, match="there are no questions in it"):
        load(tmp_path)


def test_training_questions_without_answers_are_an_error(official: Path) -> None:
    with pytest.raises(DataError, match="no training question to learn from: 6 questions without answers"):
        load(official, train_split="test", test_split="train")


# --- splits


def test_split_expressions() -> None:
    assert parse_split("validation[-10240:]") == [SplitPart("validation", -10240, None)]
    assert parse_split("train + validation[:-10240]") == [SplitPart("train"), SplitPart("validation", None, -10240)]
    assert parse_split("a+b", ["a+b"]) == [SplitPart("a+b")]
    names = ["train", "validation", "test"]
    roles = assign_roles(DataSection(test_split="validation[-2:]"), names, "here")
    assert roles == {"train": "train", "test": "validation[-2:]"}, (
        "what is left of a sliced split plays no role by itself"
    )
    with pytest.raises(DataError, match=r"Unknown split 'vaildation'.*Did you mean 'validation'"):
        assign_roles(DataSection(test_split="vaildation[-2:]"), names, "here")


def test_minival_is_the_tail_of_validation(official: Path) -> None:
    whole = load(official).validation
    plain = load(official, test_split="validation[-5:]", validation_fraction=0.25)
    assert facts(plain.test) == facts(whole[-5:])
    assert len(plain.train) + len(plain.validation) == SETS["train2014"] * NUM_QUESTIONS
    more = load(official, train_split="train+validation[:-5]", test_split="validation[-5:]", validation_fraction=0.25)
    assert len(more.train) + len(more.validation) == SETS["train2014"] * NUM_QUESTIONS + len(whole) - 5
    with pytest.raises(DataError, match=r"question.*is in the train and in the test split"):
        load(official, train_split="train+validation[:-5]", test_split="validation[-6:]")


def test_held_out_questions_keep_the_questions_of_a_image_together(official: Path) -> None:
    splits = load(official, train_split="train", test_split="validation", validation_fraction=0.3)
    train, held = ({e.image_id for e in part} for part in (splits.train, splits.validation))
    assert train and held and not train & held
    assert all(count == NUM_QUESTIONS for count in Counter(e.image_id for e in splits.validation).values())
    again = load(official, train_split="train", test_split="validation", validation_fraction=0.3, fraction=0.5)
    assert [e.id for e in again.validation] == [e.id for e in splits.validation]


def test_a_share_of_questions_is_taken_by_image() -> None:
    train = load("builtin:drawn-vqa", limit=2_000).train
    small, large = subset(train, 31, 0), subset(train, 300, 0)
    assert len(small) == 31 and {e.id for e in small} < {e.id for e in large}
    whole = Counter(e.image_id for e in train)
    cut = [image for image, num in Counter(e.image_id for e in small).items() if num < whole[image]]
    assert len(cut) <= 1


def test_a_closed_list_leaves_out_questions_it_cannot_answer(official: Path) -> None:
    task = TaskSection(question_from="data", labels=["yes", "no"])
    splits, every = load(official, task), load(official)
    assert splits.labels is not None and splits.labels.stored == ("yes", "no")
    assert {e.answers[0] for e in splits.train} <= {"yes", "no"} and splits.train
    assert len(splits.validation) == len(every.validation), "what cannot be answered counts as wrong"
    (item,) = [i for i in splits.description["left_out"] if "task.labels" in i["reason"]]
    assert item["count"] == len(every.train) - len(splits.train)
