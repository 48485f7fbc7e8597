"""Scaled dot-product attention, by whichever of torch's ways is fast where it runs. Called by every network file."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# On the CPU the fused kernel's backward pass is slow: with 64 keys it took half of a training step, and two plain
# matrix products half of that. It pays (in memory above all) once the matrix of weights is large.
_MOST_PLAIN_KEYS = 256


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + mask) v.

    Args:
        q: float[B, H, Q, d].
        k, v: float[B, H, K, d].
        mask: additive, broadcastable to float[B, H, Q, K]; a row may not be -inf throughout.

    Returns:
        float[B, H, Q, d].
    """
    is_training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not is_training or q.device.type != "cpu" or k.shape[2] > _MOST_PLAIN_KEYS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    B, H, Q, d = q.shape
    scores = torch.bmm((q * d**-0.5).reshape(B * H, Q, d), k.reshape(B * H, -1, d).transpose(1, 2))
    if mask is not None:
        scores = (scores.view(B, H, Q, -1) + mask).view(B * H, Q, -1)
    # The softmax runs in fp32 under autocast; its weights go back to what the values are.
    weights = scores.softmax(-1).to(v.dtype)
    return torch.bmm(weights, v.reshape(B * H, -1, d)).view(B, H, Q, d)
