"""Scaled dot-product attention, by whichever of torch's ways is fast where it runs. Called by every network file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# On the CPU, two plain matrix products against the fused kernel (`bench/README.md`, "Attention on the CPU"): in
# bfloat16 they take a third of its time forward and backward, and less than half in inference, at 700 keys as at 64.
# In float32 they win only where few keys make the fused kernel's backward pass slow. What they cost is the matrix of
# weights, which is held until the backward pass: 256 MiB at most.
_MOST_PLAIN_WEIGHTS = 2**27
_MOST_PLAIN_KEYS_FLOAT32 = 256


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + mask) v.

    Args:
        q: float[B, H, Q, d].
        k, v: float[B, H, K, d].
        mask: additive, broadcastable to float[B, H, Q, K]; a row may not be -inf throughout.

    Returns:
        float[B, H, Q, d], in v's type, or in autocast's.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if torch.is_autocast_enabled("cpu"):
        # As autocast would, but for the softmax, whose float32 copies would double the time and the memory: its
        # kernel computes in float32 inside and rounds the weights once, to what the next product takes anyway.
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v, mask = q.to(dtype), k.to(dtype), v.to(dtype), None if mask is None else mask.to(dtype)
    with torch.autocast("cpu", enabled=False):
        if not _is_plain_faster(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        B, H, Q, d = q.shape
        scores = torch.bmm((q * d**-0.5).reshape(B * H, Q, d), k.reshape(B * H, -1, d).transpose(1, 2))
        if mask is not None:
            scores.view(B, H, Q, -1).add_(mask)
        weights = scores.softmax(-1)
        return torch.bmm(weights, v.reshape(B * H, -1, d)).view(B, H, Q, d)


def _is_plain_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    num_weights = q.shape[:-1].numel() * k.shape[2]
    if q.dtype == torch.bfloat16:
        return num_weights <= _MOST_PLAIN_WEIGHTS
    is_training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return is_training and k.shape[2] <= _MOST_PLAIN_KEYS_FLOAT32
