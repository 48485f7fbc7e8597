"""Attention with capped scores, whole and in blocks, against the formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlmtune.models import attention as module
from vlmtune.models.attention import attention

pytestmark = pytest.mark.unit


def _inputs(queries: int = 7, keys: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8).mul_(3).requires_grad_() for n in (queries, keys, keys))
    mask = torch.zeros(2, 1, queries, keys).masked_fill_(torch.rand(2, 1, queries, keys) < 0.4, float("-inf"))
    mask[..., 0] = 0
    return q, k, v, mask


def _formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("is_masked", [False, True])
def test_scale_and_softcap_enter_as_in_the_formula(softcap: float | None, is_masked: bool) -> None:
    q, k, v, mask = _inputs()
    added = mask if is_masked else None
    assert torch.allclose(
        attention(q, k, v, added, scale=0.7, softcap=softcap), _formula(q, k, v, added, 0.7, softcap), atol=1e-5
    )


def test_capped_attention_in_blocks_gives_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, mask = _inputs()
    whole = attention(q, k, v, mask, softcap=2.0)
    expected = torch.autograd.grad(whole.pow(2).sum(), (q, k, v))
    monkeypatch.setattr(module, "_MOST_PLAIN_WEIGHTS", 2 * 2 * 3 * 9)  # two queries at a time
    blocked = attention(q, k, v, mask, softcap=2.0)
    assert torch.allclose(blocked, whole, atol=1e-6)
    found = torch.autograd.grad(blocked.pow(2).sum(), (q, k, v))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_plain_attention_equals_the_fused_one_with_its_gradients() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, rows, 8, dtype=torch.float64, requires_grad=True) for rows in (5, 7, 7))
    mask = torch.zeros(2, 1, 5, 7, dtype=torch.float64).masked_fill_(torch.rand(2, 1, 5, 7) < 0.3, float("-inf"))
    mask[..., 0] = 0
    plain = attention(q, k, v, mask)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(plain, fused)
    probe = torch.randn_like(plain)
    ours = torch.autograd.grad((plain * probe).sum(), (q, k, v))
    theirs = torch.autograd.grad((fused * probe).sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
