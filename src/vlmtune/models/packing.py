"""Operations on packed tokens, float[R, D] without padding: pad, gather, and convolve along the paths of a prefix tree.

Their backward passes are written out because every index is known to occur once: gradients are written, not
accumulated. Called by `attention.py`, `plan.py` and the decoders' short convolutions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlmtune.models.kernels import reduction_dtype


def pad(packed: Tensor, slots: Tensor | None, num_slots: int) -> Tensor:
    """float[R, D] -> float[num_slots, D], zero in empty slots; ``slots`` int64[R] are distinct, None is all."""
    return packed if slots is None else _Scatter.apply(packed, slots, num_slots)  # type: ignore[no-untyped-call]


def gather(source: Tensor, index: Tensor | None) -> Tensor:
    """float[N, D], distinct int64[R] -> float[R, D]; the source itself for None."""
    return source if index is None else _Gather.apply(source, index)  # type: ignore[no-untyped-call]


def tree_conv(inputs: Tensor, previous: list[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depthwise causal convolution of kernel size K over the branches of a prefix tree.

    Each token is convolved with the K-1 tokens before it *on its own path*, wherever in the packed order they lie.

    Args:
        inputs: [N, D]; the last R are convolved, those before them (a cache's) are only looked back at.
        previous: K-1 times int64[R]: where in `inputs` the token one, two, … steps back on the path is.
        weight: [D, K], taps oldest first, as a causal Conv1d holds them.
        bias: [D] or None.

    Returns:
        [R, D] in inputs' type. For the backward pass only inputs and weight are kept.
    """
    out: Tensor = _TreeConv.apply(inputs, weight, bias, *previous)  # type: ignore[no-untyped-call]
    return out


class _Scatter(torch.autograd.Function):
    """Packed tokens into a zeroed padded rectangle. Each slot is written once, so the gradient is a plain gather."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, slots: Tensor, num_slots: int) -> Tensor:
        ctx.save_for_backward(slots)
        return packed.new_zeros(num_slots, packed.shape[1]).index_copy_(0, slots, packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class _Gather(torch.autograd.Function):
    """The inverse of _Scatter."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.num_sources = source.shape[0]
        return source.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.num_sources, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


class _TreeConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, *previous: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, *previous)
        taps = weight.to(inputs.dtype).t()  # [K, D]
        num_tokens = len(previous[0]) if previous else len(inputs)
        out = inputs[len(inputs) - num_tokens :] * taps[-1]
        for step, index in enumerate(previous, start=2):
            out.addcmul_(inputs.index_select(0, index), taps[-step])
        return out if bias is None else out.add_(bias.to(inputs.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, *previous = ctx.saved_tensors
        taps = weight.to(grad.dtype).t()
        num_cached = len(inputs) - len(grad)
        grad_inputs = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_inputs = torch.zeros_like(inputs)
            grad_inputs[num_cached:] = grad * taps[-1]
            for step, index in enumerate(previous, start=1):
                _add_shifted(grad_inputs, grad * taps[-1 - step], index, num_cached - step)
        if ctx.needs_input_grad[1]:
            tapped = [inputs[num_cached:]] + [inputs.index_select(0, index) for index in previous]
            columns = [(grad * tap).sum(0, dtype=reduction_dtype(grad.dtype)) for tap in tapped]
            grad_weight = torch.stack(columns[::-1], dim=1).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_inputs, grad_weight, grad_bias, *(None for _ in previous)


def _add_shifted(total: Tensor, part: Tensor, index: Tensor, offset: int) -> None:
    """total[index] += part, in place (overwrites part), fast where index[i] is offset + i, as it is along chains."""
    expected = torch.arange(offset, offset + len(index), device=index.device)
    off_chain = (index != expected).nonzero().squeeze(1)
    if len(off_chain) * 4 < len(index) and offset >= 0:
        total.index_add_(0, index[off_chain], part[off_chain])
        part[off_chain] = 0
        total[offset : offset + len(index)] += part
    else:
        total.index_add_(0, index, part)
