"""LoRA: a frozen linear layer with a low-rank update, and what merges it into the weight.

    x ──────── weight (frozen) [D_out, D_in] ──────────────────────┐
    │                                                              + ── y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ
    └─ dropout ─ lora_A [R, D_in] ─ lora_B [D_out, R] ─ · scale ───┘

Below it, float32 copies of parameters that are trained in full under bfloat16. Called by `plan.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.kernels import lora_linear
from vlmtune.models.layers import Linear
from vlmtune.models.products import Gelu


class LoraLinear(Linear):
    """Takes the place of a linear layer: its own `weight` and `bias`, frozen, plus `lora_A` and `lora_B`.

    The two are float32 whatever the weight's type. A starts uniform (Kaiming, a = √5), B at zero, so that the layer
    starts equal to the one it replaces (arXiv 2106.09685).

    Args:
        linear: the layer replaced; its parameters are shared, not copied.
        rank: R. lora_A is float32[R, D_in], lora_B float32[D_out, R].
        scale: factor of the update.
        dropout: probability of dropping an input of the low-rank branch while training.
        generator: for A's initialization; None leaves A unset (to be loaded).
    """

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator | None
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would draw a weight to throw away
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.rank, self.scale, self.dropout = rank, scale, dropout
        device = linear.weight.device
        # Drawn on the CPU, so that a seed means the same on every device.
        start = torch.empty(rank, self.in_features, device="meta" if device.type == "meta" else "cpu")
        if generator is not None and not start.is_meta:
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(start.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))
        self._frozen: Tensor | None = None
        self.train(linear.training)

    @property
    def is_merged(self) -> bool:
        """Whether the weight holds the update at the moment."""
        return self._frozen is not None

    def forward(self, input: Tensor, gelu: Gelu | None = None) -> Tensor:
        """[..., D_in] -> [..., D_out], optionally followed by a GELU."""
        if self.is_merged:
            return super().forward(input, gelu)
        mask, scale = None, self.scale
        if self.training and self.dropout > 0:
            keep = 1 - self.dropout
            mask = torch.empty(input.shape, dtype=torch.bool, device=input.device).bernoulli_(keep)
            scale /= keep
        out = lora_linear(input, self.weight, self.bias, self.lora_A, self.lora_B, scale, mask)
        return out if gelu is None else F.gelu(out, approximate=gelu)

    def merge(self) -> None:
        """Put the update into the weight; the frozen one is set aside until `unmerge`."""
        assert not self.is_merged
        # Not inference tensors, even under inference_mode: training continues with them.
        with torch.inference_mode(False), torch.no_grad():
            self._frozen = self.weight.data
            merged = self._frozen.to(torch.float32, copy=True).addmm_(self.lora_B, self.lora_A, alpha=self.scale)
            self.weight.data = merged.to(self._frozen.dtype)

    def unmerge(self) -> None:
        """Restore the very tensor that `merge` set aside."""
        assert self._frozen is not None
        self.weight.data = self._frozen
        self._frozen = None

    def plain(self) -> Linear:
        """A linear layer that holds this one's weight as it is now."""
        linear = Linear(1, 1, bias=self.bias is not None)
        linear.in_features, linear.out_features = self.in_features, self.out_features
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Merged inside the block (no low-rank branch to compute), exactly as before after it. Nests."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear) and not module.is_merged]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        for layer in layers:
            layer.unmerge()


class MasterWeights:
    """float32 copies of parameters that the network keeps in bfloat16 and that are trained in full.

    A step of AdamW is often smaller than a bfloat16 weight's last digit and would be lost. So gradients are gathered in
    float32 on the masters as they arise, the optimizer steps the masters, and `write_back` rounds them into the
    network. Networks in float32 need none of this, and are trained directly.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self.masters = {
            name: nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            for name, parameter in self._parameters.items()
        }
        for name, parameter in self._parameters.items():
            parameter.register_post_accumulate_grad_hook(_Gather(self.masters[name]))  # type: ignore[no-untyped-call]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Write back after each of the optimizer's steps."""
        optimizer.register_step_post_hook(lambda *_: self.write_back())

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the network."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self.masters[name])


class _Gather:
    """Moves a gradient to its master as soon as it is computed, so that sums over micro-batches are float32."""

    def __init__(self, master: nn.Parameter) -> None:
        self._master = master

    def __call__(self, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if self._master.grad is None:
            self._master.grad = gradient.to(torch.float32)
        else:
            self._master.grad.add_(gradient)
