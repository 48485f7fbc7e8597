"""The index arithmetic of one decoder call: from the levels of a prefix tree on a cache to what each layer needs.

All tokens go through every linear layer as one packed matrix float[R, D]. Attention alone pads, level by level, and a
short convolution gathers each token's predecessors. The decoder makes one `DecodePlan` per call; all layers share it.
The example is that of `tree.py`, run on an empty cache.

*Attention.* A level's queries are a rectangle of segments × slots. Their keys are the columns of the path that the
segment continues (the cache's first, then each level's, padded to its width), then the segment's own slots. Level 2
has two segments of up to three tokens; 1 marks what a query sees, and a padding slot sees itself against NaN:

    segment 0   p0  p1  p2  a0  a1  x0  x1  x2        segment 1   p0  p1  p2  b0   .  y0  y1   .
    x0           1   1   1   1   1   1   .   .        y0           1   1   1   1   .   1   .   .
    x1           1   1   1   1   1   1   1   .        y1           1   1   1   1   .   1   1   .
    x2           1   1   1   1   1   1   .   1        .            1   1   1   1   .   .   .   1

*Convolution.* With kernel size K = 3 a token is convolved with the two tokens before it *on its own path*. The inputs
are the cache's K-1 for each of its segments (z0 and z1, here zero) and then the packed tokens; `previous` gathers from
them. x2 looks back at x0, not at x1, and y0 at b0 and p2. `ends` are the last K-1 inputs of each path, for the cache.

    input      z0  z1  p0  p1  p2  a0  a1  b0  x0  x1  x2  y0  y1
    index       0   1   2   3   4   5   6   7   8   9  10  11  12
    one back            1   2   3   4   5   4   6   8   8   7  11
    two back            0   1   2   3   4   3   5   6   6   4   7

*Needed tokens.* Above the last attention layer, most tokens of prompts feed nothing. There only the tokens are computed
that are read or that a convolution above looks back at; with one convolution layer above the last attention layer:

    needed      .   .  p2  a0  a1  b0  x0  x1  x2  y0  y1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmtune.models.cache import Cache
from vlmtune.models.layers import Rope
from vlmtune.models.packing import gather
from vlmtune.models.tree import Level


@dataclass(frozen=True)
class LevelQueries:
    """The queries of one level, as attention needs them.

    Attributes:
        tokens: the level's range among the tokens of its set.
        slots: int64[n], the padded slot (segment * Q + index) of each of them; None where the rectangle is full.
        shape: (G, Q) of the padded rectangle.
        visible: bool[G, Q, A + W], the columns each query attends to; W is the level's width in keys.
        prompt: bool[G, Q, W], the columns of each query's own bidirectional prompt; None where there is none.
        positions: int64[G, Q], each query's position on its path.
    """

    tokens: slice
    slots: Tensor | None
    shape: tuple[int, int]
    visible: Tensor
    prompt: Tensor | None
    positions: Tensor


@dataclass(frozen=True)
class TokenSet:
    """The tokens that a stretch of decoder layers computes: all of the tree, or only those that something needs.

    `previous` and `ends` index the convolution inputs: the cache's, flattened to [G0 * (K-1)], then these tokens.

    Attributes:
        levels: one entry per level.
        positions: int64[R], each token's position on its path.
        previous: K-1 times int64[R], the input one, two, … steps before each token on its path.
        ends: int64[G, K-1], the last inputs of each path of the last level, oldest first.
    """

    levels: list[LevelQueries]
    positions: Tensor
    previous: list[Tensor]
    ends: Tensor

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class _Paths:
    """What the segments of the next level continue: first the cache's segments, then those of the level before.

    Attributes:
        last_input: int64[G], the index of each path's last convolution input.
        valid, positions, lengths: as in `Cache`.
    """

    last_input: Tensor
    valid: Tensor
    positions: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class _LinkedLevel:
    """A level linked to the paths that it continues.

    Attributes:
        slots: int64[n], the padded slot of each token.
        previous: int64[n], the convolution input before each token.
        positions: int64[n].
        visible: bool[G, Q, A + Q], the columns each slot attends to.
        column_positions: int64[G, A + Q].
    """

    slots: Tensor
    previous: Tensor
    positions: Tensor
    visible: Tensor
    column_positions: Tensor


class DecodePlan:
    """All index arithmetic of one decoder call, done once on the CPU and shared by every layer.

    Args:
        levels: the new tokens, level by level.
        cache: what the first level continues.
        num_inputs: K-1, how many earlier inputs a short convolution reads (0 for a decoder without one).
        num_convs_above: short-convolution layers above the last attention layer: they decide how far back from a
            read token the tokens must be computed there.
        want_cache: whether the paths of the last level will be continued later.
        device: where indices go.

    Attributes:
        all: the tokens that layers below the last attention layer compute.
        needed: those that it and the layers above compute; `all` itself where all are needed.
        needed_index: int64[R'], the needed tokens among all; None where all are needed.
        read: int64[N], the read tokens among the needed ones.
        key_slots: for each level the padded slots of its tokens; None where the rectangle is full.
        end_valid, end_positions, end_lengths: the fields of the cache after the last level.
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
        self.levels, self.device = list(levels), device
        self._num_inputs, self._num_cached = num_inputs, cache.num_segments * num_inputs
        self._masks: dict[tuple[int, bool, torch.dtype, int, int | None], Tensor | None] = {}
        self._angles: dict[tuple[Rope, bool, torch.dtype], tuple[Tensor, Tensor]] = {}

        ends = self._link(cache)
        self.end_valid, self.end_positions, self.end_lengths = ends.valid, ends.positions, ends.lengths
        self._last_input = ends.last_input
        is_read = torch.cat([level.read[level.present] for level in self.levels])
        needed = self._find_needed(is_read, num_convs_above, want_cache)

        self.all = self.needed = self._token_set(torch.arange(len(is_read)))
        self.needed_index: Tensor | None = None
        if len(needed) < len(is_read):
            self.needed, self.needed_index = self._token_set(needed), needed.to(device)
        self.read = is_read[needed].nonzero().squeeze(1).to(device)
        self.key_slots = [
            None if len(linked.slots) == level.read.numel() else linked.slots.to(device)
            for linked, level in zip(self._linked, self.levels, strict=True)
        ]

    def _link(self, cache: Cache) -> _Paths:
        """Put each level on the paths that it continues; returns the paths of the last one."""
        paths = _Paths(
            last_input=torch.arange(1, cache.num_segments + 1) * self._num_inputs - 1,
            valid=cache.valid,
            positions=cache.positions,
            lengths=cache.lengths,
        )
        # The inputs of one cached segment are consecutive. Its oldest has nothing before it and points to itself: the
        # convolution of no token reaches past it.
        previous = torch.arange(self._num_cached) - 1
        if self._num_inputs:
            previous[:: self._num_inputs] += 1
        chain, num_linked = [previous], self._num_cached
        self._linked: list[_LinkedLevel] = []
        for level in self.levels:
            linked, paths = _link_level(level, paths, num_linked)
            self._linked.append(linked)
            chain.append(linked.previous)
            num_linked += len(linked.slots)
        self._previous = torch.cat(chain)
        return paths

    def _find_needed(self, is_read: Tensor, num_convs_above: int, want_cache: bool) -> Tensor:
        """int64[R'], ascending: the tokens that must be computed above the last attention layer."""
        is_needed = torch.cat([torch.zeros(self._num_cached, dtype=torch.bool), is_read])
        if want_cache:
            # Also what convolutions above look back at; without any, this gives the layers at least one token.
            is_needed[self._last_input[self._last_input >= 0]] = True
        for _ in range(num_convs_above * self._num_inputs):
            is_needed[self._previous[is_needed]] = True
        return is_needed[self._num_cached :].nonzero().squeeze(1)

    def _token_set(self, tokens: Tensor) -> TokenSet:
        """The indices for some of the tokens: ``tokens`` int64[R'], ascending packed indices."""
        renumbered = torch.zeros(len(self._previous), dtype=torch.int64)
        renumbered[: self._num_cached] = torch.arange(self._num_cached)
        renumbered[self._num_cached + tokens] = torch.arange(self._num_cached, self._num_cached + len(tokens))
        previous: list[Tensor] = []
        ends: list[Tensor] = []
        step_back, tail = self._num_cached + tokens, self._last_input
        for _ in range(self._num_inputs):
            step_back = self._previous[step_back]
            previous.append(renumbered[step_back].to(self.device))
            ends.insert(0, renumbered[tail])
            tail = self._previous[tail]

        levels: list[LevelQueries] = []
        first = start = 0
        for level, linked in zip(self.levels, self._linked, strict=True):
            inside = tokens[(tokens >= first) & (tokens < first + len(linked.slots))] - first
            stop = start + len(inside)
            levels.append(self._queries(level, linked, linked.slots[inside], slice(start, stop)))
            first, start = first + len(linked.slots), stop
        positions = torch.cat([linked.positions for linked in self._linked])[tokens]
        return TokenSet(
            levels=levels,
            positions=positions.to(self.device),
            previous=previous,
            ends=(torch.stack(ends, dim=1) if ends else tail.new_empty(len(tail), 0)).to(self.device),
        )

    def _queries(self, level: Level, linked: _LinkedLevel, slots: Tensor, tokens: slice) -> LevelQueries:
        """The queries at some of a level's slots, moved to the left of each segment: the smallest rectangle."""
        shape = (level.num_segments, level.width)
        sources = torch.arange(level.num_segments * level.width)  # the original slot of each slot of the rectangle
        if len(slots) < len(linked.slots):
            segment = slots // level.width
            count = torch.bincount(segment, minlength=level.num_segments)
            index = torch.arange(len(slots)) - (count.cumsum(0) - count)[segment]
            shape = (level.num_segments, int(count.max()) if len(slots) else 0)
            # A padding query stands in for its segment's first token: every query must see at least one column.
            squeezed = (torch.arange(level.num_segments) * level.width)[:, None].repeat(1, shape[1])
            squeezed[segment, index] = slots
            sources, slots = squeezed.flatten(), segment * shape[1] + index
        segment, token = sources // level.width, sources % level.width
        num_columns = linked.visible.shape[2]
        return LevelQueries(
            tokens=tokens,
            slots=None if len(slots) == shape[0] * shape[1] else slots.to(self.device),
            shape=shape,
            visible=linked.visible[segment, token].view(*shape, num_columns),
            prompt=None if level.prompt is None else level.prompt[segment, token].view(*shape, level.width),
            positions=linked.column_positions[segment, num_columns - level.width + token].view(shape),
        )

    def narrow(self, x: Tensor, tokens: TokenSet) -> Tensor:
        """x float[R, D] of all tokens -> that of the set's; x itself where it has just these."""
        return x if len(x) == len(tokens) else gather(x, self.needed_index)

    def angles(self, rope: Rope, tokens: TokenSet, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a rotary embedding at the set's positions: float[R, 1, d] each."""
        key = (rope, tokens is self.all, dtype)
        if key not in self._angles:
            self._angles[key] = rope.angles(tokens.positions, dtype)
        return self._angles[key]

    def mask(
        self, level: int, tokens: TokenSet, dtype: torch.dtype, *, repeat: int, window: int | None = None
    ) -> Tensor | None:
        """The additive attention mask of one level: float[G, 1, repeat * Q, A + W], 0 or -inf.

        None where every query sees every column, as in a batch of equally long bidirectional prompts: without a mask
        attention takes its fastest kernel, and 4,096 image tokens need no gigabyte of zeros.

        Args:
            level: its number.
            tokens: whose queries: `all` or `needed`.
            dtype: of the queries.
            repeat: query heads that share a key head: they are folded into the queries, so that keys and values are
                never repeated.
            window: how many positions back a sliding-attention layer sees, except inside a bidirectional prompt, which
                sees all of itself (as in transformers); None sees all.
        """
        key = (level, tokens is self.all, dtype, repeat, window)
        if key not in self._masks:
            queries = tokens.levels[level]
            visible = queries.visible
            if window is not None:
                distance = queries.positions[:, :, None] - self._linked[level].column_positions[:, None, :]
                is_near = distance < window
                if queries.prompt is not None:
                    is_near[:, :, -queries.prompt.shape[2] :] |= queries.prompt
                visible = visible & is_near
            if visible.all():
                self._masks[key] = None
            else:
                mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
                self._masks[key] = mask.repeat(1, repeat, 1)[:, None].to(self.device)
        return self._masks[key]


def _link_level(level: Level, paths: _Paths, first_input: int) -> tuple[_LinkedLevel, _Paths]:
    """A level on the paths it continues, and the paths of its segments; its first token is input ``first_input``."""
    slots = level.present.flatten().nonzero().squeeze(1)
    inputs = torch.full((level.num_segments * level.width,), -1)
    inputs[slots] = torch.arange(first_input, first_input + len(slots))
    inputs = inputs.view(level.num_segments, level.width)
    parent_input = paths.last_input[level.parent]
    inside = inputs.gather(1, level.previous.clamp(min=0))
    previous = torch.where(level.previous >= 0, inside, parent_input[:, None])

    positions = paths.lengths[level.parent][:, None] + level.depth
    column_positions = torch.cat([paths.positions[level.parent], positions], dim=1)
    path = paths.valid[level.parent]
    linked = _LinkedLevel(
        slots=slots,
        previous=previous[level.present],
        positions=positions[level.present],
        visible=torch.cat([path[:, None, :].expand(-1, level.width, -1), level.visible], dim=2),
        column_positions=column_positions,
    )
    is_empty = level.lengths == 0
    last = (level.lengths - 1).clamp(min=0)[:, None]
    on_path = level.visible.gather(1, last[:, :, None].expand(-1, -1, level.width)).squeeze(1)
    grown = torch.where(is_empty, 0, level.depth.gather(1, last).squeeze(1) + 1)
    return linked, _Paths(
        last_input=torch.where(is_empty, parent_input, inputs.gather(1, last).squeeze(1)),
        valid=torch.cat([path, on_path & level.present & ~is_empty[:, None]], dim=1),
        positions=column_positions,
        lengths=paths.lengths[level.parent] + grown,
    )
