"""The one decoder loop: it runs where the model is, and holds no more than is asked for."""

from __future__ import annotations

import weakref

import pytest
import torch

from tests.tiny_model import random_model
from vlmtune.models.cache import LayerCache
from vlmtune.models.lfm2_vl.decoder import Lfm2Layer
from vlmtune.models.plan import DecodePlan, TokenSet
from vlmtune.models.tree import Level

pytestmark = pytest.mark.unit

META = torch.device("meta")


def tokens(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64, device=META)


@torch.no_grad()
def test_tree_with_its_cache_runs_where_the_model_is() -> None:
    model = random_model().to(META)
    prefix = model.decode(model.embed_tokens(tokens(5)), [Level.chains([5], read_last=0)], want_cache=True)
    levels = [Level.chains([3, 2]), Level.chains([1, 2, 3], parent=[0, 0, 1])]
    answers = model.decode(model.embed_tokens(tokens(11)), levels, prefix.cache, want_cache=True)
    assert answers.hidden.device == META and answers.cache is not None
    trie = Level.tree([[-1, 0, 0], [-1], []], parent=[2, 0, 1])
    hidden = model.decode(model.embed_tokens(tokens(4)), [trie], answers.cache.select([0, 2, 1])).hidden
    assert model.logits(hidden).shape == (4, model.vocab_size)


@pytest.mark.parametrize("want_cache", [False, True])
def test_layer_caches_are_kept_only_if_wanted(monkeypatch: pytest.MonkeyPatch, want_cache: bool) -> None:
    made: list[weakref.ref[LayerCache]] = []
    num_alive: list[int] = []
    forward = Lfm2Layer.forward

    def watched(
        self: Lfm2Layer, x: torch.Tensor, plan: DecodePlan, tokens: TokenSet, cache: LayerCache
    ) -> tuple[torch.Tensor, LayerCache]:
        num_alive.append(sum(cache() is not None for cache in made))
        out, new_cache = forward(self, x, plan, tokens, cache)
        made.append(weakref.ref(new_cache))
        return out, new_cache

    monkeypatch.setattr(Lfm2Layer, "forward", watched)
    model = random_model()
    with torch.inference_mode():
        model.decode(model.embed(torch.tensor([7, 8, 9]), []), [Level.chains([3])], want_cache=want_cache)
    assert len(num_alive) > 2
    assert max(num_alive) == (len(num_alive) - 1 if want_cache else 1)


@pytest.mark.parametrize("kinds", [["conv", "full_attention"], ["full_attention", "conv"], ["conv", "conv"]])
def test_prefix_that_nobody_reads_is_continued_exactly(kinds: list[str]) -> None:
    model = random_model(layer_types=kinds)
    ids = torch.tensor([7, 8, 9, 10, 11])
    with torch.inference_mode():
        whole = model.decode(model.embed_tokens(ids), [Level.chains([5])]).hidden
        prefix = model.decode(model.embed_tokens(ids[:3]), [Level.chains([3], read_last=0)], want_cache=True)
        continued = model.decode(model.embed_tokens(ids[3:]), [Level.chains([2])], prefix.cache).hidden
    assert len(prefix.hidden) == 0
    torch.testing.assert_close(continued, whole, rtol=1e-5, atol=1e-5)
