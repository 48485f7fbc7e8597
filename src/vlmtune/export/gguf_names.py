"""How GGUF spells LFM2-VL: the names of its tensors, and its tokenizer as metadata.

In: our parameters' names, a tokenizer. Out: theirs, which the writer and the reader use in opposite directions.
llama.cpp takes two files: the language model (architecture `lfm2`) and the projector file "mmproj" (architecture
`clip`, projector `lfm2`) with vision tower and connector. The names are those that its loader asks for
(`src/llama-arch.cpp`, `tools/mtmd/clip-impl.h`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmtune.errors import UserError
from vlmtune.text.tokenizer import Tokenizer

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
            theirs = table[pattern].format(layer[1] if layer else "")
            return Place(table is PROJECTOR, f"{theirs}.{leaf}")
    raise KeyError(name)


# ── the tokenizer ───────────────────────────────────────────────────────────────────────────────────────────────────

# GGUF's token types (llama.h, enum llama_token_attr's older numbering).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# llama.cpp knows splitting rules by name, not by expression. The two differ in digits: in groups of up
# to three (Llama 3, LFM2), or one by one (Qwen 2, builtin:tiny).
_THREES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_ONES = _THREES.replace(r"\p{N}{1,3}", r"\p{N}")

# (expression, whether a whole word in the vocabulary is taken without asking the merges) -> llama.cpp's name.
PRE_TOKENIZERS: Mapping[tuple[str, bool], str] = {
    (_THREES, True): "lfm2",
    (_THREES, False): "smaug-bpe",
    (_ONES, False): "qwen2",
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's vocabulary in GGUF's terms."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    adds_bos: bool
    ids: dict[str, int]
    """bos, eos, eot, padding -> token number, where present."""


def read_vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer, padded to the model's ``size``.

    Raises:
        UserError: a tokenizer that llama.cpp cannot express (not byte-level BPE, an unknown splitting rule), or
            one with more tokens than the model.
    """
    description = json.loads(tokenizer.backend.to_str())
    model = description["model"]
    if model["type"] != "BPE" or description["normalizer"] is not None:
        raise UserError(
            f"{tokenizer.origin}: GGUF can hold byte-level BPE without a normalizer; this tokenizer is "
            f"{model['type']} with normalizer {description['normalizer']}."
        )
    expression = _expression(description["pre_tokenizer"])
    key = (expression or "", bool(model.get("ignore_merges")))
    if key not in PRE_TOKENIZERS:
        raise UserError(
            f"{tokenizer.origin}: llama.cpp has no name for this tokenizer's splitting rule {expression!r} "
            f"(ignore_merges {key[1]}). Known: {', '.join(sorted(PRE_TOKENIZERS.values()))}."
        )
    if len(tokenizer) > size:
        raise UserError(f"{tokenizer.origin}: {len(tokenizer)} tokens, but the model has {size} rows for them.")
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, NORMAL
    for added in description["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    named = {key: _named(tokenizer, f"{key}_token") for key in ("bos", "eos", "pad")}
    ids = {key: number for key, number in named.items() if number is not None}
    if tokenizer.end_id != ids.get("eos"):
        ids["eot"] = tokenizer.end_id
    first = tokenizer.backend.encode("a", add_special_tokens=True).ids[0]
    return Vocabulary(tokens, types, merges, PRE_TOKENIZERS[key], first == ids.get("bos"), ids)


def _expression(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The one regular expression of `Sequence[Split, ByteLevel]`; None for anything else."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"]:
        return None
    split, level = steps
    if level.get("add_prefix_space") or level.get("use_regex") or split.get("behavior") != "Isolated":
        return None
    pattern = split["pattern"].get("Regex")
    return str(pattern) if pattern is not None else None


def _named(tokenizer: Tokenizer, key: str) -> int | None:
    token = tokenizer.config.get(key)
    content = token["content"] if isinstance(token, dict) else token
    return None if content is None else tokenizer.token_id(str(content))
