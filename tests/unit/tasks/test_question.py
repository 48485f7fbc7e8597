"""How a prediction scores: labels, annotators, levels, open answers."""

from __future__ import annotations

import pytest

from vlmtune.config.schema import TaskSection
from vlmtune.records import Example, ImageSource, LabelSet
from vlmtune.tasks.question import Question, Task
from vlmtune.text.vqa_accuracy import vqa_accuracy

pytestmark = pytest.mark.unit

LEVELS = LabelSet.build(["new", "light", "heavy", "broken"])


def example(*answers: str, image_id: str | None = None) -> Example:
    return Example("1", ImageSource(data=b""), answers, image_id=image_id)


def question(section: TaskSection, labels: LabelSet | None) -> Question:
    (only,) = Task.of(section, labels).questions
    return only


def test_one_true_label_scores_zero_or_one() -> None:
    choice = question(TaskSection(), LabelSet.build(["cat", "dog"]))
    assert [choice.score(label, example("cat")) for label in ("cat", "dog", None)] == [1, 0, 0]
    assert choice.score("cat", example(*["cat"] * 10)) == 1


def test_several_annotators_score_the_official_accuracy() -> None:
    answers = ["red"] * 2 + ["blue"] * 8
    closed = question(TaskSection(question_from="data"), LabelSet.build(["red", "blue"]))
    opened = question(TaskSection(type="text"), None)
    for asked in (closed, opened):
        assert asked.score("red", example(*answers)) == vqa_accuracy("red", answers) == pytest.approx(0.6)


def test_a_single_open_answer_counts_as_unanimous() -> None:
    opened = question(TaskSection(type="text", question_from="prompt"), None)
    assert [opened.score(text, example("Two cats")) for text in ("Two cats", "two cats")] == [1, 0]


def test_an_example_without_answers_has_no_score() -> None:
    assert question(TaskSection(type="text"), None).score("red", example()) is None


def test_scores_know_how_many_levels_they_miss() -> None:
    score = question(TaskSection(type="score", levels=list(LEVELS.stored)), LEVELS)
    assert [score.level_distance(level, example("light")) for level in LEVELS.stored] == [1, 0, 1, 2]
    assert score.level_distance(None, example("light")) is None
    assert question(TaskSection(), LEVELS).level_distance("new", example("light")) is None


def test_the_truth_is_the_most_frequent_usable_answer() -> None:
    closed = question(TaskSection(question_from="data"), LabelSet.build(["yes", "no"]))
    assert closed.truth(example("maybe", "maybe", "no", "yes", "no")) == "no"
    assert closed.truth(example("maybe")) is None


def test_questions_about_one_image_share_a_cluster() -> None:
    assert Question.cluster(example("a", image_id="7")) == "7"
    assert Question.cluster(example("a")) == "1"
