"""The learning rate over a run, and the order in which examples are seen. No state: a step's values follow from
its number, so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
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


def micro_batches(
    num_examples: int, batch_size: int, seed: int, first: int = 0
) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Micro-batches without end, from number ``first`` on: (number, [(example, epoch)]).

    Examples run on from one epoch into the next, so every micro-batch is full and every epoch sees each example once.
    """
    orders: dict[int, list[int]] = {}
    number = first
    while True:
        members = []
        for place in range(number * batch_size, (number + 1) * batch_size):
            epoch, index = divmod(place, num_examples)
            if epoch not in orders:
                orders = {kept: order for kept, order in orders.items() if kept == epoch - 1}
                orders[epoch] = epoch_order(num_examples, seed, epoch)
            members.append((orders[epoch][index], epoch))
        yield number, members
        number += 1
