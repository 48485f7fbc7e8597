"""What a decoder remembers of the rows it has run, such that a prefix tree can grow on it.

Branching is `Cache.select`: a path may be taken as often as something continues it. Gradients flow back through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class AttentionCache:
    """Keys (already rotated) and values of one attention layer: float[G, KV, A, d] each."""

    keys: Tensor
    values: Tensor

    def select(self, segments: Tensor) -> AttentionCache:
        return AttentionCache(take_segments(self.keys, segments), take_segments(self.values, segments))


@dataclass
class ConvCache:
    """Inputs of one short-convolution layer at the last K-1 rows of each path, oldest first: float[G, K-1, D].

    Zero where a path is shorter than K-1 rows, as the causal padding of the convolution is.
    """

    inputs: Tensor

    def select(self, segments: Tensor) -> ConvCache:
        return ConvCache(take_segments(self.inputs, segments))


@dataclass
class Cache:
    """What a decoder remembers of G paths, such that rows can continue them. Gradients flow back through it.

    Attributes:
        layers: one AttentionCache or ConvCache a decoder layer.
        valid: bool[G, A], which columns of keys and values belong to each path (the others are padding).
        positions: int64[G, A], the position of each column's token on its path.
        lengths: int64[G], rows on each path so far.
    """

    layers: list[AttentionCache | ConvCache]
    valid: Tensor
    positions: Tensor
    lengths: Tensor

    @property
    def num_segments(self) -> int:
        return len(self.lengths)

    def select(self, segments: Tensor | Sequence[int]) -> Cache:
        """The cache of some segments, in the order given; a segment may be taken more than once (branching)."""
        index = torch.as_tensor(segments, dtype=torch.int64)
        return Cache(
            layers=[layer.select(index) for layer in self.layers],
            valid=self.valid[index],
            positions=self.positions[index],
            lengths=self.lengths[index],
        )


def take_segments(tensor: Tensor, segments: Tensor) -> Tensor:
    """Gather along the first dimension; a view where one segment is shared by all."""
    if tensor.shape[0] == 1:
        return tensor.expand(len(segments), *tensor.shape[1:])
    if len(segments) == tensor.shape[0] and torch.equal(segments, torch.arange(len(segments))):
        return tensor
    return tensor.index_select(0, segments.to(tensor.device))
