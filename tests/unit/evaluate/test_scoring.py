"""Each scoring option does what its paper says, and the choice is made by validation alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from vlmtune.config.load import load_experiment
from vlmtune.config.schema import EvaluateSection, ScoringSection
from vlmtune.errors import ConfigError, DataError
from vlmtune.evaluate.scoring import (
    References,
    ScoreRule,
    choose,
    content_free_images,
    label_log_probs,
    score_rules,
)
from vlmtune.inference.posterior import SurfaceForms

pytestmark = pytest.mark.unit

ONE_FORM_EACH = SurfaceForms.of([(0, 2), (1, 2), (2, 4)])
TWO_FORMS = SurfaceForms.of([(0, 2), (1, 3), (0, 5)])
NONE = References()


def free(scores: np.ndarray, num_rows: int = 6) -> References:
    """References of one question, asked of every row."""
    return References(scores[None], np.zeros(num_rows, np.int64))


def scores(num: int = 6, num_forms: int = 3, seed: int = 0) -> np.ndarray:
    return -np.random.default_rng(seed).exponential(4, (num, num_forms))


def test_sum_adds_forms_and_is_a_softmax() -> None:
    s = scores()
    assert label_log_probs(s, ONE_FORM_EACH, ScoreRule(), NONE) == pytest.approx(log_softmax(s, axis=1))
    probs = softmax(s, axis=1)
    expected = np.log(np.column_stack([probs[:, 0] + probs[:, 2], probs[:, 1]]))
    assert label_log_probs(s, TWO_FORMS, ScoreRule(), NONE) == pytest.approx(expected)


def test_mean_divides_by_tokens_and_takes_the_best_form() -> None:
    s = scores()
    means = s / [2, 3, 5]
    expected = log_softmax(np.column_stack([np.maximum(means[:, 0], means[:, 2]), means[:, 1]]), axis=1)
    assert label_log_probs(s, TWO_FORMS, ScoreRule("mean"), NONE) == pytest.approx(expected)
    long_label = np.array([[-4.0, -9.0, -6.0]])  # 2, 2 and 4 tokens: the third loses by the sum and wins by the mean
    assert label_log_probs(long_label, ONE_FORM_EACH, ScoreRule(), NONE).argmax() == 0
    assert label_log_probs(long_label, ONE_FORM_EACH, ScoreRule("mean"), NONE).argmax() == 2


def test_contextual_calibration_makes_a_content_free_image_uniform() -> None:
    one = scores(1)
    found = label_log_probs(one, ONE_FORM_EACH, ScoreRule("sum", "content-free"), free(one, 1))
    assert found == pytest.approx(np.full((1, 3), -np.log(3)))
    three, s = scores(3, seed=1), scores()
    probs = softmax(s, axis=1) / softmax(three, axis=1).mean(axis=0)  # W = diag(p_cf)^-1 of the paper
    found = label_log_probs(s, ONE_FORM_EACH, ScoreRule("sum", "content-free"), free(three))
    assert np.exp(found) == pytest.approx(probs / probs.sum(axis=1, keepdims=True))


def test_the_prior_subtracts_a_constant_prejudice() -> None:
    s, prejudice = scores(200), np.array([0.0, 3.0, -2.0])
    references = References(training=s + prejudice)
    found = label_log_probs(s + prejudice, ONE_FORM_EACH, ScoreRule("sum", "training"), references)
    without = label_log_probs(s, ONE_FORM_EACH, ScoreRule("sum", "training"), References(training=s))
    assert found == pytest.approx(without)
    assert (found.argmax(1) == (s - log_softmax(s, axis=1).mean(0)).argmax(1)).all()


def test_each_question_has_its_own_content_free_prior() -> None:
    about_color, about_number = scores(3, seed=1), scores(3, seed=2)
    s = np.stack([about_color.mean(0), about_number.mean(0)] * 2)
    references = References(np.stack([about_color, about_number]), np.array([0, 1, 0, 1]))
    log_probs = label_log_probs(s, ONE_FORM_EACH, ScoreRule("sum", "content-free"), references)
    alone = label_log_probs(s[1:2], ONE_FORM_EACH, ScoreRule("sum", "content-free"), free(about_number, 1))
    assert log_probs[1] == pytest.approx(alone[0]) and log_probs[0] == pytest.approx(log_probs[2])
    assert references.take(np.array([False, True, False, True])).question_of.tolist() == [1, 1]


def right(truth: np.ndarray):  # type: ignore[no-untyped-def]
    return lambda predicted: (predicted == truth).astype(float)


def test_the_most_accurate_rule_on_validation_is_chosen() -> None:
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    fair = rng.normal(size=(300, 3)) + 2 * np.eye(3)[truth]
    prejudiced = fair + np.array([0, 6, 0])
    references = References(np.array([[[0.0, 6.0, 0.0]]]) - 10, np.zeros(300, np.int64), prejudiced)
    candidates = score_rules(ScoringSection(reduce="sum", prior="auto"))
    chosen, figures = choose(prejudiced, truth, right(truth), ONE_FORM_EACH, candidates, references)
    assert chosen.prior != "none"
    by_prior = {f["prior"]: f for f in figures}
    assert by_prior["none"]["accuracy"] < 0.6 < 0.8 < by_prior[chosen.prior]["accuracy"]
    assert by_prior[chosen.prior]["accuracy"] == max(f["accuracy"] for f in figures)


def test_of_equal_rules_the_plainest_is_chosen() -> None:
    same = [ScoreRule("sum"), ScoreRule("sum", "content-free")]
    s, truth = scores(), np.arange(6) % 3
    assert choose(s, truth, right(truth), ONE_FORM_EACH, same, free(np.zeros((1, 3))))[0] == ScoreRule("sum", "none")


def test_the_choice_follows_partial_scores() -> None:
    s = np.array([[-1.0, -1.1, -9.0]] * 4)  # label 0 by the sum, label 1 less a prior that favors label 0
    worth = np.array([0.3, 0.9, 0.0])
    rules = [ScoreRule(), ScoreRule("sum", "content-free")]
    references = free(np.array([[0.0, -3.0, 0.0]]), 4)
    rule, figures = choose(s, np.full(4, -1), lambda predicted: worth[predicted], ONE_FORM_EACH, rules, references)
    assert rule == rules[1] and [f["accuracy"] for f in figures] == pytest.approx([0.3, 0.9])
    assert figures[0]["nll"] == 0, "no label is true"


def test_an_unreadable_validation_image_stays_in_the_denominator() -> None:
    s, truth = np.array([[0.0, -9.0, -9.0], [np.nan] * 3]), np.array([0, 0])
    assert choose(s, truth, right(truth), ONE_FORM_EACH, [ScoreRule()], NONE)[1][0]["accuracy"] == 0.5
    with pytest.raises(DataError, match="validation_fraction"):
        choose(s[1:], truth[1:], right(truth[1:]), ONE_FORM_EACH, [ScoreRule()], NONE)


def test_auto_tries_everything_and_a_named_option_nothing_else() -> None:
    assert score_rules(ScoringSection()) == [ScoreRule("sum", "none")]
    assert len(set(score_rules(ScoringSection(reduce="auto")))) == 6
    assert score_rules(ScoringSection(reduce="auto"))[0] == ScoreRule()
    assert score_rules(ScoringSection(reduce="auto", prior="none")) == [ScoreRule("sum"), ScoreRule("mean")]
    assert score_rules(ScoringSection(reduce="mean", prior="training")) == [ScoreRule("mean", "training")]


def test_tokens_unshared_are_of_one_sequence_a_form() -> None:
    assert TWO_FORMS.num_tokens_unshared(np.array([10, 20])).tolist() == [30 + 7, 60 + 7]


def test_images_without_content_repeat_and_have_the_size() -> None:
    opened = [image.open() for image in content_free_images((20, 10))]
    assert [image.size for image in opened] == [(20, 10)] * 3
    assert [len(image.getcolors(300)) for image in opened] == [1, 1, 200]
    assert content_free_images((20, 10)) == content_free_images((20, 10))


def load(tmp_path: Path, text: str, *overrides: str) -> EvaluateSection:
    path = tmp_path / "experiment.yaml"
    path.write_text(f"evaluate:\n{text}")
    return load_experiment(path, overrides).evaluate


def test_a_plain_auto_means_both_keys(tmp_path: Path) -> None:
    everything = score_rules(ScoringSection(reduce="auto"))
    assert score_rules(load(tmp_path, "  scoring: auto\n").scoring) == everything
    assert score_rules(load(tmp_path, "  limit: 5\n", "evaluate.scoring=auto").scoring) == everything
    named = load(tmp_path, "  scoring:\n    reduce: mean\n", "evaluate.scoring.prior=training").scoring
    assert score_rules(named) == [ScoreRule("mean", "training")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  mode: argmax\n  scoring: mean\n", ["evaluate.scoring", "mode: full"]),
        ("  mode: argmax\n  calibrate: true\n", ["evaluate.calibrate", "mode: full"]),
        ("  split: validation\n  scoring: auto\n", ["evaluate.scoring", "split: test"]),
        ("  split: validation\n  calibrate: true\n", ["evaluate.calibrate", "split: test"]),
        ("  scoring: median\n", ["evaluate.scoring", "median", "sum", "mean", "auto"]),
    ],
)
def test_contradictions_are_named_with_what_to_do(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert all(word in str(caught.value) for word in words), caught.value
