"""The posterior: scores of surface forms become the exact log-probability of every label, here and nowhere else.

In: float64 scores of the distinct surface forms, from the label scorer or from another runtime that the export gate
judges. Out: float64 log-probabilities. `Predictor`, evaluation, serving and the gate call it. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Reduce = Literal["sum", "mean"]


@dataclass(frozen=True)
class SurfaceForms:
    """The distinct texts that labels are scored by, in the scorer's order (`LabelTrie.forms`).

    Attributes:
        label: int64[F], the label of each.
        num_tokens: int64[F], end token included.
    """

    label: Ints
    num_tokens: Ints

    @classmethod
    def of(cls, forms: Sequence[tuple[int, int]]) -> SurfaceForms:
        """From (label, number of tokens) of each."""
        label, num_tokens = np.asarray(forms, dtype=np.int64).T
        return cls(label, num_tokens)

    def num_tokens_unshared(self, num_prompt_tokens: Ints) -> Ints:
        """int64[N]: tokens to run if every form had a sequence of its own after int64[N] prompts, end tokens aside."""
        return np.asarray(len(self.label) * num_prompt_tokens + (self.num_tokens - 1).sum())

    @cached_property
    def by_label(self) -> Ints:
        """int64[L, most forms of a label]: each label's forms, padded with F, a form that does not exist."""
        members = [np.flatnonzero(self.label == label) for label in range(int(self.label.max()) + 1)]
        most = max(map(len, members))
        padded = [np.pad(forms, (0, most - len(forms)), constant_values=len(self.label)) for forms in members]
        return np.array(padded, dtype=np.int64)


def label_scores(form_scores: Floats, forms: SurfaceForms, reduce: Reduce = "sum") -> Floats:
    """Combine the surface forms of each label.

    Args:
        form_scores: float64[..., F], each form's summed token log-probabilities, end token included.
        reduce: ``sum`` adds the probabilities of a label's forms. ``mean`` divides a form's score by its tokens; such
            means are not probabilities that can be added, so a label has its best form's.

    Returns:
        float64[..., L], not normalized.
    """
    if reduce == "mean":
        form_scores = form_scores / forms.num_tokens
    impossible = np.full((*form_scores.shape[:-1], 1), -np.inf)
    by_label = np.concatenate([form_scores, impossible], axis=-1)[..., forms.by_label]
    if by_label.shape[-1] == 1:
        return np.asarray(by_label[..., 0])
    combine = np.maximum if reduce == "mean" else np.logaddexp
    with np.errstate(invalid="ignore"):  # an unreadable image's scores are NaN, and stay so
        return np.asarray(combine.reduce(by_label, axis=-1))


def label_log_probs(
    form_scores: Floats, forms: SurfaceForms, reduce: Reduce = "sum", prior: Floats | None = None
) -> Floats:
    """The log-probability of every label, normalized over the labels.

    Args:
        form_scores, reduce: as in `label_scores`.
        prior: float64[L] log-probabilities to subtract, such as those of an image without content.

    Returns:
        float64[..., L].
    """
    scores = label_scores(form_scores, forms, reduce)
    return np.asarray(log_softmax(scores if prior is None else scores - prior, axis=-1))
