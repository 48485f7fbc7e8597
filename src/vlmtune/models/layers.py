"""What every family's networks are made of: the linear layer, the norm, the gated MLP, rotary positions.

The parameters' names come from the families, which take them from the checkpoints. Called by every network file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlmtune.models.kernels import GluActivation, glu, rms_norm
from vlmtune.models.products import Gelu, linear


class Linear(nn.Linear):
    """A linear layer that uses the fastest matrix product of its device, optionally followed by a GELU."""

    def forward(self, input: Tensor, gelu: Gelu | None = None) -> Tensor:
        """[..., D_in] -> [..., D_out]; see `products.linear`."""
        return linear(input, self.weight, self.bias, gelu)


class RMSNorm(nn.Module):
    """Root-mean-square norm; see `kernels.rms_norm`.

    Args:
        size: D.
        eps: added to the mean square.
        one_offset: the weight is stored as its difference from one, so that weight decay pulls toward the identity.
    """

    def __init__(self, size: int, eps: float, *, one_offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if one_offset else torch.ones(size))
        self.eps, self.one_offset = eps, one_offset

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, one_offset=self.one_offset)


class GluMLP(nn.Module):
    """down(activation(gate(x)) · up(x)), without biases.

    Args:
        width: D, of input and output.
        hidden_size: of the gate.
        activation: of the gate.
        names: what the checkpoint calls gate, up and down.
    """

    def __init__(self, width: int, hidden_size: int, activation: GluActivation, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.hidden_size, self.activation, self.names = hidden_size, activation, names
        gate, up, down = names
        self.add_module(gate, Linear(width, hidden_size, bias=False))
        self.add_module(up, Linear(width, hidden_size, bias=False))
        self.add_module(down, Linear(hidden_size, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (self.get_submodule(name) for name in self.names)
        out: Tensor = down(glu(gate(x), up(x), self.activation))
        return out


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (arXiv 2104.09864).

    Attributes:
        head_dim: d, of queries and keys.
        theta: the base of the wavelengths.
        first_position: of a path's first token.
    """

    head_dim: int
    theta: float
    first_position: int = 0

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines at int64[R] positions: float[R, 1, d] each.

        Computed in float32: rounding the frequencies to bfloat16 moves late positions by whole radians.
        """
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device) / self.head_dim
        angle = (positions + self.first_position)[:, None].float() * (1.0 / self.theta**exponent)
        angle = torch.cat([angle, angle], dim=-1)[:, None]  # [R, 1, d]: the same for every head
        return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate halves (not neighboring pairs) of each head: float[R, H, d]."""
    cos, sin = angles
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
