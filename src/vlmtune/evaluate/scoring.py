"""Scores of surface forms become log-probabilities of labels: sum or mean over tokens, less a prior or not.

Plain arrays in and out, no torch: the scores come from the one closed-set scorer (`inference.label_scorer`). After
fine-tuning the sum is right, for it is what was trained; a base model that was never asked this question may do better
with a mean over tokens (long labels lose less) or with its prior for some labels subtracted.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logsumexp

from vlmtune.config.schema import ScoringSection
from vlmtune.errors import DataError
from vlmtune.evaluate.metrics import negative_log_likelihoods
from vlmtune.inference import posterior
from vlmtune.inference.posterior import Floats, Ints, Reduce, SurfaceForms
from vlmtune.records import Example, ImageSource

Prior = Literal["none", "content-free", "training"]


class ScoreRule(NamedTuple):
    """One way to turn scores into log-probabilities: how a form's tokens are reduced, and the prior subtracted."""

    reduce: Reduce = "sum"
    prior: Prior = "none"


@dataclass(frozen=True)
class References:
    """Scores that priors are estimated from; empty where no rule needs them.

    Attributes:
        content_free: float64[Q, n, F], of n images without content, for each of Q different questions.
        question_of: int64[N], the question of each row to be adjusted.
        training: float64[n, F], of training examples, whose answers are not looked at.
    """

    content_free: Floats = field(default_factory=lambda: np.empty((0, 0, 0)))
    question_of: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    training: Floats = field(default_factory=lambda: np.empty((0, 0)))

    def take(self, rows: NDArray[np.bool_]) -> References:
        """The references of some rows, bool[N]."""
        return References(self.content_free, self.question_of[rows] if len(self.question_of) else self.question_of,
                          self.training)  # fmt: skip


def score_rules(section: ScoringSection) -> list[ScoreRule]:
    """The rules of `evaluate.scoring`, the simplest first; more than one where something is `auto`."""
    prior = section.prior or ("auto" if section.reduce == "auto" else "none")
    reductions: tuple[Reduce, ...] = get_args(Reduce) if section.reduce == "auto" else (section.reduce,)
    priors: tuple[Prior, ...] = get_args(Prior) if prior == "auto" else (prior,)
    return [ScoreRule(reduce, chosen) for reduce, chosen in product(reductions, priors)]


def label_log_probs(scores: Floats, forms: SurfaceForms, rule: ScoreRule, references: References) -> Floats:
    """Log-probabilities normalized over the labels.

    Args:
        scores: float64[N, F], each form's summed token log-probabilities; rows of NaN (unreadable) stay so.
        references: with ``question_of`` for these N rows.

    Returns:
        float64[N, L].
    """
    prior: Floats | None = None
    if rule.prior == "content-free":
        # Contextual calibration (Zhao et al. 2021, arXiv 2102.09690): divide by the mean probability without content.
        reference = posterior.label_log_probs(references.content_free, forms, rule.reduce)
        num_images = reference.shape[1]
        prior = (logsumexp(reference, axis=1) - np.log(num_images))[references.question_of]
    elif rule.prior == "training":
        # Batch calibration (Zhou et al. 2023, arXiv 2309.17249): subtract the mean log-probability over images.
        prior = posterior.label_log_probs(references.training, forms, rule.reduce).mean(axis=0)
    return posterior.label_log_probs(scores, forms, rule.reduce, prior)


def choose(
    scores: Floats,
    truth: Ints,
    score_of: Callable[[Ints], Floats],
    forms: SurfaceForms,
    candidates: Sequence[ScoreRule],
    references: References,
) -> tuple[ScoreRule, list[dict[str, Any]]]:
    """The rule of highest validation accuracy, then lowest loss, then simplest; and the figures of all.

    Args:
        scores: float64[N, F] of the validation examples, NaN for an unreadable one, which is wrong by any rule.
        truth: int64[N], -1 where no label is true.
        score_of: int64[N] predicted labels, -1 for an unreadable image -> float64[N] scores in [0, 1].

    Raises:
        DataError: no readable validation image.
    """
    readable = np.asarray(~np.isnan(scores).any(axis=1))
    if not readable.any():
        raise DataError(
            "Choosing evaluate.scoring needs validation images, found none that can be read. Raise "
            "data.validation_fraction, or name the scoring: evaluate.scoring=sum."
        )
    references = references.take(readable)
    inside = truth[readable] >= 0
    figures = []
    for rule in candidates:
        log_probs = label_log_probs(scores[readable], forms, rule, references)
        predicted = np.full(len(truth), -1, dtype=np.int64)
        predicted[readable] = log_probs.argmax(axis=1)
        losses = negative_log_likelihoods(log_probs[inside], truth[readable][inside])
        accuracy, nll = float(score_of(predicted).mean()), float(losses.mean()) if len(losses) else 0.0
        figures.append({**rule._asdict(), "accuracy": accuracy, "nll": nll})
    best = min(range(len(figures)), key=lambda i: (-figures[i]["accuracy"], figures[i]["nll"], i))
    return candidates[best], figures


def content_free_images(size: tuple[int, int]) -> list[ImageSource]:
    """A gray, a black and a noisy image of (width, height) pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images = {
        "gray": Image.new("RGB", size, (128, 128, 128)),
        "black": Image.new("RGB", size),
        "noise": Image.fromarray(noise),
    }
    sources = []
    for name, image in images.items():
        file = io.BytesIO()
        image.save(file, "PNG")
        sources.append(ImageSource(data=file.getvalue(), name=name))
    return sources


def question_key(example: Example) -> Hashable:
    """Equal for examples that ask the same of different images."""
    return example.question, example.history
