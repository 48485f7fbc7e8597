"""Baselines: what little models reach on given features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from vlmtune.evaluate.probes import Split, linear_probe, nearest_neighbors

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split, np.ndarray, np.ndarray]:
    x, y = make_classification(500, 12, n_informative=6, n_classes=4, class_sep=1.2, random_state=0)
    x, y = (x * np.geomspace(0.01, 100, 12)).astype(np.float32), y.astype(np.int64)  # scales that need standardizing
    return Split(x[:250], y[:250]), Split(x[250:350], y[250:350]), x[350:], y[350:]


def test_nearest_neighbors_equal_scikit_learns(data: Any) -> None:
    train, validation, test, _ = data
    probed = nearest_neighbors(train, validation, test, 4)
    k = int(probed.setting.removeprefix("k = "))
    scaler = StandardScaler().fit(train.features)
    peer = KNeighborsClassifier(k, metric="cosine", weights="distance").fit(
        scaler.transform(train.features), train.labels
    )
    assert np.array_equal(probed.prediction, peer.predict(scaler.transform(test)))
    assert probed.tried[probed.setting] == max(probed.tried.values())


def test_the_linear_probe_equals_scikit_learns_at_the_chosen_penalty(data: Any) -> None:
    train, validation, test, truth = data
    probed = linear_probe(train, validation, test, 4)
    penalty = float(probed.setting.removeprefix("C = "))
    scaler = StandardScaler().fit(train.features)
    peer = LogisticRegression(C=penalty, max_iter=2000, tol=1e-6).fit(scaler.transform(train.features), train.labels)
    agreement = (probed.prediction == peer.predict(scaler.transform(test))).mean()
    assert agreement >= 0.98  # it stops at another tolerance, warmly started
    assert probed.tried[probed.setting] == max(probed.tried.values())
    assert (probed.prediction == truth).mean() > 1.5 * np.bincount(truth).max() / len(truth)
    assert np.exp(probed.log_probs).sum(axis=1) == pytest.approx(1.0)


def test_an_unseen_label_still_has_a_probability(data: Any) -> None:
    train, validation, test, _ = data
    probed = linear_probe(train, validation, test, 6)
    assert probed.log_probs is not None and np.isfinite(probed.log_probs).all() and probed.log_probs.shape[1] == 6


def test_without_validation_images_nothing_is_tried(data: Any) -> None:
    train, _, test, _ = data
    nothing = Split(train.features[:0], train.labels[:0])
    assert nearest_neighbors(train, nothing, test, 4).tried == linear_probe(train, nothing, test, 4).tried == {}
