"""One micro-batch as one prefix tree: the shared prompt once, each image's part once, and the answers' loss.

In: tokens and image features. Out: the summed loss, whose gradients equal those of running every sample whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vlmtune.inference.batch import PromptTree, Question
from vlmtune.inference.token_log_probs import token_log_probs
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel


@dataclass
class Answer:
    """One target of a sample: its tokens, the end token last, and the weight of its loss (λ and 1 - λ under MixUp)."""

    ids: list[int]
    weight: float = 1.0


@dataclass
class Sample(Question):
    """A question with its answers: at least one, each a branch of its own."""

    answers: list[Answer]


@dataclass
class StepLoss:
    """A micro-batch's loss before any division.

    Attributes:
        total: float32 scalar, weighted sum of negative log-probabilities.
        weight: the sum of the weights: what `total` is divided by for a mean over tokens.
        num_rows: rows that went through the decoder.
        num_rows_unshared: rows that would have, had every answer been run with its whole prompt.
    """

    total: Tensor
    weight: float
    num_rows: int
    num_rows_unshared: int


def loss_weight(samples: Sequence[Sample], prefix: Sequence[int], loss: Literal["answer", "all"] = "answer") -> float:
    """What `sample_loss` will report as `weight`, known before anything is computed (for gradient accumulation)."""
    answers = sum(answer.weight * len(answer.ids) for sample in samples for answer in sample.answers)
    if loss == "answer":
        return answers
    return answers + sum(len(prefix) + len(sample.ids) - 1 for sample in samples)


def sample_loss(
    model: VisionLanguageModel,
    prefix: Sequence[int],
    samples: Sequence[Sample],
    loss: Literal["answer", "all"] = "answer",
) -> StepLoss:
    """Run a micro-batch and sum its loss.

    Args:
        model: gradients flow to whatever of it is trainable, and to the samples' features.
        prefix: tokens that every sample's prompt begins with; may be empty.
        samples: images with their own part of the prompt and their answers.
        loss: ``answer`` learns the answers' tokens; ``all`` learns every prompt token too, image placeholders
            included, as the older repos did.

    Returns:
        The sums; divide by the weight, over all micro-batches of a step, for the mean.
    """
    everything = loss == "all"
    is_single = all(len(sample.answers) == 1 for sample in samples)
    levels: list[Level] = []
    inputs: list[int] = []
    targets = _Targets()

    if prefix:
        levels.append(Level.chains([len(prefix)], read_last=len(prefix) if everything else 0))
        inputs += prefix
        if everything:
            # The prefix runs once, but its tokens are every sample's targets.
            targets.follow(0, list(prefix[1:]), weight=len(samples))
            for sample in samples:
                targets.follow(len(prefix) - 1, sample.ids[:1], weight=1)
            targets.num_read = len(prefix)

    # Where the prompts are learned too, each sample has its own: the last token that two share has two that follow it.
    tree = PromptTree.of(model, samples, share=not everything)
    levels += tree.above
    inputs += tree.ids
    lengths, read_last, last_rows = [], [], []
    for sample, own in zip(samples, tree.own, strict=True):
        num_read = len(own) if everything else 1
        if everything:
            targets.follow(targets.num_read, sample.ids[1:], weight=1)
        last_rows.append(targets.num_read + num_read - 1)
        # A single answer continues its sample's chain; several are branches of a level of their own.
        answer_inputs = sample.answers[0].ids[:-1] if is_single else []
        if is_single:
            targets.follow(last_rows[-1], sample.answers[0].ids, sample.answers[0].weight)
        inputs += [*own, *answer_inputs]
        lengths.append(len(own) + len(answer_inputs))
        read_last.append(num_read + len(answer_inputs))
        targets.num_read += read_last[-1]
    prompts = [len(own) for own in tree.own] if model.bidirectional_prompt else None
    levels.append(Level.chains(lengths, parent=tree.parent, read_last=read_last, bidirectional=prompts))

    if not is_single:
        branches = [(parent, answer) for parent, sample in enumerate(samples) for answer in sample.answers]
        lengths = [len(answer.ids) - 1 for _, answer in branches]
        levels.append(Level.chains(lengths, parent=[parent for parent, _ in branches], read_last=lengths))
        for parent, answer in branches:
            targets.follow(last_rows[parent], answer.ids[:1], answer.weight)
            targets.follow(targets.num_read, answer.ids[1:], answer.weight)
            inputs += answer.ids[:-1]
            targets.num_read += len(answer.ids) - 1

    device = model.device
    hidden = model.decode(model.embed(torch.tensor(inputs, device=device), tree.features), levels).hidden
    log_probs = token_log_probs(
        model, hidden, torch.tensor(targets.rows, device=device), torch.tensor(targets.tokens, device=device)
    )
    total = -(log_probs * torch.tensor(targets.weights, device=device)).sum()
    unshared = sum(len(a.ids) - 1 + len(prefix) + len(s.ids) for s in samples for a in s.answers)
    return StepLoss(total, sum(targets.weights), len(inputs), unshared)


@dataclass
class _Targets:
    """Which token follows which read row, with what weight; and how many rows are read so far."""

    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    num_read: int = 0

    def follow(self, row: int, tokens: Sequence[int], weight: float) -> None:
        """The tokens follow read row ``row`` and the rows after it, one each."""
        self.rows += range(row, row + len(tokens))
        self.tokens += tokens
        self.weights += [float(weight)] * len(tokens)
