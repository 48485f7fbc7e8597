"""Hand-written forward and backward passes of the operations that dominate activation memory.

Autograd keeps every intermediate of a formula; these keep only what the backward pass cannot recompute cheaply. Called
by `layers.py` (`rms_norm`, `glu`) and `adapters.layer` (`lora_linear`). Where nothing needs a gradient, each runs as
plain operations and saves nothing. First-order gradients only.

Compute types: reductions run in float32 (float64 for float64 input, so that gradcheck means something);
results have the type of `x`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

GluActivation = Literal["silu", "gelu_tanh"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, one_offset: bool = False) -> Tensor:
    """Root-mean-square norm over the last dimension (arXiv 1910.07467), rounded as transformers' Lfm2RMSNorm.

    Args:
        x: [..., D].
        weight: [D]; cast to x's type if it is kept in another (a part trained in float32 under bfloat16).
        eps: added to the mean square.
        one_offset: multiply by 1 + weight, before rounding to x's type, as transformers' GemmaRMSNorm does.

    Returns:
        [..., D] in x's type. For the backward pass x, weight and float32[..., 1] reciprocal roots are kept.
    """
    if needs_grad(x, weight):
        out: Tensor = _RmsNorm.apply(x, weight, eps, one_offset)  # type: ignore[no-untyped-call]
        return out
    return _rms_norm_forward(x, weight, eps, one_offset)[0]


def glu(gate: Tensor, up: Tensor, activation: GluActivation) -> Tensor:
    """activation(gate) · up, both [..., D] (arXiv 2002.05202); only the inputs are kept for the backward pass."""
    if needs_grad(gate, up):
        out: Tensor = _Glu.apply(gate, up, activation)  # type: ignore[no-untyped-call]
        return out
    return _activate(gate, activation).mul_(up)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """x Wᵀ + bias + scale · ((x ∘ mask) Aᵀ) Bᵀ, a frozen linear layer with LoRA (arXiv 2106.09685).

    Args:
        x: [..., D_in], of weight's type unless autocast is on.
        weight: [D_out, D_in], frozen: it gets no gradient (if it requires one, plain autograd runs instead).
        bias: [D_out] or None, frozen likewise.
        a: [R, D_in] and b: [D_out, R], usually float32. They are cast to x's type for the products; their
            gradients come back in their own type.
        scale: alpha / rank (alpha / √rank for rsLoRA). With dropout the caller folds 1 / (1 - p) into it.
        dropout_mask: bool[..., D_in], true where x is kept for the low-rank branch; None keeps all.

    Returns:
        [..., D_out] in x's type, or in autocast's. For the backward pass x, the mask and x Aᵀ ([..., R]) are kept.
    """
    if needs_grad(weight, bias):
        dropped = x if dropout_mask is None else x * dropout_mask
        low = F.linear(dropped, a.to(x.dtype))
        return F.linear(x, weight, bias) + F.linear(low, b.to(x.dtype)) * scale
    if needs_grad(x, a, b):
        out: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale, dropout_mask)  # type: ignore[no-untyped-call]
        return out
    return _lora_forward(x, weight, bias, a, b, scale, dropout_mask)[0]


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether a backward pass will need something of an operation on these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over tokens run in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rms_norm_forward(x: Tensor, weight: Tensor, eps: float, one_offset: bool) -> tuple[Tensor, Tensor]:
    wide = x.to(reduction_dtype(x.dtype))
    inverse_rms = wide.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
    if one_offset:
        return (wide * inverse_rms).mul_(1.0 + weight.to(wide.dtype)).to(x.dtype), inverse_rms
    # The rounding to x's type comes before the weight, as in the reference.
    return (wide * inverse_rms).to(x.dtype).mul_(weight.to(x.dtype)), inverse_rms


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, one_offset: bool) -> Tensor:
        out, inverse_rms = _rms_norm_forward(x, weight, eps, one_offset)
        ctx.save_for_backward(x, weight, inverse_rms)
        ctx.one_offset = one_offset
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        grad = grad.to(inverse_rms.dtype)
        normal = x.to(inverse_rms.dtype) * inverse_rms
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normal).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            # d/dx of x·r, r = (mean x² + eps)^-1/2:  r · (g − n · mean(g · n)),  n = x·r, g = grad · weight
            wide = grad * (1.0 + weight.to(grad.dtype) if ctx.one_offset else weight)
            mean = (wide * normal).mean(-1, keepdim=True)
            grad_x = wide.addcmul_(normal, mean, value=-1).mul_(inverse_rms).to(x.dtype)
        return grad_x, grad_weight, None, None


def _activate(gate: Tensor, activation: GluActivation) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


class _Glu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: GluActivation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _activate(gate, activation).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gate, up = ctx.saved_tensors
        grad_gate = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_gate = grad * up
            if ctx.activation == "silu":  # both in place
                torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
            else:
                torch.ops.aten.gelu_backward.grad_input(grad_gate, gate, approximate="tanh", grad_input=grad_gate)
        if ctx.needs_input_grad[1]:
            grad_up = _activate(gate, ctx.activation).mul_(grad)
        return grad_gate, grad_up, None


def _product_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products with x: its own, or autocast's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _lora_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    dropout_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = _product_dtype(x)
    x = x.to(dtype)
    out = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
    low = F.linear(x if dropout_mask is None else x * dropout_mask, a.to(dtype))  # [..., R]
    # In place in the large product: no second [..., D_out].
    out.view(-1, out.shape[-1]).addmm_(low.view(-1, low.shape[-1]), b.to(dtype).t(), alpha=scale)
    return out, low


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        dropout_mask: Tensor | None,
    ) -> Tensor:
        out, low = _lora_forward(x, weight, bias, a, b, scale, dropout_mask)
        ctx.scale, ctx.x_dtype = scale, x.dtype
        # The casts of A and B are small and are recomputed; nothing is kept that no gradient needs. x is kept
        # as it came, which several layers share, not as autocast would have it.
        _, _, _, a_needs_grad, b_needs_grad, _, _ = ctx.needs_input_grad
        mask = dropout_mask if a_needs_grad or ctx.needs_input_grad[0] else None
        ctx.save_for_backward(x if a_needs_grad else None, weight, a, b, low if b_needs_grad else None, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low, mask = ctx.saved_tensors
        scale: float = ctx.scale
        dtype = grad.dtype
        grad_x = grad_a = grad_b = None
        flat = grad.reshape(-1, grad.shape[-1])  # [N, D_out]
        x_needs_grad, _, _, a_needs_grad, b_needs_grad, _, _ = ctx.needs_input_grad
        if b_needs_grad:
            grad_b = torch.mm(flat.t(), low.view(-1, low.shape[-1])).to(b.dtype).mul_(scale)
        if not (x_needs_grad or a_needs_grad):
            return None, None, None, None, grad_b, None, None
        grad_low = torch.mm(flat, b.to(dtype)).mul_(scale)  # [N, R]
        flat_mask = None if mask is None else mask.reshape(-1, mask.shape[-1])
        if a_needs_grad:
            inputs = x.reshape(-1, x.shape[-1]).to(dtype)
            inputs = inputs if flat_mask is None else inputs * flat_mask
            grad_a = torch.mm(grad_low.t(), inputs).to(a.dtype)
        if x_needs_grad:
            grad_flat = torch.mm(flat, weight.to(dtype))
            if flat_mask is None:
                grad_flat.addmm_(grad_low, a.to(dtype))
            else:
                grad_flat.add_(torch.mm(grad_low, a.to(dtype)).mul_(flat_mask))
            grad_x = grad_flat.view(*grad.shape[:-1], weight.shape[1]).to(ctx.x_dtype)
        return grad_x, None, None, grad_a, grad_b, None, None
