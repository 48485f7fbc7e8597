"""Whether activations fit is judged the same before a step and after it, when the allocator holds what it freed."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from tests.tiny_model import random_model
from vlmtune.models.cache import AttentionCache, ConvCache
from vlmtune.models.lfm2_vl.decoder import Lfm2Layer
from vlmtune.models.malloc import held_bytes, hold_memory
from vlmtune.models.tree import Level
from vlmtune.train.memory import free_bytes

pytestmark = pytest.mark.unit


def test_freed_memory_that_the_process_holds_is_counted() -> None:
    if not hold_memory():
        pytest.skip("the C library cannot be told to hold memory")
    size = 2**25
    tensor = torch.ones(size // 4)
    before = held_bytes()
    del tensor
    if not held_bytes():
        pytest.skip("the C library does not say what it holds")
    assert held_bytes() - before > 0.9 * size


def test_memory_that_cuda_s_allocator_holds_is_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20)
    assert free_bytes(torch.device("cuda")) == 60


@pytest.mark.parametrize("want_cache", [False, True])
def test_a_layer_s_keys_and_values_are_kept_only_for_who_continues(
    monkeypatch: pytest.MonkeyPatch, want_cache: bool
) -> None:
    made: list[weakref.ref[AttentionCache | ConvCache]] = []
    num_alive: list[int] = []
    forward = Lfm2Layer.forward

    def watched(self: Lfm2Layer, *arguments: Tensor) -> tuple[Tensor, AttentionCache | ConvCache]:
        num_alive.append(sum(state() is not None for state in made))
        out, state = forward(self, *arguments)
        made.append(weakref.ref(state))
        return out, state

    monkeypatch.setattr(Lfm2Layer, "forward", watched)
    model = random_model()
    with torch.inference_mode():
        model.decode(model.embed(torch.tensor([7, 8, 9]), []), [Level.chains([3])], want_cache=want_cache)
    assert len(num_alive) > 2
    assert max(num_alive) == (len(num_alive) - 1 if want_cache else 1)
