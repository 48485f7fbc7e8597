"""PaliGemma's configuration: tower and either decoder, in every spelling of checkpoints; published sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vlmtune.errors import WeightsError
from vlmtune.models.config import ModelConfig, VlmConfig
from vlmtune.models.connectors import ConnectorShape


@dataclass(frozen=True)
class SiglipConfig(ModelConfig):
    """The tower's configuration. Field names and defaults are the checkpoint's."""

    model_type: str = "siglip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224  # pixels per side
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    vision_use_head: bool = False  # a pooling head: no VLM here reads it, so it is never built

    @property
    def side(self) -> int:
        """Patches per side; pixels that do not fill a patch are dropped, as by a strided convolution."""
        return self.image_size // self.patch_size


# What a Gemma 2 checkpoint means by a field that it leaves out, where Gemma means something else.
_GEMMA2: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}


@dataclass(frozen=True)
class GemmaConfig(ModelConfig):
    """The decoder's configuration. Field names are the checkpoint's; fields that are None exist in Gemma 2 only."""

    model_type: str = "gemma"  # or "gemma2"
    vocab_size: int = 256_000
    hidden_size: int = 3072
    intermediate_size: int = 24_576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 256  # independent: heads together may be wider than the model
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    attention_bias: bool = False
    max_position_embeddings: int = 8192
    bos_token_id: int = 2
    eos_token_id: int | tuple[int, ...] = 1
    pad_token_id: int = 0
    query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: head_dim
    attn_logit_softcapping: float | None = None  # scores stay within ± this
    final_logit_softcapping: float | None = None  # logits likewise
    sliding_window: int | None = None  # positions that a "sliding_attention" layer sees
    layer_types: tuple[str, ...] = ()  # "full_attention" or "sliding_attention", one per layer

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads `rope_parameters`. Raises WeightsError for what this network does not compute."""
        is_gemma2 = values.get("model_type") == "gemma2"
        # A null is a file's way to leave a field out, except where it switches a cap off.
        values = {key: value for key, value in values.items() if value is not None or key.endswith("softcapping")}
        values = {**(_GEMMA2 if is_gemma2 else {}), **values}
        num_layers = values.get("num_hidden_layers", cls.num_hidden_layers)
        kinds = ("sliding_attention", "full_attention") if is_gemma2 else ("full_attention",)
        values.setdefault("layer_types", [kinds[index % len(kinds)] for index in range(num_layers)])
        rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
        values["rope_theta"] = float(rope.get("rope_theta") or values.get("rope_theta") or cls.rope_theta)
        if problems := list(_unsupported(values, num_layers, rope.get("rope_type", "default"))):
            raise WeightsError("config.json: not supported in a Gemma decoder: " + "; ".join(problems))
        return super().from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        caps = ("attn_logit_softcapping", "final_logit_softcapping") if self.is_gemma2 else ()
        values = {key: value for key, value in super().to_dict().items() if value is not None or key in caps}
        values["rope_parameters"] = {"rope_theta": values.pop("rope_theta"), "rope_type": "default"}
        values["layer_types"] = list(self.layer_types)
        if not self.is_gemma2:
            del values["layer_types"]  # transformers' Gemma knows one type
        activation = "hidden_activation" if self.is_gemma2 else "hidden_act"
        return values | {activation: "gelu_pytorch_tanh", "tie_word_embeddings": True}

    @property
    def is_gemma2(self) -> bool:
        """Whether this is Gemma 2."""
        return self.model_type == "gemma2"

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by."""
        return 1.0 / math.sqrt(self.query_pre_attn_scalar or self.head_dim)


def _unsupported(values: dict[str, Any], num_layers: int, rope_type: str) -> Iterator[str]:
    """What a configuration requires that is not implemented here."""
    if rope_type != "default":
        yield f"rope_type '{rope_type}' (known: default)"
    if len(values["layer_types"]) != num_layers:
        yield f"{len(values['layer_types'])} layer_types for {num_layers} layers"
    for kind in sorted(set(values["layer_types"]) - {"full_attention", "sliding_attention"}):
        yield f"layer type '{kind}' (known: full_attention, sliding_attention)"
    for key in ("hidden_act", "hidden_activation"):
        # The first files say "gelu" and mean its tanh approximation, as transformers knows.
        if values.get(key, "gelu") not in ("gelu", "gelu_pytorch_tanh"):
            yield f"{key} '{values[key]}' (known: gelu_pytorch_tanh)"


@dataclass(frozen=True)
class PaliGemmaConfig(VlmConfig):
    """The whole model's configuration. Field names are the checkpoint's."""

    vision_config: SiglipConfig
    text_config: GemmaConfig
    model_type: str = "paligemma"  # of both generations
    image_token_index: int = 256_000
    projection_dim: int = 2048  # the decoder's width

    architecture: ClassVar[str] = "PaliGemmaForConditionalGeneration"
    bidirectional_prompt: ClassVar[bool] = True

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Also reads `image_token_id`. Raises WeightsError for a decoder that is not Gemma, or of another width."""
        values = {"vision_config": {}, "text_config": {}, **values}
        if "image_token_id" in values:
            values.setdefault("image_token_index", values["image_token_id"])
        for part, known in (("text_config", ("gemma", "gemma2")), ("vision_config", ("siglip_vision_model",))):
            kind = values[part].get("model_type", known[0])
            if kind not in known:
                raise WeightsError(f"config.json: {part}.model_type is '{kind}'; PaliGemma's is {' or '.join(known)}.")
        config = super().from_dict(values)
        if config.projection_dim != config.text_config.hidden_size:
            raise WeightsError(
                f"config.json: projection_dim {config.projection_dim} is not the decoder's hidden_size "
                f"{config.text_config.hidden_size}. Is config.json that of these weights?"
            )
        return config

    @property
    def image_placeholder(self) -> int:
        return self.image_token_index

    @property
    def connector(self) -> ConnectorShape:
        # Its outputs enter as they are, beside embeddings times √D: no scale of their own. (transformers once divided
        # them by √D, for its decoder to multiply all inputs by it.)
        return ConnectorShape("linear", channels=self.vision_config.hidden_size, width=self.projection_dim)


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


PUBLISHED: Mapping[str, dict[str, Any]] = {
    **{f"google/paligemma-3b-{kind}-{px}": _paligemma(_GEMMA_2B, px) for kind in ("pt", "mix") for px in (224, 448)},
    "google/paligemma-3b-pt-896": _paligemma(_GEMMA_2B, 896),
    **{f"google/paligemma2-3b-{kind}-{px}": _paligemma(_GEMMA2_2B, px) for kind in ("pt", "mix") for px in (224, 448)},
    "google/paligemma2-3b-pt-896": _paligemma(_GEMMA2_2B, 896),
}
"""Hub id -> the entries of its config.json that determine sizes."""
