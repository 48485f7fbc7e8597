"""The drawn example of `tree.py` is what its code gives; levels of chains and trees mean what they say."""

from __future__ import annotations

import pytest
import torch

from tests.unit.models.drawn_tree import COLUMNS, SEGMENTS, TOKENS, drawn, line, marks, plan
from vlmtune.models import tree
from vlmtune.models.tree import Level

pytestmark = pytest.mark.unit


def test_drawn_table_is_computed() -> None:
    computed = plan()
    previous = (computed.all.previous[0] - 2).tolist()  # two cached inputs stand before the tokens
    table = drawn(tree)
    assert line("token", *TOKENS) in table and line("packed", *range(11)) in table
    assert line("previous", ".", *previous[1:]) in table
    assert line("position", *computed.all.positions.tolist()) in table


def test_drawn_matrix_is_what_tokens_attend_to() -> None:
    table = drawn(tree)
    for level, queries in enumerate(plan().all.levels):
        for segment, names in enumerate(SEGMENTS[level]):
            for query, name in enumerate(names):
                if name == ".":
                    continue
                seen = dict(zip(COLUMNS[level][segment], marks(queries.visible[segment, query]), strict=True))
                assert line(name, *(seen.get(other, ".") for other in TOKENS)) in table


def test_chains_equal_the_same_segments_as_trees() -> None:
    chains = Level.chains([3, 0, 2], parent=[0, 1, 0], read_last=[3, 0, 2])
    trees = Level.tree([[-1, 0, 1], [], [-1, 0]], parent=[0, 1, 0])
    assert torch.equal(chains.present, trees.present) and torch.equal(chains.read, trees.read)
    present = chains.present
    assert torch.equal(chains.previous[present], trees.previous[present])
    assert torch.equal(chains.depth[present], trees.depth[present])
    assert torch.equal(chains.visible[present], trees.visible[present])


def test_bidirectional_prompt_sees_itself_whole() -> None:
    level = Level.chains([4], bidirectional=[2])
    assert level.visible[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
