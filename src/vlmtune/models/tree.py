"""The shape of a prefix tree: its new tokens, and the token that each of them follows.

Tokens come in *segments*. A segment is a chain (a prompt, an image with its text, an answer) or a small tree (a label
trie) that continues one other segment. All segments that continue segments of one *level* are the next level; the first
level continues the paths of a `Cache`. A token attends to its ancestors and itself, never to a sibling.

Training, label scoring and generation build their trees with `Level.chains` and `Level.tree` and run them through
`VisionLanguageModel.decode`; nothing else computes hidden states. An example, used in `plan.py` too: below one prompt
are two images; about the first the labels "x0 x1" and "x0 x2" are scored, about the second the label "y0 y1".

    level 0           level 1          level 2
    p0 ── p1 ── p2 ─┬─ a0 ── a1 ────── x0 ─┬─ x1
                    │                      └─ x2
                    └─ b0 ──────────── y0 ─── y1

    levels = [
        Level.chains([3], read_last=0),
        Level.chains([2, 1], parent=[0, 0], read_last=0),
        Level.tree([[-1, 0, 0], [-1, 0]], parent=[0, 1]),
    ]

Packed order is level by level, segment by segment, without padding. `previous` is here the packed index of the token
before each token on its path; the position counts the tokens on the path.

    token      p0  p1  p2  a0  a1  b0  x0  x1  x2  y0  y1
    packed      0   1   2   3   4   5   6   7   8   9  10
    previous    .   0   1   2   3   2   4   6   6   5   9
    position    0   1   2   3   4   3   5   6   6   4   5

Each token (a line) attends to the tokens marked 1 (columns):

           p0  p1  p2  a0  a1  b0  x0  x1  x2  y0  y1
    p0      1   .   .   .   .   .   .   .   .   .   .
    p1      1   1   .   .   .   .   .   .   .   .   .
    p2      1   1   1   .   .   .   .   .   .   .   .
    a0      1   1   1   1   .   .   .   .   .   .   .
    a1      1   1   1   1   1   .   .   .   .   .   .
    b0      1   1   1   .   .   1   .   .   .   .   .
    x0      1   1   1   1   1   .   1   .   .   .   .
    x1      1   1   1   1   1   .   1   1   .   .   .
    x2      1   1   1   1   1   .   1   .   1   .   .
    y0      1   1   1   .   .   1   .   .   .   1   .
    y1      1   1   1   .   .   1   .   .   .   1   1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One level of a prefix tree: G segments of up to Q tokens each, padded to a rectangle.

    Attributes:
        parent: int64[G], the segment of the level above (of the cache, for the first level) that each continues.
        lengths: int64[G], tokens in each segment. A segment may be empty: it then ends where its parent ends.
        read: bool[G, Q], tokens whose hidden states are returned.
        previous: int64[G, Q], the token before each token, counted within its segment; -1 for the parent's last.
            Always smaller than the token's own index.
        is_chain: whether no segment branches.
        bidirectional: int64[G], how many leading tokens of each segment all see each other (a prefix-LM prompt).
            None for purely causal segments.
    """

    parent: Tensor
    lengths: Tensor
    read: Tensor
    previous: Tensor
    is_chain: bool = False
    bidirectional: Tensor | None = None

    @classmethod
    def chains(
        cls,
        lengths: Sequence[int],
        *,
        parent: Sequence[int] | None = None,
        read_last: Sequence[int] | int = 1,
        bidirectional: Sequence[int] | None = None,
    ) -> Level:
        """Plain sequences.

        Args:
            lengths: tokens in each segment.
            parent: the segment each continues; default: segment 0 for all.
            read_last: how many of each segment's last tokens are read; one number for all, or one per segment.
            bidirectional: leading tokens of each segment that all see each other.
        """
        num_segments, width = len(lengths), max(1, *lengths)
        count = torch.tensor(lengths, dtype=torch.int64)
        last = [read_last] * num_segments if isinstance(read_last, int) else read_last
        token = torch.arange(width)
        read = (token < count[:, None]) & (token >= count[:, None] - torch.tensor(last, dtype=torch.int64)[:, None])
        return cls(
            parent=torch.tensor(parent if parent is not None else [0] * num_segments, dtype=torch.int64),
            lengths=count,
            read=read,
            previous=(token - 1).expand(num_segments, -1),
            is_chain=True,
            bidirectional=None if bidirectional is None else torch.tensor(bidirectional, dtype=torch.int64),
        )

    @classmethod
    def tree(cls, previous: Sequence[Sequence[int]], *, parent: Sequence[int], read: Tensor | None = None) -> Level:
        """Branching segments, such as label tries. All tokens are read unless ``read`` (bool[G, Q]) says which.

        Args:
            previous: for each segment and each of its tokens, the token before it in the segment; -1 for none.
            parent: the segment each continues.
        """
        lengths = [len(segment) for segment in previous]
        width = max(1, *lengths)
        padded = torch.tensor([list(segment) + [-1] * (width - len(segment)) for segment in previous])
        count = torch.tensor(lengths, dtype=torch.int64)
        return cls(
            parent=torch.tensor(parent, dtype=torch.int64),
            lengths=count,
            read=(torch.arange(width) < count[:, None]) if read is None else read,
            previous=padded.view(len(previous), width).to(torch.int64),
        )

    @property
    def num_segments(self) -> int:
        """G."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Q: the tokens of the longest segment."""
        return self.read.shape[1]

    @cached_property
    def present(self) -> Tensor:
        """bool[G, Q]: which slots of the padded rectangle hold a token."""
        return torch.arange(self.width) < self.lengths[:, None]

    @cached_property
    def depth(self) -> Tensor:
        """int64[G, Q]: tokens of the segment before each token on its path."""
        return self.previous + 1 if self.is_chain else self.visible.sum(-1) - 1

    @cached_property
    def visible(self) -> Tensor:
        """bool[G, Q, Q]: the tokens of its segment each token attends to. A padding slot sees itself, against NaN."""
        if self.is_chain:
            causal = torch.ones(self.width, self.width, dtype=torch.bool).tril().expand(self.num_segments, -1, -1)
            return causal if self.prompt is None else causal | self.prompt
        visible = torch.eye(self.width, dtype=torch.bool).repeat(self.num_segments, 1, 1)
        ancestor = self.previous
        while (exists := ancestor >= 0).any():
            segment, token = exists.nonzero(as_tuple=True)
            visible[segment, token, ancestor[segment, token]] = True
            ancestor = torch.where(exists, self.previous.gather(1, ancestor.clamp(min=0)), ancestor)
        return visible

    @cached_property
    def prompt(self) -> Tensor | None:
        """bool[G, Q, Q]: pairs of tokens of one bidirectional prompt; None where there is none."""
        if self.bidirectional is None:
            return None
        inside = torch.arange(self.width) < self.bidirectional[:, None]
        return inside[:, :, None] & inside[:, None, :]
