"""The shape of a prefix tree, as those who build one say it: new rows, and what each of them hangs on.

A *row* is one token position. Level come in *segments*: a segment is a chain (a prompt, an image with its text, an
answer) or a small tree (the nodes of a label trie) that continues one segment of what came before. A row attends to its
ancestors and itself, never to a sibling; the short convolution reads a row's *own* ancestors' inputs. Several `Level`
in one call are the levels of one tree: each hangs on the level before it, and the first hangs on a `Cache`.

Training, label scoring and generation build their trees with `Level.chains` and `Level.tree` and run them through
`VisionLanguageModel.decode`; nothing else computes hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass
class Level:
    """One level of a prefix tree: G segments of up to Q rows each.

    Attributes:
        parent: int64[G], the segment of the level above (of the cache, for the first level) that each continues.
        lengths: int64[G], rows in each segment. A segment may be empty: it then ends where its parent ends.
        read: bool[G, Q], rows whose hidden states the caller wants.
        before: int64[G, Q], the row before each row on its path, within its segment; -1 for the parent's end.
            None for chains. A row's `before` is smaller than the row itself.
        bidirectional: int64[G], how many leading rows of each segment all see each other (a prefix-LM prompt).
            None for purely causal segments.
    """

    parent: Tensor
    lengths: Tensor
    read: Tensor
    before: Tensor | None = None
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
            lengths: rows in each segment.
            parent: the segment each continues; default: segment 0 for all.
            read_last: how many of each segment's last rows are read; one number for all, or one a segment.
            bidirectional: leading rows of each segment that all see each other.
        """
        num_segments, width = len(lengths), max(1, *lengths)
        count = torch.tensor(lengths, dtype=torch.int64)
        last = [read_last] * num_segments if isinstance(read_last, int) else read_last
        row = torch.arange(width)
        read = (row < count[:, None]) & (row >= count[:, None] - torch.tensor(last, dtype=torch.int64)[:, None])
        return cls(
            parent=torch.tensor(parent if parent is not None else [0] * num_segments, dtype=torch.int64),
            lengths=count,
            read=read,
            bidirectional=None if bidirectional is None else torch.tensor(bidirectional, dtype=torch.int64),
        )

    @classmethod
    def tree(cls, before: Sequence[Sequence[int]], *, parent: Sequence[int], read: Tensor | None = None) -> Level:
        """Branching segments, such as label tries: ``before[g][q]`` is the row before row q, or -1. All are read."""
        lengths = [len(segment) for segment in before]
        width = max(1, *lengths)
        padded = torch.tensor([list(segment) + [-1] * (width - len(segment)) for segment in before], dtype=torch.int64)
        count = torch.tensor(lengths, dtype=torch.int64)
        return cls(
            parent=torch.tensor(parent, dtype=torch.int64),
            lengths=count,
            read=(torch.arange(width) < count[:, None]) if read is None else read,
            before=padded.view(len(before), width),
        )

    @property
    def num_segments(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Q: the rows of the longest segment."""
        return self.read.shape[1]

    @cached_property
    def present(self) -> Tensor:
        """bool[G, Q]: which cells of the padded rectangle are rows."""
        return torch.arange(self.width) < self.lengths[:, None]

    @cached_property
    def previous(self) -> Tensor:
        """int64[G, Q]: `before`, spelled out for chains too."""
        if self.before is not None:
            return self.before
        return (torch.arange(self.width) - 1).expand(self.num_segments, -1)

    @cached_property
    def depth(self) -> Tensor:
        """int64[G, Q]: rows of the segment on the path to each row, itself not counted."""
        if self.before is None:
            return torch.arange(self.width).expand(self.num_segments, -1)
        return self.visible.sum(-1) - 1

    @cached_property
    def visible(self) -> Tensor:
        """bool[G, Q, Q]: which rows of its segment each row attends to. A padding row sees itself, against NaN."""
        width = self.width
        if self.before is None:
            seen = torch.ones(width, width, dtype=torch.bool).tril().expand(self.num_segments, -1, -1)
            return seen if self.together is None else seen | self.together
        seen = torch.eye(width, dtype=torch.bool).repeat(self.num_segments, 1, 1)
        ancestor = self.before
        while (found := ancestor >= 0).any():
            segment, row = found.nonzero(as_tuple=True)
            seen[segment, row, ancestor[segment, row]] = True
            above = self.before.gather(1, ancestor.clamp(min=0))
            ancestor = torch.where(found, above, ancestor)
        return seen

    @cached_property
    def together(self) -> Tensor | None:
        """bool[G, Q, Q]: pairs of rows of one bidirectional prompt; None where there is none."""
        if self.bidirectional is None:
            return None
        inside = torch.arange(self.width) < self.bidirectional[:, None]
        return inside[:, :, None] & inside[:, None, :]
