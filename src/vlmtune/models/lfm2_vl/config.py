"""LFM2-VL's configuration: tower, decoder, connector, in every spelling of checkpoints; published sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vlmtune.errors import WeightsError
from vlmtune.models.config import ModelConfig, VlmConfig
from vlmtune.models.connectors import ConnectorShape


@dataclass(frozen=True)
class Siglip2Config(ModelConfig):
    """The tower's configuration. Field names are the checkpoint's."""

    model_type: str = "siglip2_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    num_patches: int = 256  # of the square grid that the position embeddings were trained on
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = False  # a pooling head: no VLM here reads it, so it is never built


@dataclass(frozen=True)
class Lfm2Config(ModelConfig):
    """The decoder's configuration. Field names are the checkpoint's."""

    model_type: str = "lfm2"
    vocab_size: int = 65536
    hidden_size: int = 2560
    intermediate_size: int = 12288  # before the adjustment in `feed_forward_size`
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    layer_types: tuple[str, ...] = ()  # "full_attention" or "conv", one per layer
    norm_eps: float = 1e-5
    rope_theta: float = 1_000_000.0
    conv_L_cache: int = 3  # noqa: N815  kernel size K of the short convolutions
    conv_bias: bool = False
    block_auto_adjust_ff_dim: bool = True
    block_ffn_dim_multiplier: float = 1.0
    block_multiple_of: int = 256
    max_position_embeddings: int = 128_000
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    initializer_range: float = 0.02

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads the older spellings: `full_attn_idxs`, `block_*` names, and `rope_parameters`."""
        values = dict(values)
        num_layers = values.get("num_hidden_layers", cls.num_hidden_layers)
        if values.get("layer_types") is None:
            attention = values.get("full_attn_idxs")
            attention = range(num_layers) if attention is None else attention
            values["layer_types"] = ["full_attention" if i in attention else "conv" for i in range(num_layers)]
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        if rope.get("rope_type", "default") != "default":
            raise WeightsError(f"config.json: rope_type '{rope['rope_type']}' is not supported; LFM2 uses 'default'.")
        values["rope_theta"] = float(rope.get("rope_theta") or values.get("rope_theta") or cls.rope_theta)
        values["block_ffn_dim_multiplier"] = float(values.get("block_ffn_dim_multiplier") or 1.0)
        unknown = set(values["layer_types"]) - {"full_attention", "conv"}
        if unknown or len(values["layer_types"]) != num_layers:
            raise WeightsError(
                f"config.json: layer_types {values['layer_types']} must name 'full_attention' or 'conv' for each of "
                f"{num_layers} layers."
            )
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["rope_parameters"] = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
        values["layer_types"] = list(self.layer_types)
        values["full_attn_idxs"] = [i for i, kind in enumerate(self.layer_types) if kind == "full_attention"]
        return values | {"tie_word_embeddings": True}

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def feed_forward_size(self) -> int:
        """Width of the MLP: two thirds of `intermediate_size`, rounded up, unless the checkpoint says exactly."""
        if not self.block_auto_adjust_ff_dim:
            return self.intermediate_size
        size = int(self.block_ffn_dim_multiplier * int(2 * self.intermediate_size / 3))
        return -(-size // self.block_multiple_of) * self.block_multiple_of


@dataclass(frozen=True)
class Lfm2VlConfig(VlmConfig):
    """The whole model's configuration. Field names are the checkpoint's."""

    vision_config: Siglip2Config
    text_config: Lfm2Config
    model_type: str = "lfm2_vl"
    image_token_id: int = 396
    projector_hidden_act: str = "gelu"
    projector_hidden_size: int = 2560
    projector_bias: bool = True
    projector_use_layernorm: bool = True
    downsample_factor: int = 2  # side of the square of patches that becomes one image token

    architecture: ClassVar[str] = "Lfm2VlForConditionalGeneration"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads the older spelling `model_type: lfm2-vl`, and `image_token_index`."""
        values = {**values, "model_type": "lfm2_vl"}
        if "image_token_index" in values:
            values.setdefault("image_token_id", values["image_token_index"])
        return super().from_dict(values)

    @property
    def image_placeholder(self) -> int:
        return self.image_token_id

    @property
    def connector(self) -> ConnectorShape:
        return ConnectorShape(
            trunk="mlp",
            channels=self.vision_config.hidden_size,
            width=self.text_config.hidden_size,
            factor=self.downsample_factor,
            hidden_size=self.projector_hidden_size,
            bias=self.projector_bias,
            layer_norm=self.projector_use_layernorm,
        )


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


PUBLISHED: Mapping[str, dict[str, Any]] = {
    "LiquidAI/LFM2-VL-450M": _lfm2_vl(_LFM2_350M, _SIGLIP2_BASE, 2560),
    "LiquidAI/LFM2-VL-1.6B": _lfm2_vl(_LFM2_1_2B, _SIGLIP2_SO400M, 2560),
    "LiquidAI/LFM2-VL-3B": _lfm2_vl(_LFM2_2_6B, _SIGLIP2_SO400M, 2048),
}
"""Hub id -> the entries of its config.json that determine sizes."""
