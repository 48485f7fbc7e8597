"""What a training step needs from its device: the number format of its products, and room for its activations."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from vlmtune.models.malloc import held_bytes
from vlmtune.models.registry import has_fast_bfloat16
from vlmtune.models.vlm import VisionLanguageModel

# Share of the free memory that the decoder's activations may take: the rest is for images, logits and other processes.
_SHARE = 0.6


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """The context of forward passes in training. What is trained stays float32.

    Args:
        device: where the model is.
        dtype: `model.dtype` of the experiment: with ``float32`` nothing is cast; otherwise products run in bfloat16
            on machines where it is fast, also when the weights are float32 because they are trained.
    """
    if dtype == "float32" or not has_fast_bfloat16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still use on the device: unallocated memory, and what its own allocator holds free.

    Without the second part a step that fits would look, once it has run, as if there were no room for another.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 + held_bytes()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def needs_checkpointing(model: VisionLanguageModel, num_tokens: int) -> bool:
    """Whether the backward pass of a tree with ``num_tokens`` tokens would need more memory than is free."""
    return num_tokens * model.activation_bytes_per_token() > _SHARE * free_bytes(model.device)
