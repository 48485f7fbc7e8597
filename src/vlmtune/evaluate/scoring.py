"""Scores of surface forms become log-probabilities of labels: sum or mean over tokens, less a prior or not.

Plain arrays in and out, no torch: the scores come from the one closed-set scorer (`inference.scoring`). After
fine-tuning the sum is right, for it is what was trained; a base model that was never asked this question may do better
with a mean over tokens (long labels lose less) or with its prejudice for some labels subtracted.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import log_softmax, logsumexp

from vlmtune.config.schema import ScoringSection
from vlmtune.errors import DataError
from vlmtune.evaluate.metrics import negative_log_likelihoods
from vlmtune.records import Example, ImageSource

Floats = NDArray[np.float64]
Form = Literal["sum", "mean"]
Calibration = Literal["none", "content-free", "prior"]


class Option(NamedTuple):
    """One way to turn scores into log-probabilities."""

    form: Form = "sum"
    calibration: Calibration = "none"


@dataclass(frozen=True)
class SurfaceForms:
    """The distinct texts that labels are scored by, in the scorer's order (`LabelTrie.forms`).

    Attributes:
        label: int64[F], the label of each.
        num_tokens: int64[F], end token included.
    """

    label: NDArray[np.int64]
    num_tokens: NDArray[np.int64]

    @classmethod
    def of(cls, forms: Sequence[tuple[int, int]]) -> SurfaceForms:
        """From (label, number of tokens) of each."""
        label, num_tokens = np.asarray(forms, dtype=np.int64).T
        return cls(label, num_tokens)

    def num_rows_unshared(self, num_prompt_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[N]: decoder rows if every form had its own sequence after int64[N] prompts; end tokens are not run."""
        rows: NDArray[np.int64] = len(self.label) * num_prompt_tokens + (self.num_tokens - 1).sum()
        return rows


@dataclass(frozen=True)
class References:
    """Scores that a calibration subtracts: float64[n, F] each, empty where no option needs it.

    Attributes:
        content_free: of images without content.
        training: of training images, whose labels are not looked at.
    """

    content_free: Floats = field(default_factory=lambda: np.empty((0, 0)))
    training: Floats = field(default_factory=lambda: np.empty((0, 0)))


def options(section: ScoringSection) -> list[Option]:
    """What `evaluate.scoring` asks for, the plainest first; more than one where something is `auto`."""
    calibration = section.calibration or ("auto" if section.form == "auto" else "none")
    forms: tuple[Form, ...] = get_args(Form) if section.form == "auto" else (section.form,)
    calibrations: tuple[Calibration, ...] = get_args(Calibration) if calibration == "auto" else (calibration,)
    return [Option(form, chosen) for form, chosen in product(forms, calibrations)]


def label_log_probs(scores: Floats, forms: SurfaceForms, option: Option, references: References) -> Floats:
    """Log-probabilities normalized over the labels.

    Args:
        scores: float64[N, F], each form's summed token log-probabilities; rows of NaN (unreadable) stay so.

    Returns:
        float64[N, L].
    """
    log_probs = _normalized(scores, forms, option.form)
    if option.calibration == "content-free":
        # Contextual calibration (Zhao et al. 2021, arXiv 2102.09690): divide by the mean probability without content.
        reference = _normalized(references.content_free, forms, option.form)
        log_probs = log_probs - (logsumexp(reference, axis=0) - np.log(len(reference)))
    elif option.calibration == "prior":
        # Batch calibration (Zhou et al. 2023, arXiv 2309.17249): subtract the mean log-probability over images.
        log_probs = log_probs - _normalized(references.training, forms, option.form).mean(axis=0)
    normalized: Floats = log_softmax(log_probs, axis=1)
    return normalized


def choose(
    scores: Floats, truth: NDArray[np.int64], forms: SurfaceForms, candidates: Sequence[Option], references: References
) -> tuple[Option, list[dict[str, Any]]]:
    """The option of highest accuracy on validation, of equals the lowest loss, then the plainest; and all figures.

    Args:
        scores: float64[N, F] of the validation images, NaN for an unreadable one, which is wrong by any option.
        truth: int64[N].

    Raises:
        DataError: there is no readable validation image.
    """
    readable = ~np.isnan(scores).any(axis=1)
    if not readable.any():
        raise DataError(
            "Choosing evaluate.scoring needs validation images, found none that can be read. Raise "
            "data.validation_fraction, or name the scoring: evaluate.scoring.form=sum."
        )
    figures = []
    for option in candidates:
        log_probs = label_log_probs(scores[readable], forms, option, references)
        num_correct = int((log_probs.argmax(axis=1) == truth[readable]).sum())
        nll = float(negative_log_likelihoods(log_probs, truth[readable]).mean())
        figures.append(
            {**option._asdict(), "accuracy": num_correct / len(truth), "num_correct": num_correct, "nll": nll}
        )
    best = min(range(len(figures)), key=lambda i: (-figures[i]["num_correct"], figures[i]["nll"], i))
    return candidates[best], figures


def content_free_images(size: tuple[int, int]) -> list[Example]:
    """A gray, a black and a noisy image of (width, height) pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    images = {
        "gray": Image.new("RGB", size, (128, 128, 128)),
        "black": Image.new("RGB", size),
        "noise": Image.fromarray(noise),
    }
    examples = []
    for name, image in images.items():
        file = io.BytesIO()
        image.save(file, "PNG")
        examples.append(Example(f"content-free/{name}", ImageSource(data=file.getvalue(), name=name), ()))
    return examples


def _normalized(scores: Floats, forms: SurfaceForms, form: Form) -> Floats:
    """float64[N, F] -> float64[N, L] log-probabilities before calibration."""
    num_labels = int(forms.label.max()) + 1
    if form == "mean":
        scores = scores / forms.num_tokens
    by_label = np.empty((len(scores), num_labels))
    for label in range(num_labels):
        own = scores[:, forms.label == label]
        # Probabilities of different texts add up. Means over tokens are no probabilities: the best text stands for all.
        by_label[:, label] = own.max(axis=1) if form == "mean" else logsumexp(own, axis=1)
    normalized: Floats = log_softmax(by_label, axis=1)
    return normalized
