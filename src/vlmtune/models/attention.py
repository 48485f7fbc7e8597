"""Scaled dot-product attention, with the fastest implementation for the device, and attention over a prefix tree.

`attention` is what the vision towers call; `attend` is what the decoders' layers call: it pads the packed tokens level
by level, and returns the cache that later tokens continue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlmtune.models.cache import AttentionCache, take_segments
from vlmtune.models.kernels import needs_grad
from vlmtune.models.packing import gather, pad
from vlmtune.models.plan import DecodePlan, TokenSet

# On the CPU, two plain matrix products against the fused kernel (`bench/README.md`, "Attention on the CPU"): in
# bfloat16 they take a third of its time forward and backward, and less than half in inference, at 700 keys as at 64.
# In float32 they win only where few keys make the fused kernel's backward pass slow. Their cost is the matrix of
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
        mask: additive, broadcastable to float[B, H, Q, K]; every query must see at least one key.
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


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: DecodePlan,
    tokens: TokenSet,
    cache: AttentionCache,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, AttentionCache]:
    """Attention of each token to its ancestors and itself (and to its whole prompt, where that is bidirectional).

    Args:
        q: float[R', H, d], rotated queries of ``tokens``.
        k: float[R, KV, d], rotated keys of all tokens of the tree.
        v: float[R, KV, d].
        cache: keys and values of what the first level continues.
        scale, softcap: see `attention`.
        window: positions that a token of a sliding layer sees, itself included; None for all.

    Returns:
        float[R', H * d], and the keys and values of the last level's paths.
    """
    num_heads, num_kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
    repeat = num_heads // num_kv_heads
    outputs, start = [], 0
    for number, (level, queries) in enumerate(zip(plan.levels, tokens.levels, strict=True)):
        num_segments, width = level.num_segments, level.width
        stop = start + int(level.lengths.sum())
        new, start = slice(start, stop), stop
        grown = []
        for packed, past in ((k, cache.keys), (v, cache.values)):
            padded = pad(packed[new].flatten(1), plan.key_slots[number], num_segments * width)
            padded = padded.view(num_segments, width, num_kv_heads, head_dim).transpose(1, 2)
            grown.append(torch.cat([take_segments(past, level.parent).to(padded.dtype), padded], dim=2))
        cache = AttentionCache(*grown)  # [G, KV, A + W, d] each

        num_segments, width = queries.shape
        if not width:
            continue
        padded = pad(q[queries.tokens].flatten(1), queries.slots, num_segments * width)
        # Query heads that share a key head become slots of one query: keys and values are never repeated.
        folded = padded.view(num_segments, width, num_kv_heads, repeat, head_dim).permute(0, 2, 3, 1, 4)
        mixed = attention(
            folded.reshape(num_segments, num_kv_heads, repeat * width, head_dim),
            cache.keys,
            cache.values,
            plan.mask(number, tokens, q.dtype, repeat=repeat, window=window),
            scale=scale,
            softcap=softcap,
        )
        mixed = mixed.view(num_segments, num_kv_heads, repeat, width, head_dim).permute(0, 3, 1, 2, 4)
        outputs.append(gather(mixed.reshape(num_segments * width, num_heads * head_dim), queries.slots))
    return torch.cat(outputs) if outputs else q.flatten(1), cache


def _capped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """No fused kernel caps scores. Long sequences run in blocks of queries, recomputed in the backward pass."""
    block = max(1, _MOST_PLAIN_WEIGHTS // (q.shape[0] * q.shape[1] * k.shape[2]))
    if q.shape[2] <= block:
        return _capped_block(q, k, v, mask, scale, softcap)
    out = []
    for first in range(0, q.shape[2], block):
        queries = slice(first, first + block)
        inputs = (q[:, :, queries], k, v, None if mask is None else mask[..., queries, :], scale, softcap)
        if needs_grad(q, k, v):
            out.append(checkpoint(_capped_block, *inputs, use_reentrant=False))
        else:
            out.append(_capped_block(*inputs))
    return torch.cat(out, dim=2)


def _capped_block(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    capped = torch.matmul(q * (scale / softcap), k.transpose(-1, -2)).tanh_()
    scores = capped * softcap if mask is None else torch.add(mask, capped, alpha=softcap)
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)


def _is_plain_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    num_weights = q.shape[:-1].numel() * k.shape[2]
    if q.dtype == torch.bfloat16:
        return num_weights <= _MOST_PLAIN_WEIGHTS
    return needs_grad(q, k, v) and k.shape[2] <= _MOST_PLAIN_KEYS_FLOAT32
