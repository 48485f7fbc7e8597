"""Matrix products of linear layers, by whichever of torch's two CPU libraries is faster.

In: what a linear layer holds and its input. Out: its output. Called by `layers.Linear` only. torch multiplies by MKL;
oneDNN is reached through the operator that torch's own compiler emits, which also applies bias and GELU inside the
product. The private names of torch that this needs are used nowhere else.

Which is taken follows from the processor (`bench/products.py` measures it): in float32 oneDNN with AVX-512, where MKL
runs at half its rate on AMD's processors, and MKL with AVX2 alone. It is a rule rather than a measurement at run time
because the two round apart, and a rerun must give the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.models.kernels import needs_grad

Gelu = Literal["none", "tanh"]
"""torch's names for the exact GELU and its approximation."""

# Below this many tokens, oneDNN's call costs more than it gains in float32.
_FUSED_TOKENS = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: Gelu | None = None) -> Tensor:
    """x Wᵀ + bias, or its GELU.

    On the CPU, where nothing needs a gradient (a frozen tower in training too), bfloat16 products apply bias and GELU
    inside: on its own a bias costs a tenth of the product and a GELU a third of it. There the product is not rounded
    before the GELU. In float32 the choice of library holds in inference mode only: training must repeat itself bit for
    bit, also when a resumed run's frozen tower meets its images in other batches.

    Args:
        x: [..., D_in], of any device.
        weight: [D_out, D_in].
        bias: [D_out] or None.
        gelu: which GELU follows.

    Returns:
        [..., D_out].
    """
    is_plain = x.device.type != "cpu" or x.dtype != weight.dtype or needs_grad(x, weight, bias)
    if is_plain or not is_onednn_faster(x):
        out = F.linear(x, weight, bias)
        return out if gelu is None else F.gelu(out, approximate=gelu)
    return onednn_linear(x, weight, bias, gelu)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: Gelu | None = None) -> Tensor:
    """As `linear`, by oneDNN: on the CPU, without gradients, x and weight of one type that oneDNN supports there."""
    after, how = ("none", "") if gelu is None else ("gelu", gelu)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], how)
    return out


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN, and its products of this type run on this processor."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_onednn_faster(x: Tensor) -> bool:
    """Whether a product with x that needs no gradient goes to oneDNN, here and in the present mode."""
    if not has_onednn(x.dtype):
        return False
    if x.dtype == torch.bfloat16:
        return True
    if not torch.is_inference_mode_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    return x.numel() >= _FUSED_TOKENS * x.shape[-1] and _prefers_onednn_in_float32()


@cache
def _prefers_onednn_in_float32() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"
