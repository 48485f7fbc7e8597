"""What a decoder remembers of the rows it has run, such that a prefix tree can grow on it.

Branching is `State.select`: a path may be taken as often as something continues it. Gradients flow back through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class AttentionState:
    """Keys (already rotated) and values of one attention layer: float[G, KV, A, d] each."""

    keys: Tensor
    values: Tensor

    def select(self, groups: Tensor) -> AttentionState:
        return AttentionState(take_groups(self.keys, groups), take_groups(self.values, groups))


@dataclass
class ConvState:
    """Inputs of one short-convolution layer at the last K-1 rows of each path, oldest first: float[G, K-1, D].

    Zero where a path is shorter than K-1 rows, as the causal padding of the convolution is.
    """

    inputs: Tensor

    def select(self, groups: Tensor) -> ConvState:
        return ConvState(take_groups(self.inputs, groups))


@dataclass
class State:
    """What a decoder remembers of G paths, such that rows can continue them. Gradients flow back through it.

    Attributes:
        layers: one AttentionState or ConvState a decoder layer.
        valid: bool[G, A], which columns of keys and values belong to each path (the others are padding).
        positions: int64[G, A], the position of each column's token on its path.
        lengths: int64[G], rows on each path so far.
    """

    layers: list[AttentionState | ConvState]
    valid: Tensor
    positions: Tensor
    lengths: Tensor

    @property
    def num_groups(self) -> int:
        return len(self.lengths)

    def select(self, groups: Tensor | Sequence[int]) -> State:
        """The state of some groups, in the order given; a group may be taken more than once (branching)."""
        index = torch.as_tensor(groups, dtype=torch.int64)
        return State(
            layers=[layer.select(index) for layer in self.layers],
            valid=self.valid[index],
            positions=self.positions[index],
            lengths=self.lengths[index],
        )


def take_groups(tensor: Tensor, groups: Tensor) -> Tensor:
    """Gather along the first dimension; a view where one group is shared by all."""
    if tensor.shape[0] == 1:
        return tensor.expand(len(groups), *tensor.shape[1:])
    if len(groups) == tensor.shape[0] and torch.equal(groups, torch.arange(len(groups))):
        return tensor
    return tensor.index_select(0, groups.to(tensor.device))
