"""A linear layer's product is the same by either library, and each is taken where it is known to be the faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.models import products
from vlmtune.models.layers import Linear
from vlmtune.models.products import Gelu, has_onednn, onednn_linear

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    products._prefers_onednn_in_float32.cache_clear()
    yield
    products._prefers_onednn_in_float32.cache_clear()


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that went to oneDNN, on whatever processor this runs."""
    calls: list[torch.Size] = []

    def record(x: Tensor, *rest: Any) -> Tensor:
        calls.append(x.shape)
        return onednn_linear(x, *rest)

    monkeypatch.setattr(products, "onednn_linear", record)
    return calls


def activate(y: Tensor, gelu: Gelu | None) -> Tensor:
    return y if gelu is None else F.gelu(y, approximate=gelu)


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_onednn_equals_torch_in_float32(gelu: Gelu | None) -> None:
    """It also fails if torch renames one of the private operators that the shim reaches."""
    if not has_onednn(torch.float32):
        pytest.skip("torch was built without oneDNN")
    linear, x = Linear(96, 200), torch.randn(7, 5, 96)
    with torch.inference_mode():
        expected = activate(F.linear(x, linear.weight, linear.bias), gelu)
        torch.testing.assert_close(onednn_linear(x, linear.weight, linear.bias, gelu), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("capability", "num_tokens", "is_fused"),
    [("AVX512", 200, True), ("AVX512", 3, False), ("AVX2", 200, False), ("DEFAULT", 200, False)],
)
def test_float32_library_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch,
    fused_calls: list[torch.Size],
    capability: str,
    num_tokens: int,
    is_fused: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    linear, x = Linear(96, 200), torch.randn(num_tokens, 96)
    with torch.inference_mode():
        out = linear(x, gelu="tanh")
        expected = F.gelu(F.linear(x, linear.weight, linear.bias), approximate="tanh")
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-6)
    assert bool(fused_calls) == (is_fused and has_onednn(torch.float32))


def test_float32_training_takes_one_library_everywhere(
    monkeypatch: pytest.MonkeyPatch, fused_calls: list[torch.Size]
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    frozen, x = Linear(96, 200).requires_grad_(False), torch.randn(200, 96)
    frozen(x)
    with torch.no_grad():
        frozen(x)
    assert not fused_calls


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_bfloat16_is_no_further_from_float32_than_its_steps(gelu: Gelu | None) -> None:
    linear = Linear(96, 200).bfloat16()
    x = torch.randn(7, 5, 96).bfloat16()
    exact = activate(F.linear(x.float(), linear.weight.float(), linear.bias.float()), gelu)
    with torch.inference_mode():
        fused, stepwise = linear(x, gelu), activate(F.linear(x, linear.weight, linear.bias), gelu)
    assert fused.dtype == torch.bfloat16 and fused.shape == (7, 5, 200)
    assert (fused.float() - exact).abs().max() <= (stepwise.float() - exact).abs().max() + 1e-6


def test_autocast_gives_bfloat16_products() -> None:
    linear, x = Linear(96, 200), torch.randn(200, 96)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16


def test_learning_layer_runs_in_steps_and_has_gradients() -> None:
    linear, x = Linear(8, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    expected = F.gelu(F.linear(x, linear.weight, linear.bias))
    torch.testing.assert_close(linear(x, gelu="none"), expected, rtol=0, atol=0)
    linear(x, gelu="none").sum().backward()
    assert linear.weight.grad is not None and linear.weight.grad.abs().sum() > 0


def test_frozen_bfloat16_layer_trains_and_evaluates_alike() -> None:
    linear = Linear(96, 200).bfloat16().requires_grad_(False)
    x = torch.randn(7, 96).bfloat16()
    in_training = linear(x, gelu="tanh")
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = linear(x, gelu="tanh")
    with torch.inference_mode():
        expected = linear(x, gelu="tanh")
    assert torch.equal(in_training, expected) and torch.equal(under_autocast, expected)
