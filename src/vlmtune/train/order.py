"""The order in which a run sees its examples. No state: a slot follows from its number, so that a resumed run continues
exactly. In: labels or images of the examples. Out: slots. Called by `items`."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np


def epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    """The order of the examples in one epoch: a permutation drawn from seed and epoch alone."""
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(num_examples).tolist()
    return order


def balanced_order(strata: Sequence[str], seed: int, epoch: int) -> list[int]:
    """As many slots as examples, every label equally often (up to one where the division is not even).

    A label with more examples than its share is sampled without replacement, one with fewer repeats all of them
    before any recurs.
    """
    draw = np.random.default_rng((seed, epoch))
    members: dict[str, list[int]] = {}
    for example, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(example)
    share, more = divmod(len(strata), len(members))
    favored = set(draw.permutation(len(members))[:more].tolist())
    chosen: list[int] = []
    for number, indices in enumerate(members.values()):
        rounds, rest = divmod(share + (number in favored), len(indices))
        chosen += indices * rounds + draw.choice(indices, rest, replace=False).tolist()
    order: list[int] = draw.permutation(chosen).tolist()
    return order


def grouped_order(groups: Sequence[str], seed: int, epoch: int) -> list[int]:
    """A permutation in which the examples of one group (questions about one image) are adjacent.

    Groups are in a random order, and so are the examples within each.
    """
    draw = np.random.default_rng((seed, epoch))
    members: dict[str, list[int]] = {}
    for example, group in enumerate(groups):
        members.setdefault(group, []).append(example)
    every = list(members.values())
    order: list[int] = []
    for number in draw.permutation(len(every)):
        order += draw.permutation(every[number]).tolist()
    return order


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot in the order of a run.

    Attributes:
        example: the index of the example in it.
        epoch: the pass, from 0.
        position: within the pass.
    """

    example: int
    epoch: int
    position: int


class Order:
    """The order in which a run sees its examples: pass after pass, without end.

    Args:
        num_examples: of the training split; a pass has as many slots.
        seed: of the run.
        strata: each example's label, to show every label equally often; None shows each example once a pass.
        groups: each example's image, to show the questions about it one after the other.
        alike: each example's question; only images with the same question are mixed.
    """

    def __init__(
        self,
        num_examples: int,
        seed: int,
        strata: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        alike: Sequence[Hashable] | None = None,
    ) -> None:
        self.num_examples, self.seed = num_examples, seed
        order = partial(epoch_order, num_examples, seed)
        if groups is not None:
            order = partial(grouped_order, groups, seed)
        elif strata is not None:
            order = partial(balanced_order, strata, seed)
        self.epoch = lru_cache(maxsize=2)(order)
        """epoch -> the examples of that pass."""
        self._alike = alike
        self._partners = lru_cache(maxsize=2)(self._partners_of)

    def slots(self, first: int, count: int) -> Iterator[Slot]:
        """``count`` slots from number ``first`` of the whole run on. Passes follow each other without a gap, so
        every micro-batch is full."""
        for number in range(first, first + count):
            epoch, position = divmod(number, self.num_examples)
            yield Slot(self.epoch(epoch)[position], epoch, position)

    def partner(self, slot: Slot, draw: np.random.Generator) -> int:
        """Another example for that of a slot, drawn as in the pass (balanced, if it is)."""
        if self._alike is None:
            candidates = self.epoch(slot.epoch)
        else:
            candidates = self._partners(slot.epoch)[self._alike[slot.example]]
        return candidates[draw.integers(len(candidates))]

    def _partners_of(self, epoch: int) -> dict[Hashable, list[int]]:
        """Question -> the examples of a pass that ask it."""
        assert self._alike is not None
        members: dict[Hashable, list[int]] = {}
        for example in self.epoch(epoch):
            members.setdefault(self._alike[example], []).append(example)
        return members
