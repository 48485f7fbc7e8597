"""No index or mask stays behind on the CPU. The meta device stands in for an accelerator: it refuses to be mixed."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_model import random_model
from vlmtune.models.plan import DecodePlan
from vlmtune.models.tree import Level

pytestmark = pytest.mark.unit

META = torch.device("meta")


def tokens(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64, device=META)


@torch.no_grad()
def test_a_tree_with_its_state_runs_wherever_the_model_is() -> None:
    model = random_model().to(META)
    prefix = model.decode(model.embed_tokens(tokens(5)), [Level.chains([5], read_last=0)], want_cache=True)
    levels = [Level.chains([3, 2]), Level.chains([1, 2, 3], parent=[0, 0, 1])]
    answers = model.decode(model.embed_tokens(tokens(11)), levels, prefix.cache, want_cache=True)
    assert answers.hidden.device == META and answers.cache is not None
    trie = Level.tree([[-1, 0, 0], [-1], []], parent=[2, 0, 1])
    hidden = model.decode(model.embed_tokens(tokens(4)), [trie], answers.cache.select([0, 2, 1])).hidden
    assert model.logits(hidden).shape == (4, model.vocab_size)


@pytest.mark.parametrize("num_inputs", [0, 2])
def test_every_index_of_a_tree_is_where_the_rows_are(num_inputs: int) -> None:
    cache = random_model().model.language_model.empty_cache(torch.float32, torch.device("cpu"))
    levels = [Level.chains([3, 2], parent=[0, 0], read_last=0), Level.chains([1, 2, 3], parent=[0, 0, 1])]
    tree = DecodePlan(levels, cache, num_inputs=num_inputs, num_convs_above=0, want_cache=True, device=META)
    assert tree.narrow is not tree.full and tree.kept is not None
    found = [tree.kept, tree.read, *tree.key_cells]
    for row_set in (tree.full, tree.narrow):
        found += [row_set.positions, row_set.ends, *row_set.previous, *(level.cells for level in row_set.levels)]
        found += [tree.mask(level, row_set, torch.float32, repeat=2) for level in range(2)]
    assert all(tensor.device == META for tensor in found if tensor is not None)
