"""The peer: transformers' LFM2-VL at a tiny size with every parameter random, and ours with the same weights."""

from __future__ import annotations

from typing import Any

import torch

from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig

IMAGE_TOKEN = 5
VOCABULARY = 97


def tiny_config(layer_types: list[str] | None = None, **changes: Any) -> dict[str, Any]:
    """config.json of a model small enough for many comparisons, with nothing degenerate about its sizes."""
    kinds = layer_types or ["conv", "conv", "full_attention", "conv", "full_attention", "conv", "conv"]
    text = {
        "model_type": "lfm2",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": kinds,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 8,
    }
    vision = {
        "model_type": "siglip2_vision_model",
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_patches": 16,
        "patch_size": 4,
        "vision_use_head": False,
    }
    return {
        "model_type": "lfm2_vl",
        "text_config": text,
        "vision_config": vision,
        "projector_hidden_size": 28,
        "image_token_id": IMAGE_TOKEN,
    } | changes


def build_pair(seed: int = 0, **changes: Any) -> tuple[Any, Lfm2Vl]:
    """(transformers' model, ours) with equal random weights, fp32, in evaluation mode."""
    from transformers import Lfm2VlConfig as PeerConfig
    from transformers import Lfm2VlForConditionalGeneration

    values = tiny_config(**changes)
    torch.manual_seed(seed)
    peer = Lfm2VlForConditionalGeneration(PeerConfig(**values)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            # Zero biases and unit norms would hide a missing term: randomize everything.
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.5 if parameter.dim() == 1 else 0.0))
    ours = Lfm2Vl(Lfm2VlConfig.from_dict(values)).eval()
    weights = {name: tensor for name, tensor in peer.state_dict().items() if name != "lm_head.weight"}
    ours.load_state_dict(weights, strict=True)
    return peer, ours


def random_image(grids: list[tuple[int, int]], seed: int) -> ProcessedImage:
    """Random patches for tiles of the given grids (in patches, both even)."""
    generator = torch.Generator().manual_seed(seed)
    tiles = [(torch.randn(rows * columns, 48, generator=generator), (rows, columns)) for rows, columns in grids]
    return ProcessedImage(tiles=tiles, text="", num_tokens=sum(r * c // 4 for r, c in grids))


def peer_pixels(images: list[ProcessedImage]) -> dict[str, torch.Tensor]:
    """The images as transformers' model takes them: padded to the longest tile."""
    tiles = [tile for image in images for tile in image.tiles]
    longest = max(len(patches) for patches, _ in tiles)
    pixels = torch.zeros(len(tiles), longest, 48)
    mask = torch.zeros(len(tiles), longest, dtype=torch.int32)
    for index, (patches, _) in enumerate(tiles):
        pixels[index, : len(patches)] = patches
        mask[index, : len(patches)] = 1
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([grid for _, grid in tiles]),
    }
