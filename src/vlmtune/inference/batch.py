"""Prompts as the upper levels of a prefix tree: the shared text, each image once, what is asked about it.

In: questions as tokens and image features. Out: levels, tokens and features in the packed order of `decode`. The
scorer, generation and the training step hang their answers on these levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmtune.models.cache import Cache
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel


@dataclass
class Question:
    """What is asked about one image.

    Attributes:
        ids: the prompt's tokens after the shared prefix, image placeholders included; at least one.
        features: the image's float[T, D] features, T placeholders among `ids`. Questions about one image share
            its rows if they hold the very same tensor.
    """

    ids: list[int]
    features: list[Tensor]


@dataclass
class PromptTree:
    """The levels that hold the questions' own parts of the prompt.

    Attributes:
        above: the level of images that several questions share, or nothing.
        parent: the segment of the level above (or of the cache, where there is none) that each question continues.
        own: each question's tokens in its own segment; at least one.
        ids: of the level above, in packed order.
        features: of all placeholders, in packed order.
    """

    above: list[Level]
    parent: list[int]
    own: list[list[int]]
    ids: list[int]
    features: list[Tensor]

    @classmethod
    def of(cls, model: VisionLanguageModel, questions: Sequence[Question], *, share: bool = True) -> PromptTree:
        """An image with what comes before and right after it is run once for all questions about it.

        Not where prompts see themselves whole: there each token before the question depends on the question.
        """
        share = share and not model.bidirectional_prompt
        members: dict[tuple[int, ...], list[int]] = {}
        for number, question in enumerate(questions):
            members.setdefault(tuple(id(features) for features in question.features), []).append(number)
        images = list(members.values())
        shared = [_num_shared([questions[number].ids for number in segment]) for segment in images]
        # A shared part holds all of its image's placeholders, or the questions stand before the image.
        is_whole = all(
            model.image_token_id not in questions[number].ids[count:]
            for segment, count in zip(images, shared, strict=True)
            for number in segment
        )
        if not share or len(images) == len(questions) or not is_whole:
            features = [features for question in questions for features in question.features]
            return cls([], [0] * len(questions), [question.ids for question in questions], [], features)
        image_of = {number: image for image, segment in enumerate(images) for number in segment}
        first = [questions[segment[0]] for segment in images]
        return cls(
            above=[Level.chains(shared, read_last=0)],
            parent=[image_of[number] for number in range(len(questions))],
            own=[question.ids[shared[image_of[number]] :] for number, question in enumerate(questions)],
            ids=[token for question, count in zip(first, shared, strict=True) for token in question.ids[:count]],
            features=[features for question in first for features in question.features],
        )


def _num_shared(prompts: Sequence[list[int]]) -> int:
    """How many leading tokens all prompts share; each keeps one at least, the row that its answer is read from."""
    most = min(map(len, prompts)) - 1
    return next((i for i in range(most) if any(ids[i] != prompts[0][i] for ids in prompts)), most)


def prompt_levels(model: VisionLanguageModel, questions: Sequence[Question]) -> tuple[list[Level], Tensor]:
    """The levels of the questions, the last row of each read in their order, and their embeddings float[R, D]."""
    tree = PromptTree.of(model, questions)
    lengths = [len(ids) for ids in tree.own]
    rows = Level.chains(lengths, parent=tree.parent, bidirectional=lengths if model.bidirectional_prompt else None)
    ids = torch.tensor([*tree.ids, *(token for own in tree.own for token in own)], device=model.device)
    return [*tree.above, rows], model.embed(ids, tree.features)


@torch.inference_mode()
def run_prefix(model: VisionLanguageModel, prefix: Sequence[int]) -> Cache | None:
    """The decoder's cache after a prefix that images share; None if there is none."""
    if not prefix:
        return None
    embeddings = model.embed(torch.tensor(list(prefix), device=model.device), [])
    return model.decode(embeddings, [Level.chains([len(prefix)], read_last=0)], want_cache=True).cache
