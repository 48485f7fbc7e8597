"""What the decoders' attention layers share: rotary positions, and attention over a prefix tree, level by level.

In: queries, keys and values of packed rows. Out: mixed values, and the cache that later rows continue. Called by
`lfm2.py` and `gemma.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlmtune.models.attention import attention
from vlmtune.models.cache import AttentionCache, take_segments
from vlmtune.models.plan import DecodePlan, TokenSet, gather_rows, pad


def rope_angles(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (arXiv 2104.09864): float[R, 1, d] each.

    Always computed in fp32: rounding the frequencies to bfloat16 moves late positions by whole radians.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angle = positions[:, None].float() * (1.0 / theta**exponent)
    angle = torch.cat([angle, angle], dim=-1)[:, None]  # [R, 1, d]: the same for every head
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate halves (not neighboring pairs) of each head: float[R, H, d]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tree: DecodePlan,
    queries: TokenSet,
    cache: AttentionCache,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, AttentionCache]:
    """Attention of each row to its ancestors and itself (and to its whole prompt, where that is bidirectional).

    Args:
        q: float[R', H, d], queries of the rows in ``queries``.
        k: float[R, KV, d], rotated keys of all rows of the tree.
        v: float[R, KV, d].
        cache: keys and values of what the first level hangs on.
        scale, softcap: see `attention`.
        window: how many positions back a row of a sliding layer sees, itself counted; None sees all.

    Returns:
        float[R', H * d], and the keys and values of the last level's paths.
    """
    num_heads, num_kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
    share = num_heads // num_kv_heads
    outputs, start = [], 0
    for level, (rows, new) in enumerate(zip(tree.levels, queries.levels, strict=True)):
        shape = (rows.num_segments, rows.width, num_kv_heads, head_dim)
        count = int(rows.lengths.sum())
        own = slice(start, start + count)
        start += count
        grown = []
        for packed, before in ((k, cache.keys), (v, cache.values)):
            padded = pad(packed[own].flatten(1), tree.key_cells[level], shape[0] * shape[1])
            past = take_segments(before, rows.parent).to(padded.dtype)
            grown.append(torch.cat([past, padded.view(shape).transpose(1, 2)], dim=2))  # [G, KV, A + W, d]
        cache = AttentionCache(*grown)

        num_segments, width = new.shape
        if not width:
            continue
        padded = pad(q[new.rows].flatten(1), new.cells, num_segments * width)
        # Query heads that share a key head become rows of one query: keys and values are never repeated.
        folded = padded.view(num_segments, width, num_kv_heads, share, head_dim).permute(0, 2, 3, 1, 4)
        mixed = attention(
            folded.reshape(num_segments, num_kv_heads, share * width, head_dim),
            cache.keys,
            cache.values,
            tree.mask(level, queries, q.dtype, share, window),
            scale=scale,
            softcap=softcap,
        )
        mixed = mixed.view(num_segments, num_kv_heads, share, width, head_dim).permute(0, 3, 1, 2, 4)
        outputs.append(gather_rows(mixed.reshape(num_segments * width, num_heads * head_dim), new.cells))
    return torch.cat(outputs), cache
