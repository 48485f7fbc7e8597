"""Hand-written forward and backward passes of the operations that dominate activation memory.

Autograd keeps every intermediate of a formula; these keep only what the backward pass cannot recompute
cheaply. The network files (`rms_norm`, `swiglu`, `geglu`) and `adapters.lora` (`lora_linear`) call them. Where no
gradient is asked for, each runs as plain operations and saves nothing. First-order gradients only.

Compute types: reductions run in float32 (float64 for float64 input, so that gradcheck means something);
results have the type of `x`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Level from which oneDNN's float32 product is the faster one.
_FUSED_ROWS = 64


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
    if _learns(x, weight):
        out: Tensor = _RmsNorm.apply(x, weight, eps, one_offset)  # type: ignore[no-untyped-call]
        return out
    return _rms_norm_forward(x, weight, eps, one_offset)[0]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, both [..., D] (arXiv 2002.05202); only the inputs are kept for the backward pass."""
    if _learns(gate, up):
        out: Tensor = _SwiGlu.apply(gate, up)  # type: ignore[no-untyped-call]
        return out
    return F.silu(gate).mul_(up)


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) · up, both [..., D] (arXiv 2002.05202), by the tanh approximation; keeps what `swiglu` keeps."""
    if _learns(gate, up):
        out: Tensor = _GeGlu.apply(gate, up)  # type: ignore[no-untyped-call]
        return out
    return F.gelu(gate, approximate="tanh").mul_(up)


def fused_linear(linear: nn.Module, x: Tensor, gelu: Literal["none", "tanh"] | None = None) -> Tensor:
    """linear(x), or gelu(linear(x)) by the approximation named, for x: [..., D_in].

    On the CPU, where nothing learns (a frozen tower in training too), bias and GELU are applied inside the matrix
    product (oneDNN, by the operator that torch's own compiler emits). In bfloat16 a bias on its own costs a tenth of
    the product and a GELU a third of it; there the product is not rounded before the GELU. In float32 torch's own
    product is MKL's, which on AMD's processors runs at half of oneDNN's rate (docs/LOG.md).
    """
    if (
        type(linear) is nn.Linear
        and x.device.type == "cpu"
        and x.dtype == linear.weight.dtype
        and not _learns(x, linear.weight, linear.bias)
        and _is_fused_faster(x)
    ):
        after, how = ("none", "") if gelu is None else ("gelu", gelu)
        fused: Tensor = torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, after, [], how)
        return fused
    out: Tensor = linear(x)
    return out if gelu is None else F.gelu(out, approximate=gelu)


def _learns(*tensors: Tensor | None) -> bool:
    """Whether a backward pass will want something of the operation on these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _is_fused_faster(x: Tensor) -> bool:
    if x.dtype == torch.float32:
        # Of a few rows, the call itself costs more than the product. And in inference only: the two kernels round
        # apart, and a resumed run, whose frozen tower may meet its images in other batches, must repeat itself.
        is_large = x.numel() >= _FUSED_ROWS * x.shape[-1]
        is_wanted = is_large and torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
        return torch._C._has_mkldnn and is_wanted
    return x.dtype == torch.bfloat16 and _has_fused_bfloat16()


@cache
def _has_fused_bfloat16() -> bool:
    return torch._C._has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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
        weight: [D_out, D_in], frozen: it gets no gradient (if it asks for one, plain autograd runs instead).
        bias: [D_out] or None, frozen likewise.
        a: [R, D_in] and b: [D_out, R], usually float32. They are cast to x's type for the products; their
            gradients come back in their own type.
        scale: alpha / rank (alpha / √rank for rsLoRA). With dropout the caller folds 1 / (1 - p) into it.
        dropout_mask: bool[..., D_in], true where x is kept for the low-rank branch; None keeps all.

    Returns:
        [..., D_out] in x's type, or in autocast's. For the backward pass x, the mask and x Aᵀ ([..., R]) are kept.
    """
    if _learns(weight, bias):
        dropped = x if dropout_mask is None else x * dropout_mask
        low = F.linear(dropped, a.to(x.dtype))
        return F.linear(x, weight, bias) + F.linear(low, b.to(x.dtype)) * scale
    if _learns(x, a, b):
        out: Tensor = _LoraLinear.apply(x, weight, bias, a, b, scale, dropout_mask)  # type: ignore[no-untyped-call]
        return out
    return _lora_forward(x, weight, bias, a, b, scale, dropout_mask)[0]


def tree_conv(inputs: Tensor, previous: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise causal convolution of kernel size K over the branches of a prefix tree.

    Each row is convolved with the K-1 rows before it *on its own path*, wherever in the packed order they lie.

    Args:
        inputs: [N, D]; the last R are the rows to convolve, those before them only looked back at.
        previous: K-1 times int64[R]: where in `inputs` the row one, two, … steps back on the path is.
        weight: [D, K], taps oldest first, as a causal Conv1d holds them.
        bias: [D] or None.

    Returns:
        [R, D] in inputs' type. For the backward pass only inputs and weight are kept.
    """
    out: Tensor = _TreeConv.apply(inputs, weight, bias, *previous)  # type: ignore[no-untyped-call]
    return out


def _reduction_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rms_norm_forward(x: Tensor, weight: Tensor, eps: float, one_offset: bool) -> tuple[Tensor, Tensor]:
    wide = x.to(_reduction_dtype(x.dtype))
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


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        grad_gate = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_gate = grad * up
            torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)  # in its own memory
        if ctx.needs_input_grad[1]:
            grad_up = F.silu(gate).mul_(grad)
        return grad_gate, grad_up


class _GeGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gate, up = ctx.saved_tensors
        grad_gate = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_gate = grad * up
            torch.ops.aten.gelu_backward.grad_input(grad_gate, gate, approximate="tanh", grad_input=grad_gate)
        if ctx.needs_input_grad[1]:
            grad_up = F.gelu(gate, approximate="tanh").mul_(grad)
        return grad_gate, grad_up


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
    # Into the large product's own memory: no second [..., D_out].
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
        # The casts of A and B are small and are made again; what is not needed for a gradient is not kept. x is kept
        # as it came, which several layers share, not as autocast would have it.
        _, _, _, a_learns, b_learns, _, _ = ctx.needs_input_grad
        mask = dropout_mask if a_learns or ctx.needs_input_grad[0] else None
        ctx.save_for_backward(x if a_learns else None, weight, a, b, low if b_learns else None, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, low, mask = ctx.saved_tensors
        scale: float = ctx.scale
        dtype = grad.dtype
        grad_x = grad_a = grad_b = None
        flat = grad.reshape(-1, grad.shape[-1])  # [N, D_out]
        x_learns, _, _, a_learns, b_learns, _, _ = ctx.needs_input_grad
        if b_learns:
            grad_b = torch.mm(flat.t(), low.view(-1, low.shape[-1])).to(b.dtype).mul_(scale)
        if not (x_learns or a_learns):
            return None, None, None, None, grad_b, None, None
        grad_low = torch.mm(flat, b.to(dtype)).mul_(scale)  # [N, R]
        flat_mask = None if mask is None else mask.reshape(-1, mask.shape[-1])
        if a_learns:
            kept = x.reshape(-1, x.shape[-1]).to(dtype)
            kept = kept if flat_mask is None else kept * flat_mask
            grad_a = torch.mm(grad_low.t(), kept).to(a.dtype)
        if x_learns:
            grad_flat = torch.mm(flat, weight.to(dtype))
            if flat_mask is None:
                grad_flat.addmm_(grad_low, a.to(dtype))
            else:
                grad_flat.add_(torch.mm(grad_low, a.to(dtype)).mul_(flat_mask))
            grad_x = grad_flat.view(*grad.shape[:-1], weight.shape[1]).to(ctx.x_dtype)
        return grad_x, None, None, grad_a, grad_b, None, None


class _TreeConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, *previous: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, *previous)
        taps = weight.to(inputs.dtype).t()  # [K, D]
        num_rows = len(previous[0]) if previous else len(inputs)
        out = inputs[len(inputs) - num_rows :] * taps[-1]
        for step, rows in enumerate(previous, start=2):
            out.addcmul_(inputs.index_select(0, rows), taps[-step])
        return out if bias is None else out.add_(bias.to(inputs.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, *previous = ctx.saved_tensors
        taps = weight.to(grad.dtype).t()
        num_before = len(inputs) - len(grad)
        grad_inputs = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_inputs = torch.zeros_like(inputs)
            grad_inputs[num_before:] = grad * taps[-1]
            for step, rows in enumerate(previous, start=1):
                _add_shifted(grad_inputs, grad * taps[-1 - step], rows, num_before - step)
        if ctx.needs_input_grad[1]:
            looked_at = [inputs[num_before:]] + [inputs.index_select(0, rows) for rows in previous]
            columns = [(grad * seen).sum(0, dtype=_reduction_dtype(grad.dtype)) for seen in looked_at]
            grad_weight = torch.stack(columns[::-1], dim=1).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_inputs, grad_weight, grad_bias, *(None for _ in previous)


def _add_shifted(total: Tensor, part: Tensor, rows: Tensor, offset: int) -> None:
    """total[rows] += part, in place (overwrites part), quickly where rows[i] is offset + i, as it is along chains."""
    expected = torch.arange(offset, offset + len(rows), device=rows.device)
    off_chain = (rows != expected).nonzero().squeeze(1)
    if len(off_chain) * 4 < len(rows) and offset >= 0:
        total.index_add_(0, rows[off_chain], part[off_chain])
        part[off_chain] = 0
        total[offset : offset + len(rows)] += part
    else:
        total.index_add_(0, rows, part)
