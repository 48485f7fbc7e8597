"""Whether activations fit is judged the same before a step and after it, when the allocator holds what it freed."""

from __future__ import annotations

import pytest
import torch

from vlmtune.models.malloc import held_bytes, keep_freed_memory
from vlmtune.train.device import free_bytes

pytestmark = pytest.mark.unit


def test_freed_memory_that_the_process_holds_is_counted() -> None:
    if not keep_freed_memory():
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
