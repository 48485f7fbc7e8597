"""Conversations and captions: every answer with the turns before it, nothing left out uncounted."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.drawn.scenes import compose_scene
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import DataError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.registry import open_model
from vlmtune.text.formats import PALIGEMMA

pytestmark = pytest.mark.unit

VQA = TaskSection(type="text")


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    for name in "abcdef":
        Image.new("RGB", (16, 16), (ord(name), 0, 0)).save(tmp_path / "coco" / f"{name}.png")
    return tmp_path


LLAVA: list[dict[str, Any]] = [
    {"id": "1", "image": "coco/a.png", "conversations": turns("<image>\nWhat?", "A cat.", "Where?", "On a mat.")},
    {"id": "2", "image": "coco/b.png", "conversations": turns("Describe it.\n<image>", " A dog. ", "Why?")},
    {"id": "3", "conversations": turns("Write a poem.", "No.")},
    {"id": "4", "image": "coco/c.png", "conversations": turns("<image><image> Which?", "The first.")},
    {"id": "5", "image": "coco/d.png", "conversations": turns("<image>What?", "", "And?", "Yes.")},
    {
        "id": "6",
        "image": "coco/e.png",
        "conversations": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "A fox."},
        ],
    },
]


def load(path: Path, **data: Any) -> Splits:
    section = DataSection(source=str(path), validation_fraction=0.1, test_fraction=0.1, **data)
    return load_splits(section, VQA, 0)


def everything(splits: Splits) -> dict[str, Any]:
    return {e.id: e for e in (*splits.train, *splits.validation, *splits.test)}


@pytest.mark.parametrize("name", ["talk.json", "talk.jsonl"])
def test_each_answer_has_all_turns_before_it(folder: Path, name: str) -> None:
    text = json.dumps(LLAVA) if name.endswith("json") else "\n".join(map(json.dumps, LLAVA))
    (folder / name).write_text(text)
    splits = load(folder / name)
    found = everything(splits)
    assert set(found) == {"1#1", "1#2", "2#1", "6#1"}
    assert (found["1#1"].question, set(found["1#1"].answers), found["1#1"].history) == ("What?", {"A cat."}, ())
    assert (found["1#2"].question, found["1#2"].history) == ("Where?", (("What?", "A cat."),))
    assert (found["2#1"].question, set(found["2#1"].answers)) == ("Describe it.", {"A dog."})
    assert found["1#1"].image is found["1#2"].image and found["1#1"].image_id == found["1#2"].image_id
    counted = {item["reason"].split(" (")[0]: item["count"] for item in splits.description["left_out"]}
    assert counted == {
        "last questions without an answer": 1,
        "conversations without an image": 1,
        "conversations about several images": 1,
        "turns with an empty question or answer, and those after them": 1,
        "system turns": 1,
    }


def test_turns_about_one_image_stay_in_one_split(folder: Path) -> None:
    path = folder / "talk.json"
    path.write_text(json.dumps(LLAVA[:2]))
    splits = load(path, turns="first")
    assert set(everything(splits)) == {"1#1", "2#1"}
    assert any("data.turns" in item["reason"] and item["count"] == 1 for item in splits.description["left_out"])


def test_a_conversation_out_of_order_is_named_with_its_place(folder: Path) -> None:
    path = folder / "talk.jsonl"
    bad = {"id": "7", "image": "coco/a.png", "conversations": turns("a", "b")[::-1]}
    path.write_text(json.dumps(LLAVA[0]) + "\n" + json.dumps(bad))
    with pytest.raises(DataError, match=r"talk\.jsonl, line 2.*expected human and assistant in turns"):
        load(path)
    path.write_text(json.dumps({"id": "8", "image": "coco/a.png", "conversations": [{"from": "dog", "value": "x"}]}))
    with pytest.raises(DataError, match=r"Expected \{'from': 'human' or 'gpt'"):
        load(path)


def test_images_of_a_list_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lists") / "talk.json"
    path.write_text(json.dumps(LLAVA[:1]))
    with pytest.raises(DataError, match="no image file"):
        load(path)
    assert everything(load(path, image_folder=str(folder)))


def test_captions_answer_one_question(folder: Path) -> None:
    path = folder / "captions.jsonl"
    rows = [{"image": f"coco/{name}.png", "caption": [f"a {name}", f"the {name}"]} for name in "abcdef"]
    path.write_text("\n".join(map(json.dumps, rows)))
    splits = load(path, caption_question="caption en")
    assert {example.question for example in splits.train} == {"caption en"}
    assert set(everything(splits)["coco/a.png"].answers) == {"a a", "the a"}
    assert "captions, as answers to 'caption en'" in splits.description["notes"][0]


def test_conversations_are_read_from_parquet(folder: Path) -> None:
    import datasets

    rows = LLAVA[:3]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    listed = [{**row, "image": str(folder / row["image"]) if "image" in row else None} for row in rows]
    datasets.Dataset.from_list(listed, features=features).to_parquet(folder / "talk.parquet")
    splits = load(folder / "talk.parquet")
    found = everything(splits)
    assert set(found) == {"1#1", "1#2", "2#1"}
    assert any("without an image" in item["reason"] and item["count"] == 1 for item in splits.description["left_out"])
    assert found["1#2"].history == (("What?", "A cat."),)


def test_a_later_turn_follows_the_chat_template() -> None:
    opened = open_model("builtin:tiny")
    predictor = Predictor(opened, VQA)
    image = opened.processor.process(compose_scene(Random(0)).draw())
    ids = [*predictor.prefix, *predictor.rest_of_prompt(image, "Where?", (("What?", "A cat."),))]
    expected = opened.tokenizer.render(
        [
            {"role": "system", "content": predictor.prompt.system},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": "Where?"},
        ],
        add_generation_prompt=True,
    ).replace("<image>", image.text)
    assert ids == opened.tokenizer.encode(expected)
    with pytest.raises(DataError, match="special token"):
        predictor.rest_of_prompt(image, "Where?", (("What?", "<|im_end|>"),))


def test_a_family_without_turns_says_what_to_do() -> None:
    predictor = Predictor(open_model("builtin:tiny"), VQA)
    predictor.prompt.tokenizer.prompt_format = PALIGEMMA
    with pytest.raises(DataError, match=r"data\.turns: first"):
        predictor.prompt.build("Where?", "<image>", (("What?", "A cat."),))
