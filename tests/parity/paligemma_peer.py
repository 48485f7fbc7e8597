"""The peer: transformers' PaliGemma of either generation, tiny, every parameter random; ours with the same weights."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vlmtune.models.images import ProcessedImage
from vlmtune.models.paligemma import PaliGemma
from vlmtune.models.paligemma.config import PaliGemmaConfig

IMAGE_TOKEN = 96
VOCABULARY = 97
BOS, END, NEWLINE = 2, 1, 7
PATCH = 4

Generation = Literal[1, 2]


def tiny_config(generation: Generation, side: int = 3, **text: Any) -> dict[str, Any]:
    """config.json with nothing degenerate about its sizes: heads wider than the model, a window below the prompt's
    length, a query scale that is not the head's, caps low enough to bend most scores."""
    first = {
        "model_type": "gemma",
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 12,
    }
    second = first | {
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 1.5,
        "final_logit_softcapping": 2.0,
        "sliding_window": 6,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": PATCH,
        "image_size": side * PATCH,
        "vision_use_head": False,
    }
    return {
        "model_type": "paligemma",
        "text_config": (first if generation == 1 else second) | text,
        "vision_config": vision,
        "projection_dim": 32,
        "hidden_size": 32,
        "image_token_index": IMAGE_TOKEN,
    }


def build_pair(generation: Generation, seed: int = 0, side: int = 3, **text: Any) -> tuple[Any, PaliGemma]:
    """(transformers' model, ours) with equal random weights, fp32, in evaluation mode."""
    from transformers import PaliGemmaConfig as PeerConfig
    from transformers import PaliGemmaForConditionalGeneration

    values = tiny_config(generation, side, **text)
    torch.manual_seed(seed)
    peer = PaliGemmaForConditionalGeneration._from_config(PeerConfig(**values), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            # Zero biases and unit norms would hide a missing term: randomize everything.
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.3 if parameter.dim() == 1 else 0.0))
    ours = PaliGemma(PaliGemmaConfig.from_dict(values)).eval()
    weights = {name: tensor for name, tensor in peer.state_dict().items() if name != "lm_head.weight"}
    ours.load_state_dict(weights, strict=True)
    return peer, ours


def random_image(seed: int, side: int = 3) -> tuple[ProcessedImage, Tensor]:
    """An image as we take it, and as transformers does: float32[1, 3, side * patch, side * patch]."""
    pixels = torch.randn(3, side * PATCH, side * PATCH, generator=torch.Generator().manual_seed(seed))
    grid = pixels.view(3, side, PATCH, side, PATCH).permute(1, 3, 0, 2, 4)
    patches = grid.reshape(side * side, 3 * PATCH * PATCH)
    return ProcessedImage([(patches, (side, side))], "<image>" * side**2, side**2), pixels[None]


def random_ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, VOCABULARY - 1, (length,), generator=generator).tolist()


def prompt_ids(length: int, seed: int, side: int = 3) -> list[int]:
    """Image tokens, <bos>, `length` words, newline."""
    return [IMAGE_TOKEN] * side**2 + [BOS, *random_ids(length, seed), NEWLINE]


def peer_logits(peer: Any, prompt: list[int], answer: list[int], pixels: Tensor | None, **options: Any) -> Any:
    """transformers on one prompt with its answer: all that its forward returns."""
    types = [0] * len(prompt) + [1] * len(answer)
    return peer(
        input_ids=torch.tensor([prompt + answer]),
        token_type_ids=torch.tensor([types]),
        attention_mask=torch.ones(1, len(types), dtype=torch.int64),
        pixel_values=pixels,
        **options,
    )
