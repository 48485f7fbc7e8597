"""Prompts as the upper levels of a prefix tree: the shared text, each image once, the questions about it.

In: requests (tokens and image features). Out: levels, tokens and features in the packed order of `decode`. The
scorer, generation and the training step put their answers under these levels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmtune.models.cache import Cache
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Request:
    """A prompt to run: a question about one image, as tokens and features.

    Attributes:
        ids: the prompt's tokens after the shared prefix, image placeholders included; at least one.
        features: the image's float[T, D] features, T placeholders among `ids`.
        image: identifies the image within a batch; the tokens of an image run once for all requests that name it.
            None shares with no other request.
    """

    ids: list[int]
    features: list[Tensor]
    image: int | None = None


@dataclass(frozen=True)
class PromptPlan:
    """How the prompts of a batch are laid out: an image, with what precedes and follows it, once for all its questions.

    Attributes:
        shared: tokens of each segment that several prompts continue; empty where nothing is shared, and there is then
            no such level.
        parent: the segment of the level above (`shared`, or the shared prefix) that each prompt continues.
        rests: each prompt's tokens in its own segment; at least one.
        sources: the prompts whose image features fill the placeholders, in packed order.
    """

    shared: list[list[int]]
    parent: list[int]
    rests: list[list[int]]
    sources: list[int]

    @classmethod
    def of(
        cls,
        model: VisionLanguageModel,
        prompts: Sequence[list[int]],
        images: Sequence[Hashable],
        *,
        share: bool = True,
    ) -> PromptPlan:
        """Lay out prompts.

        Args:
            model: prompts of a model with bidirectional ones share nothing: there each token before the question
                depends on the question.
            prompts: tokens after the shared prefix.
            images: what identifies each prompt's image.
            share: False gives every prompt its own segment.
        """
        members: dict[Hashable, list[int]] = {}
        for number, image in enumerate(images):
            members.setdefault(image, []).append(number)
        groups = list(members.values())
        num_shared = [_num_shared([prompts[number] for number in group]) for group in groups]
        # A shared segment holds all of its image's placeholders, or the questions stand before the image.
        is_whole = all(
            model.image_token_id not in prompts[number][count:]
            for group, count in zip(groups, num_shared, strict=True)
            for number in group
        )
        if not share or model.bidirectional_prompt or len(groups) == len(prompts) or not is_whole:
            return cls([], [0] * len(prompts), list(prompts), list(range(len(prompts))))
        parent = {number: segment for segment, group in enumerate(groups) for number in group}
        first = [group[0] for group in groups]
        return cls(
            shared=[prompts[number][:count] for number, count in zip(first, num_shared, strict=True)],
            parent=[parent[number] for number in range(len(prompts))],
            rests=[ids[num_shared[parent[number]] :] for number, ids in enumerate(prompts)],
            sources=first,
        )


def _num_shared(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share; each keeps at least one, which its answer is read from."""
    most = min(map(len, prompts)) - 1
    return next((i for i in range(most) if any(ids[i] != prompts[0][i] for ids in prompts)), most)


def prompt_levels(model: VisionLanguageModel, requests: Sequence[Request]) -> tuple[list[Level], Tensor]:
    """The levels of the requests, the last token of each read in their order, and their embeddings float[R, D]."""
    # Requests without an image share what they begin with; one whose image has no number shares with no other.
    images = [r.image if r.image is not None or not r.features else ~number for number, r in enumerate(requests)]
    plan = PromptPlan.of(model, [request.ids for request in requests], images)
    levels = [Level.chains([len(ids) for ids in plan.shared], read_last=0)] if plan.shared else []
    lengths = [len(ids) for ids in plan.rests]
    is_bidirectional = model.bidirectional_prompt
    levels.append(Level.chains(lengths, parent=plan.parent, bidirectional=lengths if is_bidirectional else None))
    ids = torch.tensor([token for chain in [*plan.shared, *plan.rests] for token in chain], device=model.device)
    return levels, model.embed(ids, [features for number in plan.sources for features in requests[number].features])


@torch.inference_mode()
def run_prefix(model: VisionLanguageModel, prefix: Sequence[int]) -> Cache | None:
    """The decoder's cache after a prefix that images share; None if there is none."""
    if not prefix:
        return None
    embeddings = model.embed(torch.tensor(list(prefix), device=model.device), [])
    return model.decode(embeddings, [Level.chains([len(prefix)], read_last=0)], want_cache=True).cache
