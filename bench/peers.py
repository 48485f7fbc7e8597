"""LFM2-VL-450M at full size with random weights, twice: transformers' (with PEFT) and ours, on the same storage.

Random weights cost what trained ones do. Both models hold the very same base tensors, so that one process has room
for both and neither computes anything the other does not have.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.registry import KNOWN_CONFIGS

IMAGE_TOKEN = 396
END_TOKEN = 7
VOCABULARY = 65_536
GRID = (16, 16)
NUM_IMAGE_TOKENS = 64
SHARED_TOKENS = 650
# What follows the image: its end mark, the end of the turn, the header of the answer.
OWN_TOKENS = 6

# What the older repos' list of seven names matches in LFM2-VL: q, k and v, in the decoder and in the tower.
OLDER_TARGETS = ["q_proj", "k_proj", "v_proj"]
ALL_DECODER_LINEAR = r".*language_model\..*\.(q_proj|k_proj|v_proj|out_proj|in_proj|w1|w2|w3)"


def config_450m() -> dict[str, Any]:
    """config.json of LFM2-VL-450M, as far as it decides sizes."""
    config = copy.deepcopy(KNOWN_CONFIGS["LiquidAI/LFM2-VL-450M"])
    config["vision_config"]["vision_use_head"] = False  # a pooling head that LFM2-VL does not read
    return config


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_peer(dtype: torch.dtype, device: torch.device, seed: int = 0) -> Any:
    """transformers' model with random weights, made in their final type (never held in fp32 first)."""
    from transformers import Lfm2VlConfig as PeerConfig
    from transformers import Lfm2VlForConditionalGeneration

    torch.manual_seed(seed)
    with default_dtype(dtype), torch.device(device):
        peer = Lfm2VlForConditionalGeneration(PeerConfig(**config_450m()))
    return peer.eval()


def share(peer: Any) -> Any:
    """Another model over the same tensors, to be adapted on its own."""
    tensors = [*peer.parameters(), *peer.buffers()]
    return copy.deepcopy(peer, {id(tensor): tensor for tensor in tensors})


def build_ours(weights: dict[str, Tensor]) -> Lfm2Vl:
    """Our model over transformers' tensors: shared, not copied."""
    with torch.device("meta"):
        ours = Lfm2Vl(Lfm2VlConfig.from_dict(config_450m()))
    names = {name for name, _ in ours.named_parameters()} | {name for name, _ in ours.named_buffers()}
    ours.load_state_dict({name: weights[name] for name in names}, strict=True, assign=True)
    return ours.eval()


def random_weights(dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """Weights for `build_ours` where the process has no peer."""
    with torch.device("meta"):
        ours = Lfm2Vl(Lfm2VlConfig.from_dict(config_450m()))
    generator = torch.Generator(device).manual_seed(seed)
    return {
        name: torch.ones(p.shape, dtype=dtype, device=device)
        if "norm" in name and name.endswith("weight")
        else torch.empty(p.shape, dtype=dtype, device=device).normal_(0, 0.02, generator=generator)
        for name, p in ours.named_parameters()
    }


def with_peft(peer: Any, targets: list[str] | str, *, fp32_adapters: bool = True) -> Any:
    """LoRA r=16 by PEFT. ``fp32_adapters`` is PEFT's default over bfloat16 weights."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets)
    return get_peft_model(peer, config, autocast_adapter_dtype=fp32_adapters)


def num_adapted(model: Any) -> int:
    return len([name for name, _ in model.named_parameters() if re.search(r"lora_A(\.|$)", name)])


@dataclass
class Batch:
    """Samples that share a prompt: tokens as lists, images as patches of one grid."""

    shared: list[int]
    own: list[list[int]]
    answers: list[list[int]]
    images: list[ProcessedImage]

    def __len__(self) -> int:
        return len(self.own)

    def first(self, count: int) -> Batch:
        return Batch(self.shared, self.own[:count], self.answers[:count], self.images[:count])

    def peer_inputs(self, device: torch.device, *, with_answers: bool = True) -> dict[str, Tensor]:
        """As a collator makes them: padded on the right; images not padded, since they have one size."""
        answers = self.answers if with_answers else [[] for _ in self.answers]
        rows = [self.shared + prompt + answer for prompt, answer in zip(self.own, answers, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        pixels = torch.stack([image.tiles[0][0] for image in self.images]).to(device)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "pixel_values": pixels,
            "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.int32, device=device),
            "spatial_shapes": torch.tensor([GRID] * len(rows), device=device),
        }


def make_batch(size: int, seed: int = 0, shared_tokens: int = SHARED_TOKENS) -> Batch:
    """Random tokens and images; answers of 2 to 4 tokens, the end token included."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(500, VOCABULARY, (count,), generator=draw).tolist()

    own = [[IMAGE_TOKEN] * NUM_IMAGE_TOKENS + tokens(OWN_TOKENS) for _ in range(size)]
    lengths = [1 + i % 3 for i in range(size)]
    patches = GRID[0] * GRID[1]
    return Batch(
        shared=tokens(shared_tokens),
        own=own,
        answers=[[*tokens(length), END_TOKEN] for length in lengths],
        images=[
            ProcessedImage([(torch.randn(patches, 768, generator=draw), GRID)], "", NUM_IMAGE_TOKENS)
            for _ in range(size)
        ],
    )
