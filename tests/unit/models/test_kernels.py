"""The hand-written backward passes equal autograd's, and keep no more than they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.models.kernels import GluActivation, glu, lora_linear, rms_norm

pytestmark = pytest.mark.unit


def _random(*shape: int, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def _plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _plain_lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, mask: Tensor | None
) -> Tensor:
    kept = x if mask is None else x * mask
    return F.linear(x, weight, bias) + F.linear(F.linear(kept, a), b) * scale


def _saved_bytes(run: Callable[[], Tensor], known: list[Tensor]) -> int:
    """Bytes that the graph of `run()` keeps beyond the storages of `known`."""
    kept: dict[int, int] = {}
    storages = {tensor.untyped_storage().data_ptr() for tensor in known}

    def pack(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in storages:
            kept[pointer] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    assert out.requires_grad
    return sum(kept.values())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_gradcheck_rms_norm() -> None:
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (_random(2, 3, 5), _random(5)))


def test_gradcheck_rms_norm_with_one_offset() -> None:
    def norm(x: Tensor, w: Tensor) -> Tensor:
        return rms_norm(x, w, 1e-5, one_offset=True)

    x, weight = _random(2, 3, 5), _random(5)
    assert torch.autograd.gradcheck(norm, (x, weight))
    assert torch.allclose(norm(x, weight), _plain_rms_norm(x, weight + 1, 1e-5))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gradcheck_gated_units(activation: GluActivation) -> None:
    assert torch.autograd.gradcheck(lambda gate, up: glu(gate, up, activation), (_random(4, 6), _random(4, 6)))


def test_gelu_gate_equals_autograd() -> None:
    gate, up = _random(4, 6), _random(4, 6)
    plain = F.gelu(gate, approximate="tanh") * up
    assert torch.allclose(glu(gate, up, "gelu_tanh"), plain)
    ours = torch.autograd.grad(glu(gate, up, "gelu_tanh").pow(2).sum(), (gate, up))
    theirs = torch.autograd.grad(plain.pow(2).sum(), (gate, up))
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradcheck_lora_linear(masked: bool, has_bias: bool) -> None:
    weight, bias = _random(7, 5, grad=False), _random(7, grad=False) if has_bias else None
    mask = torch.rand(2, 3, 5) < 0.7 if masked else None

    def run(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_linear(x, weight, bias, a, b, 1.7, mask)

    assert torch.autograd.gradcheck(run, (_random(2, 3, 5), _random(2, 5), _random(7, 2)))


def test_rms_norm_equals_autograd() -> None:
    x, weight = _random(4, 3, 8), _random(8)
    cotangent = torch.randn(4, 3, 8, dtype=torch.float64)
    ours = rms_norm(x, weight, 1e-6)
    plain = _plain_rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, weight), cotangent), torch.autograd.grad(plain, (x, weight), cotangent)
    )


def test_rms_norm_gives_frozen_weight_no_gradient() -> None:
    x, weight = _random(4, 8), _random(8, grad=False)
    rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_rms_norm_learns_a_weight_under_a_frozen_input() -> None:
    x, weight = _random(4, 8, grad=False), _random(8)
    rms_norm(x, weight, 1e-6).pow(2).sum().backward()
    assert weight.grad is not None and weight.grad.abs().min() > 0


def test_a_float32_weight_keeps_bfloat16_activations_in_bfloat16() -> None:
    x, weight = _random(4, 8, dtype=torch.bfloat16), _random(8, dtype=torch.float32)
    out = rms_norm(x, weight, 1e-6)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_lora_linear_equals_autograd(masked: bool) -> None:
    x, weight, bias = _random(4, 3, 8), _random(6, 8, grad=False), _random(6, grad=False)
    a, b = _random(2, 8), _random(6, 2)
    mask = torch.rand(4, 3, 8) < 0.5 if masked else None
    cotangent = torch.randn(4, 3, 6, dtype=torch.float64)
    ours, plain = lora_linear(x, weight, bias, a, b, 0.3, mask), _plain_lora(x, weight, bias, a, b, 0.3, mask)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, a, b), cotangent), torch.autograd.grad(plain, (x, a, b), cotangent)
    )


@pytest.mark.parametrize("learns", ["x", "a", "b", "xa", "xb", "ab"])
def test_lora_linear_gives_gradients_to_exactly_those_who_ask(learns: str) -> None:
    x, a, b = (
        _random(3, 8, grad="x" in learns),
        _random(2, 8, grad="a" in learns),
        _random(6, 2, grad="b" in learns),
    )
    weight = _random(6, 8, grad=False)
    out = lora_linear(x, weight, None, a, b, 2.0)
    wanted = [tensor for tensor in (x, a, b) if tensor.requires_grad]
    plain = torch.autograd.grad(_plain_lora(x, weight, None, a, b, 2.0, None).pow(2).sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad(out.pow(2).sum(), wanted), plain)


def test_lora_linear_with_a_learning_weight_falls_back_to_autograd() -> None:
    x, weight, a, b = _random(3, 8), _random(6, 8), _random(2, 8), _random(6, 2)
    lora_linear(x, weight, None, a, b, 2.0).sum().backward()
    assert weight.grad is not None


def test_lora_linear_keeps_float32_gradients_over_bfloat16_weights() -> None:
    x, weight = _random(16, 32, dtype=torch.bfloat16), _random(24, 32, dtype=torch.bfloat16, grad=False)
    a, b = _random(4, 32, dtype=torch.float32), _random(24, 4, dtype=torch.float32)
    out = lora_linear(x, weight, None, a, b, 0.5)
    exact = _plain_lora(x.detach().double(), weight.double(), None, a.double(), b.double(), 0.5, None)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact).norm() / exact.norm() < 1e-2
    out.float().sum().backward()
    assert a.grad is not None and a.grad.dtype == torch.float32
    assert b.grad is not None and b.grad.dtype == torch.float32
    assert x.grad is not None and x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("masked", [False, True])
def test_lora_linear_under_autocast_equals_autograd_under_autocast(masked: bool) -> None:
    x, weight = _random(16, 32, dtype=torch.float32), _random(24, 32, dtype=torch.float32, grad=False)
    bias = _random(24, dtype=torch.float32, grad=False)
    a, b = _random(4, 32, dtype=torch.float32), _random(24, 4, dtype=torch.float32)
    mask = torch.rand(16, 32) < 0.7 if masked else None
    with torch.autocast("cpu", torch.bfloat16):
        ours = lora_linear(x, weight, bias, a, b, 0.5, mask)
        plain = _plain_lora(x, weight, bias, a, b, 0.5, mask)
    assert ours.dtype == plain.dtype == torch.bfloat16
    cotangent = torch.randn_like(ours)
    grads, expected = (torch.autograd.grad(y, (x, a, b), cotangent) for y in (ours, plain))
    for ours_, plain_ in zip((ours, *grads), (plain, *expected), strict=True):
        assert ours_.dtype == plain_.dtype
        assert (ours_ - plain_).float().norm() < 1e-2 * plain_.float().norm()


def test_lora_linear_with_zero_b_is_bit_equal_to_linear() -> None:
    x, weight = _random(16, 32, dtype=torch.float32), _random(24, 32, dtype=torch.float32, grad=False)
    a, b = _random(4, 32, dtype=torch.float32), torch.zeros(24, 4, requires_grad=True)
    assert torch.equal(lora_linear(x, weight, None, a, b, 0.5), F.linear(x, weight))


def test_no_grad_runs_plain_operations_with_the_same_values() -> None:
    x, weight, a, b = _random(3, 8), _random(6, 8, grad=False), _random(2, 8), _random(6, 2)
    norm_weight = _random(8)
    with torch.no_grad():
        without = (
            lora_linear(x, weight, None, a, b, 2.0),
            rms_norm(x, norm_weight, 1e-6),
            glu(x, x, "silu"),
        )
    with_grad = (lora_linear(x, weight, None, a, b, 2.0), rms_norm(x, norm_weight, 1e-6), glu(x, x, "silu"))
    for plain, hand in zip(without, with_grad, strict=True):
        assert not plain.requires_grad and hand.requires_grad
        assert torch.equal(plain, hand)


def test_inputs_are_left_as_they_were() -> None:
    x, weight, a, b = _random(3, 8), _random(8, 8, grad=False), _random(2, 8), _random(8, 2)
    before = [tensor.detach().clone() for tensor in (x, weight, a, b)]
    out = glu(rms_norm(x, weight[0], 1e-6), lora_linear(x, weight, None, a, b, 2.0), "silu")
    out.sum().backward(retain_graph=True)
    first = x.grad
    assert first is not None
    first = first.clone()
    x.grad = None
    out.sum().backward()  # the saved tensors were not overwritten by the first pass
    assert x.grad is not None and torch.equal(first, x.grad)
    assert all(torch.equal(old, new) for old, new in zip(before, (x, weight, a, b), strict=True))


def test_backward_pass_keeps_what_docstrings_say() -> None:
    rows, wide, rank = 64, 32, 4
    x, up = _random(rows, wide, dtype=torch.float32), _random(rows, wide, dtype=torch.float32)
    weight = _random(wide, wide, dtype=torch.float32, grad=False)
    a, b = _random(rank, wide, dtype=torch.float32), _random(wide, rank, dtype=torch.float32)
    assert _saved_bytes(lambda: rms_norm(x, weight[0], 1e-6), [x, weight]) == rows * 4
    assert _saved_bytes(lambda: rms_norm(x, weight[0], 1e-6, one_offset=True), [x, weight]) == rows * 4
    assert _saved_bytes(lambda: glu(x, up, "silu"), [x, up]) == 0
    assert _saved_bytes(lambda: glu(x, up, "gelu_tanh"), [x, up]) == 0
    assert _saved_bytes(lambda: lora_linear(x, weight, None, a, b, 1.0), [x, weight, a, b]) == rows * rank * 4


def test_lora_linear_under_autocast_keeps_no_copies() -> None:
    rows, wide, rank = 64, 32, 4
    x, weight = _random(rows, wide, dtype=torch.float32), _random(wide, wide, dtype=torch.float32, grad=False)
    a, b = _random(rank, wide, dtype=torch.float32), _random(wide, rank, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert _saved_bytes(lambda: lora_linear(x, weight, None, a, b, 1.0), [x, weight, a, b]) == rows * rank * 2
