"""A byte-level BPE tokenizer as GGUF metadata: tokens, their types, merges, and which splitting rule llama.cpp uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmtune.errors import UserError
from vlmtune.text.tokenizer import Tokenizer

# GGUF's token types (llama.h, enum llama_token_attr's older numbering).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# llama.cpp knows splitting rules by name, not by expression. The digits are what sets these two apart: in groups of up
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
    """What goes into the file, in GGUF's words."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    pre: str
    adds_bos: bool
    ids: dict[str, int]
    """bos, eos, eot, padding -> token number, those that there are."""


def read_vocabulary(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer, padded to the model's ``size``.

    Raises:
        UserError: a tokenizer that llama.cpp has no word for (not byte-level BPE, an unknown splitting rule), or
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
    found = split["pattern"].get("Regex")
    return str(found) if found is not None else None


def _named(tokenizer: Tokenizer, key: str) -> int | None:
    token = tokenizer.config.get(key)
    content = token["content"] if isinstance(token, dict) else token
    return None if content is None else tokenizer.token_id(str(content))
