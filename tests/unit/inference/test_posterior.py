"""Surface forms become label probabilities, held to a plain softmax over every form."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from vlmtune.inference.posterior import SurfaceForms, label_log_probs, label_scores

pytestmark = pytest.mark.unit

FORMS = SurfaceForms.of([(0, 2), (1, 3), (0, 5), (2, 1)])


def form_scores(num: int = 6) -> np.ndarray:
    return -np.random.default_rng(0).exponential(4, (num, 4))


def test_probabilities_of_a_labels_forms_add_up() -> None:
    scores = form_scores()
    probs = softmax(scores, axis=1)
    expected = np.column_stack([probs[:, 0] + probs[:, 2], probs[:, 1], probs[:, 3]])
    assert np.exp(label_log_probs(scores, FORMS)) == pytest.approx(expected)


def test_a_mean_takes_each_labels_best_form() -> None:
    scores = form_scores()
    means = scores / [2, 3, 5, 1]
    expected = np.column_stack([np.maximum(means[:, 0], means[:, 2]), means[:, 1], means[:, 3]])
    assert label_scores(scores, FORMS, "mean") == pytest.approx(expected)
    assert label_log_probs(scores, FORMS, "mean") == pytest.approx(log_softmax(expected, axis=1))


def test_subtracting_its_own_posterior_leaves_a_uniform_one() -> None:
    scores = form_scores(1)
    prior = label_log_probs(scores, FORMS)
    assert label_log_probs(scores, FORMS, prior=prior) == pytest.approx(np.full((1, 3), -np.log(3)))


def test_unreadable_images_stay_nan() -> None:
    scores = form_scores(2)
    scores[1] = np.nan
    log_probs = label_log_probs(scores, FORMS)
    assert np.isfinite(log_probs[0]).all() and np.isnan(log_probs[1]).all()
