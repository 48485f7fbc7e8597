"""Complete PaliGemma folders of both generations, small enough for any test: random weights, a tokenizer in Gemma's
manner with <image>, <loc…> and <seg…>, image settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from vlmtune.models.paligemma import PaliGemma
from vlmtune.models.paligemma.config import PaliGemmaConfig
from vlmtune.models.paligemma.images import PaliGemmaImageProcessor, PaliGemmaImageSettings
from vlmtune.models.weights import save_hf
from vlmtune.text.formats import PALIGEMMA
from vlmtune.text.tokenizer import Tokenizer

TEXTS = [
    "answer en what does the picture show?",
    "answer en what color is the square? red green blue yellow",
    "zero one two three four five six seven eight nine",
    "detect cat ; caption en a dog and a cat, a sea lion",
    "yes no maybe\nline two\n\nline three",
]
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def gemma_tokenizer(texts: Iterable[str] = TEXTS) -> Tokenizer:
    """Byte-fallback BPE over "▁" for spaces, as Gemma's tokenizer.json has it; coordinates are not special tokens."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    backend.train_from_iterator(list(texts) * 20, trainer)
    # The trainer marks all of those as special tokens; rebuilt from its vocabulary, only the right ones are.
    trained = tokenizers.Tokenizer.from_str(backend.to_str())
    state = json.loads(trained.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    rebuilt = tokenizers.Tokenizer.from_str(json.dumps(state))
    rebuilt.add_tokens(list(PALIGEMMA.whole_tokens))
    rebuilt.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "extra_special_tokens": {"image_token": "<image>"},
    }
    assert PALIGEMMA.template is not None
    return Tokenizer(rebuilt, config, PALIGEMMA.template, "tiny tokenizer", PALIGEMMA)


def config_for(tokenizer: Tokenizer, generation: Literal[1, 2], side: int = 4, patch: int = 4) -> dict[str, Any]:
    """config.json of a model that this tokenizer belongs to."""
    text: dict[str, Any] = {
        "model_type": "gemma",
        "vocab_size": len(tokenizer) + 3,  # the hub's tables are a little longer than its vocabulary, too
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    if generation == 2:
        text |= {"model_type": "gemma2", "num_key_value_heads": 2, "query_pre_attn_scalar": 16, "sliding_window": 8}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "patch_size": patch,
        "image_size": side * patch,
        "vision_use_head": False,
    }
    return {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "projection_dim": 32,
        "hidden_size": 32,
        "image_token_index": tokenizer.image_token_id,
    }


def write_tiny_paligemma(folder: Path, generation: Literal[1, 2], seed: int = 0, side: int = 4) -> Path:
    """Save a random model as the hub would hold it; returns the folder."""
    tokenizer = gemma_tokenizer()
    torch.manual_seed(seed)
    model = PaliGemma(PaliGemmaConfig.from_dict(config_for(tokenizer, generation, side))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.02))
        for name, parameter in model.named_parameters():
            if "layer_norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    settings = PaliGemmaImageSettings(size=side * 4, image_seq_length=side**2)
    save_hf(folder, model, model.config_dict(), tokenizer=tokenizer, processor=PaliGemmaImageProcessor(settings))
    return folder
