"""Number formats of a run: what is trained stays fp32, products run in bfloat16 where that is fast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from vlmtune.models.registry import has_fast_bfloat16


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """The context of forward passes in training.

    Args:
        device: where the model is.
        dtype: `model.dtype` of the experiment: with ``float32`` nothing is cast; otherwise products run in bfloat16
            on machines that are good at it, also when the weights are fp32 because they are trained.
    """
    if dtype == "float32" or not has_fast_bfloat16(device):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
