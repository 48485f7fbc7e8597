"""VQA evaluations: figures, intervals over images, the results file, and comparisons of the same questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlmtune.errors import DataError, RunFolderError
from vlmtune.evaluate.files import read_evaluation
from vlmtune.evaluate.statistics import clustered_bootstrap, percentile_interval, sign_flip_test, wilson_interval
from vlmtune.evaluate.vqa_compare import compare_vqa
from vlmtune.evaluate.vqa_metrics import measure_vqa
from vlmtune.evaluate.vqa_predictions import (
    VqaEvaluation,
    VqaTable,
    is_vqa,
    read_vqa_evaluation,
    write_vqa_evaluation,
)
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit

FACTS = {"name": "run", "task": "vqa", "labels": [], "data": {"split": "test"}}


def question(number: int, image: int, answer: str = "yes", kind: str = "yes/no") -> Example:
    answers = (answer,) * 9 + ("unsure",) if answer else ()
    return Example(str(number), ImageSource(data=b""), answers, f"{number}?", "is", kind, str(image))


def table(examples: list[Example], predictions: list[str | None]) -> VqaTable:
    errors = [None if prediction is not None else "broken" for prediction in predictions]
    return VqaTable.of(examples, predictions, errors, np.ones(len(examples), np.float32))


def evaluation(name: str, examples: list[Example], predictions: list[str | None]) -> VqaEvaluation:
    return VqaEvaluation({**FACTS, "name": name}, table(examples, predictions))


def test_figures_are_those_of_the_public_evaluator() -> None:
    examples = [question(1, 1), question(2, 1), question(3, 2, "2", "number"), question(4, 3, "2", "number")]
    found = measure_vqa(table(examples, ["Yes.", "no", "two", None]))
    assert found["official"]["overall"] == 50.0 and found["num_unreadable"] == 1
    assert found["official"]["perAnswerType"] == {"number": 50.0, "yes/no": 50.0}
    assert [entry["num"] for entry in found["by_answer_type"]] == [2, 2]
    assert (found["num_images"], found["num_measured"]) == (3, 4)
    (low, high) = found["accuracy_interval"]
    assert 0 <= low < 0.5 < high <= 1


def test_one_question_a_image_gives_the_usual_interval_and_copies_do_not_narrow_it() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.7).astype(float)
    alone = percentile_interval(clustered_bootstrap(right[:, None], np.arange(400), 4_000)[:, 0])
    low, high = wilson_interval(int(right.sum()), 400)
    assert abs(alone[0] - float(low)) < 0.01 and abs(alone[1] - float(high)) < 0.01
    copied = clustered_bootstrap(np.repeat(right, 5)[:, None], np.repeat(np.arange(400), 5), 4_000)
    five = percentile_interval(copied[:, 0])
    assert abs(five[0] - alone[0]) < 1e-9 and abs(five[1] - alone[1]) < 1e-9


def test_a_resample_counts_only_the_questions_of_a_type() -> None:
    values = np.array([[1.0, np.nan], [0.0, 0.0], [1.0, 1.0]])
    samples = clustered_bootstrap(values, np.array([0, 0, 1]), 200)
    assert set(np.round(samples[:, 0], 6)) == {0.5, round(2 / 3, 6), 1.0}
    assert set(samples[:, 1]) == {0.0, 0.5, 1.0}


def test_sign_flips_see_a_real_difference_and_no_difference() -> None:
    rng = np.random.default_rng(1)
    assert sign_flip_test(np.zeros(50)) == 1.0
    assert sign_flip_test(rng.normal(0.5, 1, 200)) < 0.001
    values = [sign_flip_test(rng.normal(0, 1, 40), num_draws=199, seed=i) for i in range(200)]
    assert abs(np.mean([p <= 0.05 for p in values]) - 0.05) < 0.05, "the level is kept"
    # Few images: all 2^5 changes of sign are drawn often, two of them as far out.
    assert sign_flip_test(np.ones(5)) == pytest.approx(2 / 2**5, abs=0.01)


def test_the_results_file_has_every_question_once_with_whole_numbers_as_ids(tmp_path: Path) -> None:
    made = table([question(7, 1), question(9, 2)], ["yes", None])
    write_vqa_evaluation(tmp_path / "e", FACTS, made, {"1": b"jpeg"})
    found = json.loads((tmp_path / "e" / "submission.json").read_text())
    assert found == [{"question_id": 7, "answer": "yes"}, {"question_id": 9, "answer": ""}]


def test_a_folder_read_back_is_the_one_written(tmp_path: Path) -> None:
    examples = [question(1, 1), question(2, 2, "")]
    made = table(examples, ["yes", "what"])
    write_vqa_evaluation(tmp_path / "e", {**FACTS, "metrics": measure_vqa(made)}, made, {"1": b"jpeg"})
    read = read_vqa_evaluation(tmp_path / "e")
    assert read.table.columns.equals(made.columns) and read.thumbnails == {"1": b"jpeg"} and is_vqa(tmp_path / "e")
    assert np.isnan(read.table.accuracy[1]), "answers that are not known give no accuracy"
    with pytest.raises(RunFolderError):
        read_evaluation(tmp_path / "e")


def test_questions_without_answers_give_no_accuracy() -> None:
    found = measure_vqa(table([question(1, 1, "")], ["yes"]))
    assert found["accuracy"] is None and found["official"] is None and found["num_measured"] == 0


def test_a_damaged_column_is_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    made = table([question(1, 1)], ["yes"])
    write_vqa_evaluation(tmp_path / "e", FACTS, made, {})
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "e" / "predictions.parquet")
    with pytest.raises(RunFolderError, match=r"predictions\.parquet: no column image"):
        read_vqa_evaluation(tmp_path / "e")


# --- comparison


def many(num: int = 120) -> list[Example]:
    return [question(i, i // 3, "yes", ("yes/no", "other")[i % 2]) for i in range(num)]


def test_a_comparison_pairs_questions_whatever_their_order() -> None:
    examples = many()
    predictions: list[Any] = ["yes" if i % 4 else "no" for i in range(len(examples))]
    better = ["yes"] * len(examples)
    first = evaluation("base", examples, predictions)
    second = evaluation("tuned", examples[::-1], better)
    (pair,) = compare_vqa([first, second])["pairs"]
    assert pair["difference"] == pytest.approx(0.25) and pair["is_significant"]
    assert (pair["num_better"], pair["num_worse"]) == (30, 0)
    low, high = pair["difference_interval"]
    assert 0 < low < 0.25 < high
    assert {entry["name"]: entry["difference"] for entry in pair["by_answer_type"]} == {
        "yes/no": pytest.approx(0.5), "other": pytest.approx(0.0),
    }  # fmt: skip


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_answers_all_alike_have_an_interval_that_narrows_with_images_alone(answer: str) -> None:
    widths = []
    for num in (12, 120):
        examples = many(num)
        found = measure_vqa(table(examples, [answer] * num))
        low, high = found["accuracy_interval"]
        assert (low, high) == tuple(map(float, wilson_interval(found["accuracy"] * num // 3, num // 3)))
        unchanged = compare_vqa([evaluation(name, examples, [answer] * num) for name in "ab"])["pairs"][0]
        below, above = unchanged["difference_interval"]
        assert below < 0 < above and unchanged["p_value"] == 1.0
        widths += [high - low, above - below]
    assert widths[2] < widths[0] and widths[3] < widths[1]


def test_evaluations_of_other_questions_are_refused() -> None:
    examples = many()
    first = evaluation("base", examples, ["yes"] * 120)
    with pytest.raises(DataError, match="1 are in the first alone and 0 in the second alone, such as 119"):
        compare_vqa([first, evaluation("tuned", examples[:-1], ["yes"] * 119)])
    changed = [replace(examples[0], answers=("no",) * 10), *examples[1:]]
    with pytest.raises(DataError, match="other words or answers for 1 questions, such as 0"):
        compare_vqa([first, evaluation("tuned", changed, ["yes"] * 120)])
    with pytest.raises(DataError, match="same name"):
        compare_vqa([first, first])
