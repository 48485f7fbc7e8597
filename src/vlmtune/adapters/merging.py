"""LoRA put into the weights: for as long as a block lasts, or for good.

In: an adapted model. Out: the same model without low-rank branches to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from vlmtune.adapters.layer import LoraLinear
from vlmtune.adapters.plan import forget_plan, is_low_rank, plan_of


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merged inside the block (no low-rank branch to compute), exactly as before after it."""
    already = any(isinstance(module, LoraLinear) and module.is_merged for module in model.modules())
    if already:
        yield
        return
    merge(model)
    try:
        yield
    finally:
        unmerge(model)


def merge(model: nn.Module) -> None:
    """Put every update into its weight. The frozen weights of adapted layers, and only those, are set aside."""
    for module in model.modules():
        if isinstance(module, LoraLinear) and not module.is_merged:
            module.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, bit for bit."""
    for module in model.modules():
        if isinstance(module, LoraLinear) and module.is_merged:
            module.unmerge()


def fold(model: nn.Module) -> None:
    """Merge for good: plain linear layers again, nothing set aside, nothing learns. For a model that only answers."""
    plan = plan_of(model)
    if plan is None:
        return
    for name, layer in plan.lora.items():
        if not layer.is_merged:
            layer.merge()
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, layer.plain())
    model.requires_grad_(False)
    forget_plan(model)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """name -> the model's own parameters without LoRA's: inside `merged`, what an export saves."""
    return {name: p for name, p in model.named_parameters() if not is_low_rank(name)}
