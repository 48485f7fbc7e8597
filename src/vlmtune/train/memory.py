"""Whether a step's activations fit: decides `train.checkpoint_activations: auto`."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from vlmtune.models.interface import VisionLanguageModel

# Of the free memory, what the decoder's activations may take: the rest is for pictures, logits and other processes.
_SHARE = 0.6


def free_bytes(device: torch.device) -> int:
    """Memory that a process could still take on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def needs_checkpointing(model: VisionLanguageModel, num_rows: int) -> bool:
    """Whether a tree of so many rows would keep more for its backward pass than there is room for."""
    return num_rows * model.activation_bytes_per_row() > _SHARE * free_bytes(model.device)
