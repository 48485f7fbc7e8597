"""Which layers a role or a part means in each family: data, read by `lora.py`. A new family adds a row here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Anatomy:
    """A family's layers by what they do.

    Attributes:
        towers: shown name -> prefix of the modules in it.
        roles: role -> regular expression that fully matches names of linear layers.
        parts: part -> modules that are trained whole. They are modules (or lists of modules), so that PEFT's
            `modules_to_save` can express them.
        tied: the output head's weight -> the embedding that it is, in files that hold both.
    """

    towers: Mapping[str, str]
    roles: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]
    tied: Mapping[str, str]


# Both families call towers, connectors and embeddings by the same names.
_TOWERS = {
    "vision tower": "model.vision_tower",
    "connector": "model.multi_modal_projector",
    "decoder": "model.language_model",
}
_VISION_ROLES = {
    "vision_attention": r"model\.vision_tower\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",
    "vision_mlp": r"model\.vision_tower\.encoder\.layers\.\d+\.mlp\.fc[12]",
}
_VISION = (
    # Not the tower as one module: files may hold a pooling head in it, which nothing reads and nothing saves.
    "model.vision_tower.embeddings",
    "model.vision_tower.encoder",
    "model.vision_tower.post_layernorm",
)
_CONNECTOR = ("model.multi_modal_projector",)
_EMBEDDINGS = ("model.language_model.embed_tokens",)
_TIED = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

_LFM2_VL_DECODER = ("model.language_model.layers", "model.language_model.embedding_norm")
_PALIGEMMA_DECODER = ("model.language_model.layers", "model.language_model.norm")

ANATOMIES: Mapping[str, Anatomy] = {
    "lfm2_vl": Anatomy(
        towers=_TOWERS,
        roles={
            "attention": r"model\.language_model\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",
            "mlp": r"model\.language_model\.layers\.\d+\.feed_forward\.w[123]",
            "conv": r"model\.language_model\.layers\.\d+\.conv\.(in|out)_proj",
            "connector": r"model\.multi_modal_projector\.linear_[12]",
            **_VISION_ROLES,
        },
        parts={
            "connector": _CONNECTOR,
            "vision_tower": _VISION,
            "embeddings": _EMBEDDINGS,
            "language_model": _LFM2_VL_DECODER,
            "everything": (*_VISION, *_CONNECTOR, *_EMBEDDINGS, *_LFM2_VL_DECODER),
        },
        tied=_TIED,
    ),
    "paligemma": Anatomy(
        towers=_TOWERS,
        roles={
            "attention": r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj",
            "mlp": r"model\.language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj",
            "connector": r"model\.multi_modal_projector\.linear",
            **_VISION_ROLES,
        },
        parts={
            "connector": _CONNECTOR,
            "vision_tower": _VISION,
            "embeddings": _EMBEDDINGS,
            "language_model": _PALIGEMMA_DECODER,
            "everything": (*_VISION, *_CONNECTOR, *_EMBEDDINGS, *_PALIGEMMA_DECODER),
        },
        tied=_TIED,
    ),
}
