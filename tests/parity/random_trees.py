"""Random prefix trees for hypothesis, and what transformers makes of their samples one at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parity.lfm2_peer import IMAGE_TOKEN, VOCABULARY, peer_pixels, random_image
from vlmtune.inference.batch import Request
from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.train.step import Answer, Sample

END = 3
RandomBatch = tuple[list[int], list[tuple[list[int], ProcessedImage, list[Answer]]]]
"""A shared prefix, and samples: their own tokens, their image, their answers."""
relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

tokens = st.lists(st.integers(6, VOCABULARY - 1), min_size=1, max_size=5)
grids = st.lists(st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 4, 6])), min_size=1, max_size=2)


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], ProcessedImage]:
    """A sample's own part of the prompt: text, an image of one or two tiles, text."""
    image = random_image(draw(grids), draw(st.integers(0, 10_000)))
    before = draw(st.lists(st.integers(6, VOCABULARY - 1), max_size=2))
    return before + [IMAGE_TOKEN] * image.num_tokens + draw(tokens), image


@st.composite
def prompt_lists(draw: st.DrawFn, most: int) -> list[tuple[list[int], ProcessedImage]]:
    """Prompts some of which ask about an image that another asks about too, with the question before or behind it."""
    drawn = [draw(prompts())]
    for _ in range(draw(st.integers(0, most - 1))):
        ids, image = draw(st.sampled_from(drawn))
        end = len(ids) - ids[::-1].index(IMAGE_TOKEN)
        kind = draw(st.sampled_from(["new image", "question behind", "question before", "same question"]))
        if kind == "new image":
            ids, image = draw(prompts())
        elif kind == "question behind":
            ids = ids[:end] + draw(tokens)
        elif kind == "question before":
            ids = draw(tokens) + ids
        drawn.append((ids, image))
    return drawn


def numbered(images: list[ProcessedImage]) -> tuple[list[ProcessedImage], list[int]]:
    """The different images, and the index among them of each."""
    distinct = list({id(image): image for image in images}.values())
    return distinct, [next(n for n, other in enumerate(distinct) if other is image) for image in images]


def questions_of(model: Lfm2Vl, drawn: list[tuple[list[int], ProcessedImage]]) -> list[Request]:
    """Questions about the images, each of which is encoded once."""
    images, indices = numbered([image for _, image in drawn])
    with torch.no_grad():
        features = model.encode_images(images)
    return [Request(ids, [features[index]], index) for (ids, _), index in zip(drawn, indices, strict=True)]


def samples_of(
    model: Lfm2Vl, drawn: list[tuple[list[int], ProcessedImage, list[Answer]]]
) -> tuple[list[Sample], list[Tensor]]:
    """Samples, and the features of the images that they name."""
    images, indices = numbered([image for _, image, _ in drawn])
    samples = [Sample(ids, index, answers) for (ids, _, answers), index in zip(drawn, indices, strict=True)]
    return samples, model.encode_images(images)


@st.composite
def batches(draw: st.DrawFn, max_answers: int) -> RandomBatch:
    # The prefix may be empty, or shorter than the convolution's kernel.
    prefix = draw(st.lists(st.integers(6, VOCABULARY - 1), max_size=8))
    samples = []
    for ids, image in draw(prompt_lists(4)):
        answers = [
            Answer(
                [*draw(st.lists(st.integers(6, VOCABULARY - 1), max_size=4)), END], draw(st.sampled_from([1.0, 0.3]))
            )
            for _ in range(draw(st.integers(1, max_answers)))
        ]
        samples.append((ids, image, answers))
    return prefix, samples


def peer_loss(peer: Any, prefix: list[int], samples: list[tuple[list[int], ProcessedImage, list[Answer]]]) -> Tensor:
    """Every answer with its whole prompt through transformers, one at a time."""
    total = torch.zeros(())
    for ids, image, answers in samples:
        for answer in answers:
            whole = prefix + ids + answer.ids
            logits = peer(input_ids=torch.tensor([whole]), **peer_pixels([image])).logits[0]
            predicted = logits[len(whole) - len(answer.ids) - 1 : -1]
            total = total + answer.weight * F.cross_entropy(predicted, torch.tensor(answer.ids), reduction="sum")
    return total
