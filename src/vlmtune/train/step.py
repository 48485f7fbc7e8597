"""One micro-batch as one call of the decoder: planned first, then run.

In: tokens of prompts and answers. Out: a `StepPlan`, which says what the call costs and what it learns, and from it and
the image features the summed loss, whose gradients equal those of running every sample whole. Called by the loop.

    level      tokens that run                       is learned from them
    prefix     You classify images .                 (with loss "all": every token but the first, once a sample)
    image      <img> <img> Name it :                 the first token of each answer
    answers    tab            lynx                   "by <end>", "<end>"

Every learned token is predicted by the token before it on its path, which is therefore *read*: it goes through the
output head. The last token of an answer predicts nothing and is not run at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from vlmtune.inference.batch import PromptPlan
from vlmtune.inference.token_log_probs import token_log_probs
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Answer:
    """One target of a sample: its tokens, the end token last, and the weight of its loss (λ and 1 - λ under MixUp)."""

    ids: list[int]
    weight: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One prompt of a micro-batch and what is learned from it.

    Attributes:
        ids: the prompt's tokens after the shared prefix, image placeholders included; at least one.
        image: the index of its image in the micro-batch. Samples of one image share its tokens.
        answers: at least one, each a branch of its own.
    """

    ids: list[int]
    image: int
    answers: list[Answer]


@dataclass
class StepPlan:
    """Samples under one prefix, ready to be run.

    Attributes:
        ids: the tokens of all levels, in packed order.
        levels: the prefix tree that they make.
        images: the indices of the images whose features fill the placeholders, in packed order.
        rows: for each learned token, the read token that predicts it, counted among the read ones.
        targets: the learned tokens. weights: of their losses.
    """

    ids: list[int] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def weight(self) -> float:
        """What the loss is divided by for a mean over tokens; over several micro-batches, the sum of theirs."""
        return math.fsum(self.weights)

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the decoder."""
        return len(self.ids)


@dataclass(frozen=True)
class _Segment:
    """A chain of tokens that continues segment ``parent`` of the level above.

    Attributes:
        weights: of each token's loss; 0 where it is not learned. The learned ones are at the end.
        num_bidirectional: leading tokens that all see each other.
    """

    tokens: list[int]
    weights: list[float]
    parent: int = 0
    num_bidirectional: int = 0

    @classmethod
    def of(cls, tokens: Sequence[int], weight: float, parent: int = 0, num_bidirectional: int = 0) -> _Segment:
        return cls(list(tokens), [float(weight)] * len(tokens), parent, num_bidirectional)

    def followed_by(self, answer: Answer) -> _Segment:
        """The same chain with an answer at its end."""
        weights = self.weights + [float(answer.weight)] * len(answer.ids)
        return _Segment(self.tokens + answer.ids, weights, self.parent, self.num_bidirectional)


def plan_step(
    model: VisionLanguageModel,
    prefix: Sequence[int],
    samples: Sequence[Sample],
    loss: Literal["answer", "all"] = "answer",
) -> StepPlan:
    """Lay samples out as one prefix tree.

    Args:
        model: its kind of prompt decides what can be shared; nothing is computed.
        prefix: tokens that every sample's prompt begins with; may be empty.
        samples: what follows it, and the answers.
        loss: ``answer`` learns the answers' tokens; ``all`` learns every prompt token too, image placeholders
            included, as the older repos did.
    """
    prompt_weight = 1.0 if loss == "all" else 0.0
    # Where prompts are learned, each sample has its own: a last shared token would have two successors.
    prompts = PromptPlan.of(
        model, [sample.ids for sample in samples], [sample.image for sample in samples], share=not prompt_weight
    )
    levels: list[list[_Segment]] = []
    if prefix:  # runs once, but its tokens are every sample's targets
        levels.append([_Segment.of(prefix, prompt_weight * len(samples))])
    if prompts.shared:
        levels.append([_Segment.of(ids, 0.0) for ids in prompts.shared])
    rests = [
        _Segment.of(ids, prompt_weight, parent, len(ids) if model.bidirectional_prompt else 0)
        for ids, parent in zip(prompts.rests, prompts.parent, strict=True)
    ]
    if all(len(sample.answers) == 1 for sample in samples):
        # A single answer continues its prompt's segment; several are segments of another level.
        levels.append([rest.followed_by(sample.answers[0]) for rest, sample in zip(rests, samples, strict=True)])
    else:
        levels.append(rests)
        levels.append([_Segment.of(a.ids, a.weight, number) for number, s in enumerate(samples) for a in s.answers])
    return _lay_out(levels, images=[samples[number].image for number in prompts.sources])


def _lay_out(levels: Sequence[Sequence[_Segment]], images: list[int]) -> StepPlan:
    """The packed order of segments, which of their tokens are read, and which learned token each of those predicts."""
    plan = StepPlan(images=images)
    num_read = 0
    parent_rows: list[int] = []  # of each segment of the level above: its last token, counted among the read ones
    for segments, below in zip(levels, [*levels[1:], ()], strict=True):
        is_continued = {segment.parent for segment in below if segment.weights[0]}
        lengths, reads, last_rows = [], [], []
        for number, segment in enumerate(segments):
            # Nothing precedes the very first token of a path, and nothing follows the last.
            learned = [t for t, weight in enumerate(segment.weights) if weight and (t or parent_rows)]
            inside = [t for t in learned if t]
            lengths.append(len(segment.tokens) - (not below))
            reads.append(lengths[-1] + 1 - inside[0] if inside else int(number in is_continued))
            plan.rows += [num_read + t - inside[0] if t else parent_rows[segment.parent] for t in learned]
            plan.targets += [segment.tokens[t] for t in learned]
            plan.weights += [segment.weights[t] for t in learned]
            plan.ids += segment.tokens[: lengths[-1]]
            num_read += reads[-1]
            last_rows.append(num_read - 1)
        bidirectional = [segment.num_bidirectional for segment in segments]
        plan.levels.append(
            Level.chains(
                lengths,
                parent=[segment.parent for segment in segments],
                read_last=reads,
                bidirectional=bidirectional if any(bidirectional) else None,
            )
        )
        parent_rows = last_rows
    return plan


def run(model: VisionLanguageModel, plan: StepPlan, features: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
    """The summed loss of a plan; divided by the weight, over all micro-batches of a step, it is the mean.

    Args:
        model: gradients flow to whatever of it is trainable.
        plan: of `plan_step` for this model.
        features: float[T, D] of each image of the micro-batch, by its index; gradients flow to them too.

    Returns:
        float32 scalar: the weighted sum of the negative log-probabilities of the learned tokens.
    """
    device = model.device
    embeddings = model.embed(torch.tensor(plan.ids, device=device), [features[image] for image in plan.images])
    hidden = model.decode(embeddings, plan.levels).hidden
    rows, targets = torch.tensor(plan.rows, device=device), torch.tensor(plan.targets, device=device)
    log_probs = token_log_probs(model, hidden, rows, targets)
    return -(log_probs * torch.tensor(plan.weights, device=device)).sum()
