"""Shapes of public checkpoints: what their config.json says as far as it decides sizes.

`estimate` reads them where a checkpoint is not at hand, and the benchmarks and tests build models of real size from
them. Opening a model never does: its own file decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SIGLIP2_BASE = {
    "model_type": "siglip2_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_patches": 256,
    "patch_size": 16,
}
_SIGLIP2_SO400M = _SIGLIP2_BASE | {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
_LFM2_350M = {
    "model_type": "lfm2",
    "vocab_size": 65_536,
    "hidden_size": 1024,
    "intermediate_size": 6656,
    "block_auto_adjust_ff_dim": True,
    "block_multiple_of": 256,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
}
_LFM2_1_2B = _LFM2_350M | {"hidden_size": 2048, "intermediate_size": 12_288, "num_attention_heads": 32}
_LFM2_2_6B = _LFM2_1_2B | {
    "num_hidden_layers": 30,
    "intermediate_size": 10_752,
    "block_auto_adjust_ff_dim": False,
    "full_attn_idxs": [2, 6, 9, 12, 15, 18, 22, 26],
}


def _lfm2_vl(text: dict[str, Any], vision: dict[str, Any], projector: int) -> dict[str, Any]:
    return {
        "model_type": "lfm2_vl",
        "image_token_id": 396,
        "projector_hidden_size": projector,
        "downsample_factor": 2,
        "text_config": text,
        "vision_config": vision,
    }


_PATCH = 14
_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": _PATCH,
}
_GEMMA_2B = {
    "model_type": "gemma",
    "vocab_size": 257_216,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
}
_GEMMA2_2B = _GEMMA_2B | {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def _paligemma(text: dict[str, Any], pixels: int) -> dict[str, Any]:
    tokens = (pixels // _PATCH) ** 2
    return {
        "model_type": "paligemma",
        "hidden_size": 2048,
        "image_token_index": 257_152,
        "projection_dim": text["hidden_size"],
        "text_config": text | {"num_image_tokens": tokens},
        "vision_config": _SIGLIP_SO400M
        | {"image_size": pixels, "projection_dim": text["hidden_size"], "num_image_tokens": tokens},
    }


KNOWN_CONFIGS: Mapping[str, dict[str, Any]] = {
    "LiquidAI/LFM2-VL-450M": _lfm2_vl(_LFM2_350M, _SIGLIP2_BASE, 2560),
    "LiquidAI/LFM2-VL-1.6B": _lfm2_vl(_LFM2_1_2B, _SIGLIP2_SO400M, 2560),
    "LiquidAI/LFM2-VL-3B": _lfm2_vl(_LFM2_2_6B, _SIGLIP2_SO400M, 2048),
    **{f"google/paligemma-3b-{kind}-{px}": _paligemma(_GEMMA_2B, px) for kind in ("pt", "mix") for px in (224, 448)},
    "google/paligemma-3b-pt-896": _paligemma(_GEMMA_2B, 896),
    **{f"google/paligemma2-3b-{kind}-{px}": _paligemma(_GEMMA2_2B, px) for kind in ("pt", "mix") for px in (224, 448)},
    "google/paligemma2-3b-pt-896": _paligemma(_GEMMA2_2B, 896),
}
"""Hub id -> config."""
