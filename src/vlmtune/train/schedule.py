"""The learning rate over a run, and the order in which examples are seen. No state: a step's values follow from
its number, so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np


def learning_rate_factor(
    step: int, num_steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Factor on the learning rate of optimizer step ``step`` (from 0): linear warm-up, then the schedule to zero."""
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))


def epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    """The order of the examples in one epoch: a permutation drawn from seed and epoch alone."""
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(num_examples).tolist()
    return order


@dataclass(frozen=True, slots=True)
class Place:
    """One place in the order of a run.

    Attributes:
        example: the number of the example that stands there.
        epoch: the pass, from 0; slot: the place within the pass.
    """

    example: int
    epoch: int
    slot: int


class Order:
    """In which order a run sees its examples: pass after pass, without end.

    Args:
        num_examples: of the training split; a pass has as many places.
        seed: of the run.
    """

    def __init__(self, num_examples: int, seed: int) -> None:
        self.num_examples, self.seed = num_examples, seed

    def epoch(self, epoch: int) -> list[int]:
        """The examples of one pass."""
        return epoch_order(self.num_examples, self.seed, epoch)

    def places(self, first: int, count: int) -> Iterator[Place]:
        """``count`` places from the number ``first`` of the whole run on. Passes follow each other without a gap, so
        that every micro-batch cut from them is full."""
        current, order = -1, [0]
        for place in range(first, first + count):
            epoch, slot = divmod(place, self.num_examples)
            if epoch != current:
                current, order = epoch, self.epoch(epoch)
            yield Place(order[slot], epoch, slot)
