"""The hand-written norm and gate round as transformers' modules do, in float32 and in bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vlmtune.models.kernels import glu, rms_norm

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_lfm2_bit_for_bit(dtype: torch.dtype) -> None:
    from transformers.models.lfm2.modeling_lfm2 import Lfm2RMSNorm

    torch.manual_seed(0)
    norm = Lfm2RMSNorm(64, eps=1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 7, 64).to(dtype).requires_grad_()
    ours, theirs = rms_norm(x, norm.weight, 1e-5), norm(x)
    assert torch.equal(ours, theirs)
    cotangent = torch.randn(3, 7, 64).to(dtype)
    grads = torch.autograd.grad(ours, (x, norm.weight), cotangent)
    expected = torch.autograd.grad(theirs, (x, norm.weight), cotangent)
    # In bfloat16 ours is the better rounded: the reference rounds the gradient at every step.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for grad, reference in zip(grads, expected, strict=True):
        assert (grad - reference).float().norm() <= tolerance * reference.float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_equals_the_reference_bit_for_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(2, 5, 16).to(dtype), torch.randn(2, 5, 16).to(dtype)
    assert torch.equal(glu(gate.clone().requires_grad_(), up, "silu"), F.silu(gate) * up)
