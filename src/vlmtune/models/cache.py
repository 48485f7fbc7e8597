"""What a decoder remembers of the tokens it has run, so that a prefix tree can grow on it.

Branching is `Cache.select`: a path may be selected any number of times. Gradients flow back through it.
Shapes: G paths, KV key heads of width d, A columns of keys and values, D the decoder's width, and convolutions of
kernel size K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionCache:
    """Keys (already rotated) and values of one attention layer: float[G, KV, A, d] each."""

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> AttentionCache:
        """One path without columns."""
        nothing = torch.zeros(1, num_heads, 0, head_dim, dtype=dtype, device=device)
        return cls(nothing, nothing)

    def select(self, segments: Tensor) -> AttentionCache:
        """See `Cache.select`."""
        return AttentionCache(take_segments(self.keys, segments), take_segments(self.values, segments))


@dataclass(frozen=True)
class ConvCache:
    """Inputs of one short-convolution layer at the last K-1 tokens of each path, oldest first: float[G, K-1, D].

    Zero where a path is shorter than K-1 tokens, as the causal padding of the convolution is.
    """

    inputs: Tensor

    @classmethod
    def empty(cls, num_inputs: int, width: int, dtype: torch.dtype, device: torch.device) -> ConvCache:
        """One path without tokens."""
        return cls(torch.zeros(1, num_inputs, width, dtype=dtype, device=device))

    def select(self, segments: Tensor) -> ConvCache:
        """See `Cache.select`."""
        return ConvCache(take_segments(self.inputs, segments))


LayerCache = AttentionCache | ConvCache


@dataclass(frozen=True)
class Cache:
    """All layers' caches of G paths, one path for each segment of the last level that was run.

    Attributes:
        layers: one for each decoder layer.
        valid: bool[G, A], which columns of keys and values belong to each path (the others are padding).
        positions: int64[G, A], the position of each column's token on its path.
        lengths: int64[G], tokens on each path so far.
    """

    layers: list[LayerCache]
    valid: Tensor
    positions: Tensor
    lengths: Tensor

    @classmethod
    def empty(cls, layers: list[LayerCache]) -> Cache:
        """One path without tokens. ``layers``: empty ones, A being 0 and all inputs zero."""
        return cls(
            layers=layers,
            valid=torch.zeros(1, 0, dtype=torch.bool),
            positions=torch.zeros(1, 0, dtype=torch.int64),
            lengths=torch.zeros(1, dtype=torch.int64),
        )

    @property
    def num_segments(self) -> int:
        """G."""
        return len(self.lengths)

    def select(self, segments: Tensor | Sequence[int]) -> Cache:
        """The cache of some segments, in the order given; a segment may be repeated (branching)."""
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
