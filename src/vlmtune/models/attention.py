"""Scaled dot-product attention, by whichever of torch's ways is fast where it runs. Called by every network file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# On the CPU, two plain matrix products against the fused kernel (`bench/README.md`, "Attention on the CPU"): in
# bfloat16 they take a third of its time forward and backward, and less than half in inference, at 700 keys as at 64.
# In float32 they win only where few keys make the fused kernel's backward pass slow. What they cost is the matrix of
# weights, which is held until the backward pass: 256 MiB at most.
_MOST_PLAIN_WEIGHTS = 2**27
_MOST_PLAIN_KEYS_FLOAT32 = 256


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + mask) v.

    Args:
        q: float[B, H, Q, d].
        k, v: float[B, H, K, d].
        mask: additive, broadcastable to float[B, H, Q, K]; a row may not be -inf throughout.
        scale: 1 / √d by default.
        softcap: scores s become softcap · tanh(s / softcap) before the mask (Gemma 2, arXiv 2408.00118, section 2).

    Returns:
        float[B, H, Q, d], in v's type, or in autocast's.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if q.device.type != "cpu":
        if softcap is not None:
            return _capped_attention(q, k, v, mask, scale, softcap)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if torch.is_autocast_enabled("cpu"):
        # As autocast would, but for the softmax, whose float32 copies would double the time and the memory: its
        # kernel computes in float32 inside and rounds the weights once, to what the next product takes anyway.
        dtype = torch.get_autocast_dtype("cpu")
        q, k, v, mask = q.to(dtype), k.to(dtype), v.to(dtype), None if mask is None else mask.to(dtype)
    with torch.autocast("cpu", enabled=False):
        if softcap is not None:
            return _capped_attention(q, k, v, mask, scale, softcap)
        if not _is_plain_faster(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        B, H, Q, d = q.shape
        scores = torch.bmm((q * scale).reshape(B * H, Q, d), k.reshape(B * H, -1, d).transpose(1, 2))
        if mask is not None:
            scores.view(B, H, Q, -1).add_(mask)
        weights = scores.softmax(-1)
        return torch.bmm(weights, v.reshape(B * H, -1, d)).view(B, H, Q, d)


def _capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """No fused kernel caps scores. A long sequence goes by blocks of queries, computed again in the backward pass."""
    block = max(1, _MOST_PLAIN_WEIGHTS // (q.shape[0] * q.shape[1] * k.shape[2]))
    if q.shape[2] <= block:
        return _capped_block(q, k, v, mask, scale, softcap)
    needs_grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    out = []
    for first in range(0, q.shape[2], block):
        rows = slice(first, first + block)
        own = (q[:, :, rows], k, v, None if mask is None else mask[..., rows, :], scale, softcap)
        out.append(checkpoint(_capped_block, *own, use_reentrant=False) if needs_grad else _capped_block(*own))
    return torch.cat(out, dim=2)


def _capped_block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    capped = torch.matmul(q * (scale / softcap), k.transpose(-1, -2)).tanh_()
    scores = capped * softcap if mask is None else torch.add(mask, capped, alpha=softcap)
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def _is_plain_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    num_weights = q.shape[:-1].numel() * k.shape[2]
    if q.dtype == torch.bfloat16:
        return num_weights <= _MOST_PLAIN_WEIGHTS
    is_training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return is_training and k.shape[2] <= _MOST_PLAIN_KEYS_FLOAT32
