"""Small models on frozen features: nearest neighbors and a linear probe.

Features and labels in, predictions out; scikit-learn does the work. Settings are chosen on validation, the test is
seen once. No torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

NEIGHBORS = (1, 3, 5, 10, 20, 50)
INVERSE_PENALTIES = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
"""scikit-learn's C, for standardized features."""
_MAX_ITERATIONS = 500
LEAST_PROBABILITY = 1e-9
"""Assigned to labels without a training image, since log 0 is not finite."""


@dataclass(frozen=True, slots=True)
class Split:
    """float32[N, C] features and int64[N] labels; images that cannot be read are left out."""

    features: Floats
    labels: Ints


@dataclass(frozen=True, slots=True)
class Probed:
    """Predictions for the test, with the setting that validation chose.

    Attributes:
        prediction: int64[N].
        log_probs: float32[N, L], or None for a method without probabilities.
        setting: in words.
        tried: setting -> validation accuracy; empty where there was nothing to choose or no validation image.
        notes: sentences for the user.
    """

    prediction: Ints
    log_probs: Floats | None
    setting: str
    tried: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def nearest_neighbors(train: Split, validation: Split, test: Floats, num_labels: int) -> Probed:
    """k nearest training images by cosine, nearer ones weighing more; k chosen on validation."""
    from sklearn.neighbors import NearestNeighbors

    candidates = [k for k in NEIGHBORS if k <= len(train.labels)]
    scale, scaled = _standardized(train.features)
    index = NearestNeighbors(n_neighbors=candidates[-1], metric="cosine", algorithm="brute").fit(scaled)

    def votes(features: Floats, k: int, near: tuple[NDArray[Any], NDArray[Any]]) -> Ints:
        distances, neighbors = near
        weights = 1.0 / np.maximum(distances[:, :k], 1e-9)
        totals = np.zeros((len(features), num_labels))
        np.add.at(totals, (np.arange(len(features))[:, None], train.labels[neighbors[:, :k]]), weights)
        winners: Ints = totals.argmax(axis=1).astype(np.int64)
        return winners

    chosen, tried = candidates[len(candidates) // 2], {}
    if len(validation.labels):
        near = index.kneighbors(scale(validation.features))
        tried = {
            f"k = {k}": float((votes(validation.features, k, near) == validation.labels).mean()) for k in candidates
        }
        chosen = candidates[int(np.argmax(list(tried.values())))]
    return Probed(votes(test, chosen, index.kneighbors(scale(test))), None, f"k = {chosen}", tried)


def linear_probe(train: Split, validation: Split, test: Floats, num_labels: int) -> Probed:
    """Multinomial logistic regression on standardized features; its penalty chosen on validation."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    scale, scaled = _standardized(train.features)
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=1e-3, warm_start=True)
    tried: dict[str, float] = {}
    stopped: list[str] = []
    best, best_accuracy, weights = 0.0, -1.0, None
    candidates: Sequence[float] = INVERSE_PENALTIES if len(validation.labels) else (0.01,)
    for penalty in candidates:  # from strong to weak, each warm-started from the last
        model.set_params(C=penalty)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(scaled, train.labels)
        if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
            stopped.append(f"C = {penalty:g}")
        accuracy = 0.0
        if len(validation.labels):
            accuracy = float((model.predict(scale(validation.features)) == validation.labels).mean())
            tried[f"C = {penalty:g}"] = accuracy
        if accuracy > best_accuracy:
            best, best_accuracy, weights = penalty, accuracy, (model.coef_.copy(), model.intercept_.copy())
    assert weights is not None
    model.coef_, model.intercept_ = weights
    shares = np.full((len(test), num_labels), LEAST_PROBABILITY)
    shares[:, model.classes_] += model.predict_proba(scale(test))
    notes = [f"Stopped after {_MAX_ITERATIONS} iterations at {', '.join(stopped)}."] if stopped else []
    log_probs = np.log(shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return Probed(log_probs.argmax(axis=1), log_probs, f"C = {best:g}", tried, notes)


def _standardized(train: Floats) -> tuple[Any, Floats]:
    """A function that standardizes by the training features, and those features standardized."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.transform, scaler.transform(train)
