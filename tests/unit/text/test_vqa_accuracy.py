"""The VQA accuracy against a second writing of the public evaluator, structured as its class VQAEval is."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtune.text.vqa_accuracy import CONTRACTIONS, normalize, trim, vqa_accuracy

pytestmark = pytest.mark.unit


class OfficialEvaluator:
    """VQAEval.evaluate for one question: records are changed in place, step by step, as the original does."""

    def __init__(self) -> None:
        words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
        self.manual_map = {"none": "0"} | {word: str(value) for value, word in enumerate(words)}
        self.period_strip = re.compile(r"(?!<=\d)(\.)(?!\d)")
        self.comma_strip = re.compile(r"(\d)(\,)(\d)")
        self.punct = list(';/[]"{}()=+\\_-><@`,?!')

    def evaluate(self, answer: str, records: list[dict[str, Any]]) -> float:
        records = copy.deepcopy(records)
        for record in records:
            record["answer"] = record["answer"].replace("\n", " ").replace("\t", " ").strip()
        answer = answer.replace("\n", " ").replace("\t", " ").strip()
        if len({record["answer"] for record in records}) > 1:
            for record in records:
                record["answer"] = self.process_digit_article(self.process_punctuation(record["answer"]))
            answer = self.process_digit_article(self.process_punctuation(answer))
        accuracies = []
        for record in records:
            others = [other for other in records if other != record]
            matching = [other for other in others if other["answer"] == answer]
            accuracies.append(min(1, float(len(matching)) / 3))
        return float(sum(accuracies)) / len(accuracies)

    def process_punctuation(self, text: str) -> str:
        out = text
        for p in self.punct:
            if (p + " " in text or " " + p in text) or (re.search(self.comma_strip, text) is not None):
                out = out.replace(p, "")
            else:
                out = out.replace(p, " ")
        return self.period_strip.sub("", out, 32)  # the original passes re.UNICODE as the count

    def process_digit_article(self, text: str) -> str:
        kept = []
        for word in text.lower().split():
            word = self.manual_map.get(word, word)
            if word not in ("a", "an", "the"):
                kept.append(word)
        return " ".join(CONTRACTIONS.get(word, word) for word in kept)


def records_of(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, start=1)]


def ten(answer: str, other: str = "something else", num: int = 10) -> list[str]:
    return [answer] * num + [other] * (10 - num)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators_give_steps_of_thirty_percent(matches: int, expected: float) -> None:
    assert vqa_accuracy("cat", ten("cat", "dog", matches)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("yes", ten("Yes"), 0.0),  # unanimous: nothing is normalized
        ("Yes", ten("Yes"), 1.0),
        ("Yes", ten("Yes", "yes", 5), 1.0),
        (" yes\n", ten("yes"), 1.0),
        ("u.s.", ten("u.s."), 1.0),
        ("us", ten("u.s."), 0.0),
        ("us", ten("u.s.", "usa", 6), 1.0),
        ("1000", ten("1,000", "many", 6), 1.0),
        ("1,000", ten("1000", "many", 6), 1.0),
        ("2.5", ten("2.5", "25", 6), 1.0),
        ("25", ten("2.5", "a few", 6), 0.0),  # a period before a digit stays
        ("5", ten(".5", "half", 6), 0.0),
        ("dont know", ten("don't know", "no idea", 6), 1.0),
        ("don't know", ten("dont know", "no idea", 6), 1.0),
        ("the cat", ten("a cat", "dog", 6), 1.0),
        ("the", ten("a", "dog", 6), 1.0),  # both become nothing
        ("", ten("the", "dog", 6), 1.0),
        ("two", ten("2", "3", 6), 1.0),
        ("none", ten("0", "1", 6), 1.0),
        ("none", ten("none", "0", 5), 1.0),
        ("black-white", ten("black white", "gray", 6), 1.0),
        ("black -white", ten("black white", "gray", 6), 1.0),
        ("black - white", ten("blackwhite", "gray", 6), 0.0),
        ("ping-pong, tennis", ten("ping pong tennis", "golf", 6), 1.0),
        ("left/right -", ten("left right", "up", 6), 1.0),
        ("a/b,c 1,000", ten("abc 1000", "up", 6), 1.0),  # one grouped number: every sign is cut, none becomes a space
        ("x", ten("x" + "." * 32, "dog", 6), 1.0),
        ("x", ten("x" + "." * 40, "dog", 6), 0.0),  # 32 periods of 40 go, eight stay
        ("x" + "." * 40, ten("x" + "." * 40, "dog", 6), 1.0),
        ("somebody'd", ten("somebodyd", "dog", 6), 1.0),
        ("im", ten("i'm", "dog", 6), 0.0),  # the map's capital Im never meets lower-case words
        ("cat", ["cat"], 0.0),
        ("cat", ["cat", "cat"], 1 / 3),
        ("cat", ["cat", "cat", "dog"], (1 / 3 + 1 / 3 + 2 / 3) / 3),
        ("cat", ["cat"] * 4, 1.0),
    ],
)  # fmt: skip
def test_adversarial_cases_equal_the_evaluator(prediction: str, answers: list[str], expected: float) -> None:
    official = OfficialEvaluator().evaluate(prediction, records_of(*answers))
    assert vqa_accuracy(prediction, answers) == official
    assert official == pytest.approx(expected)


PIECES = (
    "yes", "No", "the", "a", "An", "none", "two", "Ten", "2", "3.5", ".5", "1,000", "1,0,0", "dont", "couldn'tve",
    "I'm", "im", "o'clock", "oclock", ".", "..", "." * 33, ",", " ,", "-", " - ", "/", "(", ")", "?", "!", "@", "`",
    "\\", "_", "\n", "\t", " ", "  ", "é", "İ", "٣,٣", "漢",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=12)


@settings(deadline=None, max_examples=400)
@given(texts, st.lists(texts, min_size=1, max_size=4), st.data())
def test_random_answers_equal_the_evaluator(prediction: str, pool: list[str], data: st.DataObject) -> None:
    answers = data.draw(st.lists(st.sampled_from([*pool, prediction]), min_size=1, max_size=12))
    assert vqa_accuracy(prediction, answers) == OfficialEvaluator().evaluate(prediction, records_of(*answers))
    marks = data.draw(st.lists(st.integers(0, 2), min_size=len(answers), max_size=len(answers)))
    records = [{"answer": a, "answer_id": m} for a, m in zip(answers, marks, strict=True)]
    assert vqa_accuracy(prediction, answers, marks) == OfficialEvaluator().evaluate(prediction, records)


@settings(deadline=None, max_examples=400)
@given(texts)
def test_normal_forms_equal_the_evaluator(text: str) -> None:
    official = OfficialEvaluator()
    assert normalize(trim(text)) == official.process_digit_article(official.process_punctuation(trim(text)))


def test_records_that_are_equal_are_left_out_together() -> None:
    same_person_twice = ["cat", "cat", "dog", "dog"]
    assert vqa_accuracy("cat", same_person_twice, [1, 1, 2, 3]) == pytest.approx((0 + 0 + 2 / 3 + 2 / 3) / 4)
    assert vqa_accuracy("cat", same_person_twice) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3 + 2 / 3) / 4)


def test_contraction_map_is_the_public_evaluators() -> None:
    """SHA-256 of the map in GT-Vision-Lab/VQA, sorted, as JSON: a typing slip here would move published numbers."""
    digest = hashlib.sha256(json.dumps(sorted(CONTRACTIONS.items())).encode()).hexdigest()
    assert digest == "3e5960526f62912d3b70896069c43c13d7c21be38d50ca28efbb9095b499454f"


def test_without_answers_there_is_no_accuracy() -> None:
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("yes", [])
