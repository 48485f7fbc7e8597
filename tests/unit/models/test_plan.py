"""The drawn example of `plan.py` is what its code gives; indices lie where the tokens do; masks are not mixed up."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_model import random_model
from tests.unit.models.drawn_tree import COLUMNS, SEGMENTS, TOKENS, drawn, line, marks, plan
from vlmtune.models import plan as module
from vlmtune.models.plan import DecodePlan
from vlmtune.models.tree import Level

pytestmark = pytest.mark.unit

META = torch.device("meta")


def test_drawn_masks_are_computed() -> None:
    table = drawn(module)
    visible = plan().all.levels[2].visible
    assert ["segment", "0", *COLUMNS[2][0], "segment", "1", *COLUMNS[2][1]] in table
    for first, second, seen in zip(*SEGMENTS[2], visible.transpose(0, 1), strict=True):
        assert line(first, *marks(seen[0])) + line(second, *marks(seen[1])) in table


def test_drawn_convolution_is_computed() -> None:
    table = drawn(module)
    one_back, two_back = (index.tolist() for index in plan().all.previous)
    assert line("input", "z0", "z1", *TOKENS) in table and line("index", *range(13)) in table
    assert ["one", *line("back", *one_back)] in table
    assert ["two", *line("back", *two_back)] in table


def test_drawn_needed_tokens_are_computed() -> None:
    computed = plan()
    assert computed.needed_index is not None
    needed = {TOKENS[index] for index in computed.needed_index.tolist()}
    assert line("needed", *(token if token in needed else "." for token in TOKENS)) in drawn(module)
    assert [TOKENS[computed.needed_index[index]] for index in computed.read] == SEGMENTS[2][0] + SEGMENTS[2][1][:2]


@pytest.mark.parametrize("num_inputs", [0, 2])
def test_every_index_is_on_the_device_of_the_tokens(num_inputs: int) -> None:
    """The meta device stands in for an accelerator: it refuses to be mixed with the CPU."""
    cache = random_model().model.language_model.empty_cache(torch.float32, torch.device("cpu"))
    levels = [Level.chains([3, 2], parent=[0, 0], read_last=0), Level.chains([1, 2, 3], parent=[0, 0, 1])]
    planned = DecodePlan(levels, cache, num_inputs=num_inputs, num_convs_above=0, want_cache=True, device=META)
    assert planned.needed is not planned.all and planned.needed_index is not None
    indices = [planned.needed_index, planned.read, *planned.key_slots]
    for tokens in (planned.all, planned.needed):
        indices += [tokens.positions, tokens.ends, *tokens.previous, *(level.slots for level in tokens.levels)]
        indices += [planned.mask(level, tokens, torch.float32, repeat=2) for level in range(2)]
    assert all(tensor.device == META for tensor in indices if tensor is not None)


def test_masks_for_different_head_ratios_are_kept_apart() -> None:
    computed = plan()
    shapes = [computed.mask(2, computed.all, torch.float32, repeat=repeat) for repeat in (1, 3, 1)]
    assert [mask.shape for mask in shapes if mask is not None] == [(2, 1, 3, 8), (2, 1, 9, 8), (2, 1, 3, 8)]
    assert shapes[0] is shapes[2]
