"""The index arithmetic of one decoder call: from the levels of a prefix tree (`rows.py`) on a cache (`cache.py`) to
what each layer needs.

In packed order (level by level, segment by segment, no padding) all tokens go through every linear layer as one
matrix; only attention pads, level by level. The decoders make one `DecodePlan` a call; their layers read its row sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmtune.models.cache import Cache
from vlmtune.models.tree import Level


@dataclass
class LevelQueries:
    """The queries of one level, as attention needs them.

    Attributes:
        rows: where the level lies in the packed order.
        cells: int64[rows], the padded cell (segment * Q + slot) of each packed row; None where the rectangle is full.
        shape: (G, Q) of the padded rectangle.
        visible: bool[G, Q, A + W], the columns each query attends to; W is the level's width in keys.
        together: bool[G, Q, W], the columns of each query's own bidirectional prompt; None where there is none.
        positions: int64[G, Q], each query's position on its path.
    """

    rows: slice
    cells: Tensor | None
    shape: tuple[int, int]
    visible: Tensor
    together: Tensor | None
    positions: Tensor


@dataclass
class TokenSet:
    """Level that a stretch of decoder layers computes: all rows of the tree, or only those that something reads.

    `previous` and `ends` index the concatenation of the cache's convolution inputs, flattened to [G0 * (K-1)], and
    these rows.

    Attributes:
        levels: one entry a level.
        positions: int64[R], each row's position on its path (what RoPE needs).
        previous: K-1 times int64[R], the rows before each row on its path, nearest first.
        ends: int64[G, K-1], the last inputs of each path of the last level, oldest first.
    """

    levels: list[LevelQueries]
    positions: Tensor
    previous: list[Tensor]
    ends: Tensor


class DecodePlan:
    """All index arithmetic of one decoder call, done once on the CPU and shared by every layer.

    Args:
        levels: the new rows, level by level.
        cache: what the first level hangs on.
        num_inputs: K-1, how many earlier inputs a short convolution reads (0 for a decoder without one).
        num_convs_above: short-convolution layers above the last attention layer: they decide how far back from a
            read row the rows must be computed there.
        want_cache: whether the ends of the last level will be continued later.
        device: where indices go.
    """

    def __init__(
        self,
        levels: Sequence[Level],
        cache: Cache,
        *,
        num_inputs: int,
        num_convs_above: int,
        want_cache: bool,
        device: torch.device,
    ) -> None:
        self.levels = list(levels)
        self.num_inputs = num_inputs
        self.device = device
        self._masks: dict[tuple[int, bool, torch.dtype, int | None], Tensor | None] = {}
        bank = cache.num_segments * num_inputs
        num_rows = sum(int(rows.lengths.sum()) for rows in self.levels)

        # One chain of indices over [the cache's K-1 inputs a segment, oldest first][rows]: previous[i] lies before i.
        # The oldest input has nothing before it and points to itself: no read row's convolution reaches past it.
        previous = torch.arange(bank + num_rows) - 1
        if num_inputs:
            previous[0:bank:num_inputs] = torch.arange(0, bank, num_inputs)
        end = torch.arange(1, cache.num_segments + 1) * num_inputs - 1
        valid, lengths, column_positions = cache.valid, cache.lengths, cache.positions
        positions: list[Tensor] = []
        read: list[Tensor] = []
        cells: list[Tensor] = []
        self._visible: list[Tensor] = []
        self._column_positions: list[Tensor] = []
        start = bank
        for rows in self.levels:
            cell = rows.present.flatten().nonzero().squeeze(1)
            packed = torch.full((rows.num_segments * rows.width,), -1)
            packed[cell] = torch.arange(start, start + len(cell))
            packed = packed.view(rows.num_segments, rows.width)
            inside = packed.gather(1, rows.previous.clamp(min=0))
            before = torch.where(rows.previous >= 0, inside, end[rows.parent][:, None])
            previous[packed[rows.present]] = before[rows.present]

            position = lengths[rows.parent][:, None] + rows.depth
            path = valid[rows.parent]
            positions.append(position[rows.present])
            read.append(rows.read[rows.present])
            cells.append(cell)
            column_positions = torch.cat([column_positions[rows.parent], position], dim=1)
            self._column_positions.append(column_positions)
            self._visible.append(torch.cat([path[:, None, :].expand(-1, rows.width, -1), rows.visible], dim=2))

            last = (rows.lengths - 1).clamp(min=0)[:, None]
            is_empty = rows.lengths == 0
            on_path = rows.visible.gather(1, last[:, :, None].expand(-1, -1, rows.width)).squeeze(1)
            valid = torch.cat([path, on_path & rows.present & ~is_empty[:, None]], dim=1)
            end = torch.where(is_empty, end[rows.parent], packed.gather(1, last).squeeze(1))
            grown = torch.where(is_empty, 0, rows.depth.gather(1, last).squeeze(1) + 1)
            lengths = lengths[rows.parent] + grown
            start += len(cell)

        self.end_valid, self.end_positions, self.end_lengths = valid, column_positions, lengths
        self.key_cells = [
            None if len(cell) == rows.read.numel() else cell.to(device)
            for cell, rows in zip(cells, self.levels, strict=True)
        ]

        is_read = torch.cat(read)
        reach = torch.zeros(bank + num_rows, dtype=torch.bool)
        reach[bank:] = is_read
        if want_cache:
            reach[end[end >= 0]] = True
        for _ in range(num_convs_above * num_inputs):
            reach[previous[reach.nonzero().squeeze(1)]] = True
        kept = reach[bank:].nonzero().squeeze(1)

        position = torch.cat(positions)
        self.full = self._row_set(torch.arange(num_rows), cells, position, previous, end, bank)
        is_narrow = len(kept) < num_rows
        self.narrow = self._row_set(kept, cells, position, previous, end, bank) if is_narrow else self.full
        self.kept: Tensor | None = kept.to(device) if is_narrow else None
        self.read = is_read[kept].nonzero().squeeze(1).to(device)

    def _row_set(
        self, kept: Tensor, cells: list[Tensor], positions: Tensor, previous: Tensor, end: Tensor, bank: int
    ) -> TokenSet:
        """The indices for a part of the rows: ``kept`` int64[R'], ascending packed row numbers."""
        renumber = torch.zeros(len(previous), dtype=torch.int64)
        renumber[:bank] = torch.arange(bank)
        renumber[bank + kept] = torch.arange(bank, bank + len(kept))
        before: list[Tensor] = []
        ends: list[Tensor] = []
        source, tail = bank + kept, end
        for _ in range(self.num_inputs):
            source = previous[source]
            before.append(renumber[source])
            ends.insert(0, renumber[tail])
            tail = previous[tail]

        levels, first = [], 0
        for level, cell in enumerate(cells):
            inside = kept[(kept >= first) & (kept < first + len(cell))] - first
            offset = int((kept < first).sum())
            levels.append(self._level_rows(level, cell[inside], slice(offset, offset + len(inside))))
            first += len(cell)
        return TokenSet(
            levels=levels,
            positions=positions[kept].to(self.device),
            previous=[rows.to(self.device) for rows in before],
            ends=(torch.stack(ends, dim=1) if ends else end.new_empty(len(end), 0)).to(self.device),
        )

    def _level_rows(self, level: int, cell: Tensor, where: slice) -> LevelQueries:
        """Squeeze a level's kept cells to the left of each segment, so that the padded rectangle is small."""
        rows, visible = self.levels[level], self._visible[level]
        num_segments, width = rows.num_segments, rows.width
        cells = torch.arange(num_segments * width)
        if len(cell) < int(rows.lengths.sum()):
            segment = cell // max(width, 1)
            count = torch.bincount(segment, minlength=num_segments)
            slot = torch.arange(len(cell)) - (count.cumsum(0) - count)[segment]
            width = int(count.max()) if len(cell) else 0
            # A padding query stands in for its segment's first row: every query must see at least one column.
            cells = (torch.arange(num_segments) * rows.width)[:, None].repeat(1, width)
            cells[segment, slot] = cell
            cells, cell = cells.flatten(), segment * width + slot
        row = cells % max(rows.width, 1)
        segment = cells // max(rows.width, 1)
        return LevelQueries(
            rows=where,
            cells=None if len(cell) == num_segments * width else cell.to(self.device),
            shape=(num_segments, width),
            visible=visible[segment, row].view(num_segments, width, visible.shape[2]),
            together=None
            if rows.together is None
            else rows.together[segment, row].view(num_segments, width, rows.width),
            positions=(self._column_positions[level][segment, visible.shape[2] - rows.width + row]).view(
                num_segments, width
            ),
        )

    def mask(
        self, level: int, row_set: TokenSet, dtype: torch.dtype, repeat: int, window: int | None = None
    ) -> Tensor | None:
        """The additive attention mask of one level: float[G, 1, repeat * Q, A + W], 0 or -inf.

        None where every row sees every column, as in a batch of equally long bidirectional prompts: without a mask
        attention takes its fastest kernel, and 4,096 image tokens need no gigabyte of zeros.

        ``repeat`` is the number of query heads that share a key head: they are folded into the query rows, so that
        keys and values are never repeated. ``window`` limits a sliding-attention layer to that many positions, except
        inside a bidirectional prompt, which sees itself whole (as in transformers).
        """
        key = (level, row_set is self.full, dtype, window)
        if key not in self._masks:
            queries = row_set.levels[level]
            visible = queries.visible
            if window is not None:
                distance = queries.positions[:, :, None] - self._column_positions[level][:, None, :]
                is_near = distance < window
                if queries.together is not None:
                    is_near[:, :, -queries.together.shape[2] :] |= queries.together
                visible = visible & is_near
            if visible.all():
                self._masks[key] = None
            else:
                mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
                self._masks[key] = mask.repeat(1, repeat, 1)[:, None].to(self.device)
        return self._masks[key]


class _Scatter(torch.autograd.Function):
    """Packed rows into a zeroed padded rectangle. Each cell is written once, so the gradient is a plain gather."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, cells: Tensor, num_cells: int) -> Tensor:
        ctx.save_for_backward(cells)
        return packed.new_zeros(num_cells, packed.shape[1]).index_copy_(0, cells, packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """The inverse of _Scatter: distinct rows of a matrix, whose gradient is written rather than accumulated."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.num_rows = source.shape[0]
        return source.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.num_rows, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


def pad(packed: Tensor, cells: Tensor | None, num_cells: int) -> Tensor:
    """float[R, D] -> float[num_cells, D], zero where no row lies."""
    return packed if cells is None else _Scatter.apply(packed, cells, num_cells)  # type: ignore[no-untyped-call]


def gather_rows(source: Tensor, rows: Tensor | None) -> Tensor:
    """float[N, D], int64[R] distinct -> float[R, D]; the source itself for None."""
    return source if rows is None else _Gather.apply(source, rows)  # type: ignore[no-untyped-call]
