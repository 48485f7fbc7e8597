"""How GGUF spells the tensors of LFM2-VL: the tables that the writer follows one way and the reader the other.

llama.cpp takes two files: the language model (architecture `lfm2`) and the projector file "mmproj" (architecture
`clip`, projector `lfm2`) with vision tower and connector. The names are those that its loader asks for
(`src/llama-arch.cpp`, `tools/mtmd/clip-impl.h`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LAYER = r"(\d+)"

# Our parameter's name (without .weight or .bias) -> GGUF's; the layer's number goes where {} stands.
LANGUAGE_MODEL: Mapping[str, str] = {
    "model.language_model.embed_tokens": "token_embd",
    "model.language_model.embedding_norm": "token_embd_norm",
    "model.language_model.layers.{}.operator_norm": "blk.{}.attn_norm",
    "model.language_model.layers.{}.ffn_norm": "blk.{}.ffn_norm",
    "model.language_model.layers.{}.feed_forward.w1": "blk.{}.ffn_gate",
    "model.language_model.layers.{}.feed_forward.w2": "blk.{}.ffn_down",
    "model.language_model.layers.{}.feed_forward.w3": "blk.{}.ffn_up",
    "model.language_model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.language_model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.language_model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.language_model.layers.{}.self_attn.out_proj": "blk.{}.attn_output",
    "model.language_model.layers.{}.self_attn.q_layernorm": "blk.{}.attn_q_norm",
    "model.language_model.layers.{}.self_attn.k_layernorm": "blk.{}.attn_k_norm",
    "model.language_model.layers.{}.conv.conv": "blk.{}.shortconv.conv",
    "model.language_model.layers.{}.conv.in_proj": "blk.{}.shortconv.in_proj",
    "model.language_model.layers.{}.conv.out_proj": "blk.{}.shortconv.out_proj",
}

PROJECTOR: Mapping[str, str] = {
    "model.vision_tower.embeddings.patch_embedding": "v.patch_embd",
    "model.vision_tower.embeddings.position_embedding": "v.position_embd",
    "model.vision_tower.encoder.layers.{}.layer_norm1": "v.blk.{}.ln1",
    "model.vision_tower.encoder.layers.{}.layer_norm2": "v.blk.{}.ln2",
    "model.vision_tower.encoder.layers.{}.self_attn.q_proj": "v.blk.{}.attn_q",
    "model.vision_tower.encoder.layers.{}.self_attn.k_proj": "v.blk.{}.attn_k",
    "model.vision_tower.encoder.layers.{}.self_attn.v_proj": "v.blk.{}.attn_v",
    "model.vision_tower.encoder.layers.{}.self_attn.out_proj": "v.blk.{}.attn_out",
    "model.vision_tower.encoder.layers.{}.mlp.fc1": "v.blk.{}.ffn_up",
    "model.vision_tower.encoder.layers.{}.mlp.fc2": "v.blk.{}.ffn_down",
    "model.vision_tower.post_layernorm": "v.post_ln",
    "model.multi_modal_projector.layer_norm": "mm.input_norm",
    "model.multi_modal_projector.linear_1": "mm.1",
    "model.multi_modal_projector.linear_2": "mm.2",
}

# Kept in float32 whatever the file's type, because llama.cpp's operators on them take nothing else: the depthwise
# kernel of ggml_ssm_conv, and the position table that ggml_interpolate resizes. Vectors are float32 always.
ALWAYS_FLOAT32 = frozenset({"shortconv.conv", "v.position_embd"})

# An image operator (ggml_conv_2d) reads it: float16 or float32, never in blocks.
PATCH_EMBEDDING = "v.patch_embd"
TOKEN_EMBEDDING = "token_embd"


@dataclass(frozen=True)
class Place:
    """Where one of our parameters goes: the file ("language model" or "projector") and its name there."""

    is_projector: bool
    name: str

    @property
    def stem(self) -> str:
        """The name without layer and leaf: `blk.3.attn_q.weight` -> `attn_q`, `v.patch_embd.weight` -> itself."""
        return re.sub(r"^(v\.)?blk\.\d+\.", "", self.name).removesuffix(".weight").removesuffix(".bias")


def gguf_place(name: str) -> Place:
    """The place of one of our parameters. Raises KeyError for one that GGUF has no name for."""
    stem, _, leaf = name.rpartition(".")
    layer = re.search(rf"\.layers\.{_LAYER}\.", stem)
    pattern = re.sub(rf"\.layers\.{_LAYER}\.", ".layers.{}.", stem)
    for table in (LANGUAGE_MODEL, PROJECTOR):
        if pattern in table:
            found = table[pattern].format(layer[1] if layer else "")
            return Place(table is PROJECTOR, f"{found}.{leaf}")
    raise KeyError(name)
