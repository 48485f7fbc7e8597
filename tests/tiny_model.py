"""A complete model folder small enough for any test: random weights, a trained tokenizer, image settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.parity.lfm2_peer import IMAGE_TOKEN, tiny_config
from tiny.tokenizer import train_tokenizer
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings
from vlmtune.models.weights import save_hf


def random_model(seed: int = 0, **changes: Any) -> Lfm2Vl:
    """Ours at the tiny size, every parameter random."""
    torch.manual_seed(seed)
    model = Lfm2Vl(Lfm2VlConfig.from_dict(tiny_config(**changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.5 if parameter.dim() == 1 else 0.0))
    return model


def write_tiny_folder(folder: Path, seed: int = 0, dtype: torch.dtype | None = None) -> Path:
    """Save a random model as the hub would hold it; returns the folder."""
    tokenizer = train_tokenizer(["a red square, a blue circle", "yes no maybe"] * 4, vocab_size=300)
    assert tokenizer.image_token_id == IMAGE_TOKEN
    config = tiny_config()
    config["text_config"]["vocab_size"] = len(tokenizer)
    model = random_model(seed, text_config=config["text_config"])
    settings = Lfm2VlImageSettings(encoder_patch_size=4, tile_size=16, min_image_tokens=4, max_image_tokens=16)
    save_hf(
        folder,
        model,
        model.config_dict(),
        dtype=dtype,
        tokenizer=tokenizer,
        processor=Lfm2VlImageProcessor(settings),
    )
    return folder
