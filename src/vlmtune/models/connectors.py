"""Connectors between the vision tower and the decoder, the same few for every model family.

In: an image's patches as the tower gives them, groups of its layers side by side. Out: image tokens in the decoder's
width. `linear` (PaliGemma's) and `mlp` (LFM2-VL's) are trunks; a dense connector (arXiv 2405.13800) is a trunk that
also reads means of the tower's layers: STI as more tokens, SCI and DCI as more channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmtune.models.images import Grid, ProcessedImage
from vlmtune.models.layers import Linear

Trunk = Literal["linear", "mlp"]
Variant = Literal["sti", "sci", "dci"]
LayerGroup = tuple[int, int]
"""First and last of the hidden states whose mean is read: 0 is the embeddings' output, i that of layer i (as
`transformers` counts `hidden_states`)."""

STI_POOL = 8
"""STI averages this many consecutive tokens (the authors' `AvgPool1d(8)`)."""


@dataclass(frozen=True)
class ConnectorShape:
    """Everything that determines a connector's parameters and what it computes with them.

    Attributes:
        trunk: one linear layer, or two around a GELU.
        channels: C, the tower's width.
        width: D, the decoder's.
        factor: side of the square of patches that becomes one token (pixel-unshuffle); 1 keeps every patch.
        hidden_size: of `mlp`.
        bias, layer_norm: of `mlp`; a linear trunk has a bias and no norm.
        variant: of a dense connector, else None.
        groups: the layers that a dense connector reads besides the tower's output.
    """

    trunk: Trunk
    channels: int
    width: int
    factor: int = 1
    hidden_size: int = 0
    bias: bool = True
    layer_norm: bool = False
    variant: Variant | None = None
    groups: tuple[LayerGroup, ...] = ()

    @property
    def num_channels_read(self) -> int:
        """Channels of `VisionFeatures.patches`: the tower's output and the groups, side by side."""
        return self.channels * (1 + len(self.groups))

    def __str__(self) -> str:
        name = "linear" if self.trunk == "linear" else f"mlp of {self.hidden_size}"
        squares = f"{self.factor}x{self.factor} patches a token"
        if self.variant is None:
            return f"connector '{name}', {squares}"
        layers = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in self.groups)
        return f"dense connector {self.variant.upper()} of layers {layers} on '{name}', {squares}"


def default_groups(variant: Variant, num_layers: int) -> tuple[LayerGroup, ...]:
    """The layers a dense connector reads by default (arXiv 2405.13800, section 3.2, and the authors' code).

    DCI: means over two halves; in SigLIP so400m's 27 layers these are the paper's 0..12 and 13..25. STI and SCI: two
    single layers, the authors' 7 and 15 in towers of 24 to 27 layers, else those at a third and two thirds.
    """
    if variant == "dci":
        half = max(1, num_layers // 2)
        return (0, half - 1), (half, min(num_layers, 2 * half - 1))
    first, second = (7, 15) if 24 <= num_layers <= 27 else (num_layers // 3, 2 * num_layers // 3)
    return (first, first), (second, second)


def side_by_side(output: Tensor, states: Sequence[Tensor], groups: Sequence[LayerGroup], norm: nn.Module) -> Tensor:
    """Put a tower's output and the means of groups of its layers side by side, as a connector reads them.

    Args:
        output: float[B, P, C], the tower's own.
        states: float[B, P, C] after the embedding and after every layer.
        groups: the groups of layers to average.
        norm: the tower's last norm. The means come from inside the residual stream, whose scale grows from layer to
            layer; through the norm that the output went through, all reach the connector at one scale.

    Returns:
        float[B, P, C * (1 + G)].
    """
    means = [
        # In float32: a sum of many bfloat16 states would lose the last of them.
        torch.stack(list(states[first : last + 1])).float().mean(0).to(output.dtype)
        for first, last in groups
    ]
    return torch.cat([output, *(norm(mean) for mean in means)], dim=-1)


class Connector(nn.Module):
    """What all trunks share: squares of patches become tokens; dense channels have weights of their own.

    The pretrained weights remain a separate product, to which that of the new channels is added. So a dense connector
    whose `dense` weight is zero computes, to the bit, what the trunk alone does: adding zeros changes no number, while
    one wider product might sum in another order. A norm in the trunk sees the tower's output only.
    """

    def __init__(self, shape: ConnectorShape, first_width: int) -> None:
        super().__init__()
        self.shape = shape
        self.replaced: ConnectorShape | None = None
        """The shape of the base's connector that this one replaced; None for the base's own."""
        is_wider = shape.variant in ("sci", "dci")
        self.dense = (
            Linear(shape.channels * shape.factor**2 * len(shape.groups), first_width, bias=False) if is_wider else None
        )

    def num_tokens(self, grid: Grid) -> int:
        """Image tokens of a tile."""
        plain = grid[0] * grid[1] // self.shape.factor**2
        return plain + (len(self.shape.groups) * math.ceil(plain / STI_POOL) if self.shape.variant == "sti" else 0)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """float[B, P, C * (1 + G)] -> float[B, T, D], T as `num_tokens` says; STI's tokens come last."""
        output, *others = (self._squares(part, grid) for part in torch.split(patches, self.shape.channels, dim=-1))
        assert len(others) == len(self.shape.groups), "these features were made for another connector"
        if self.shape.variant == "sti":
            # A separate product, so that the pretrained tokens keep their bits: theirs has the size it always had.
            pooled = torch.cat([_pool(other) for other in others], dim=1)
            return torch.cat([self._project(output, None), self._project(pooled, None)], dim=1)
        return self._project(output, self.dense(torch.cat(others, dim=-1)) if self.dense is not None else None)

    def _project(self, x: Tensor, dense: Tensor | None) -> Tensor:
        """Tokens float[B, T, C * f²], and what the dense channels add after the first linear layer."""
        raise NotImplementedError

    def _squares(self, x: Tensor, grid: Grid) -> Tensor:
        """float[B, P, C] -> float[B, P / f², C * f²]; channels ordered (row in square, column in square, C)."""
        (rows, columns), f = grid, self.shape.factor
        if f == 1:
            return x.contiguous()
        squares = x.reshape(len(x), rows // f, f, columns // f, f, -1).permute(0, 1, 3, 2, 4, 5)
        return squares.reshape(len(x), rows * columns // f**2, -1)


class LinearConnector(Connector):
    """One linear layer, under PaliGemma's name."""

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__(shape, shape.width)
        self.linear = Linear(shape.channels * shape.factor**2, shape.width)

    def _project(self, x: Tensor, dense: Tensor | None) -> Tensor:
        out: Tensor = self.linear(x)
        return out if dense is None else out + dense


class MlpConnector(Connector):
    """Two linear layers around a GELU, under LFM2-VL's names."""

    def __init__(self, shape: ConnectorShape) -> None:
        super().__init__(shape, shape.hidden_size)
        channels = shape.channels * shape.factor**2
        self.layer_norm = nn.LayerNorm(channels) if shape.layer_norm else None
        self.linear_1 = Linear(channels, shape.hidden_size, bias=shape.bias)
        self.linear_2 = Linear(shape.hidden_size, shape.width, bias=shape.bias)

    def _project(self, x: Tensor, dense: Tensor | None) -> Tensor:
        hidden = self.linear_1(x if self.layer_norm is None else self.layer_norm(x))
        if dense is not None:
            hidden = hidden + dense
        out: Tensor = self.linear_2(F.gelu(hidden))
        return out


def build_connector(shape: ConnectorShape) -> Connector:
    """A connector with torch's random initialization."""
    return LinearConnector(shape) if shape.trunk == "linear" else MlpConnector(shape)


def start_equal(connector: Connector, pretrained: Connector) -> None:
    """Give a connector the weights of the pretrained one that it replaces, and zeros for its new channels."""
    with torch.no_grad():
        for name, parameter in connector.named_parameters():
            if name == "dense.weight":
                parameter.zero_()
            else:
                parameter.copy_(pretrained.get_parameter(name))


def start_random(connector: Connector, generator: torch.Generator) -> None:
    """Reinitialize every weight as torch does for linear layers: U(-1/√n, 1/√n) for n inputs, the dense
    channels' counted with the first layer's. Pretrained weights are lost; for comparison, and for new trunks."""
    first = {"linear", "linear_1", "dense"}
    read = connector.shape.num_channels_read if connector.dense is not None else connector.shape.channels
    fan_in = read * connector.shape.factor**2
    with torch.no_grad():
        for name, module in connector.named_children():
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
                continue
            assert isinstance(module, nn.Linear)
            bound = (fan_in if name in first else module.in_features) ** -0.5
            for parameter in module.parameters():
                # On the CPU in float32, so that a seed means the same on every device and in every type.
                start = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.copy_(start)


def respell(image: ProcessedImage, image_token: str, before: Connector, after: Connector) -> ProcessedImage:
    """A prepared image with its placeholder text changed from one connector's tokens to another's."""
    pieces = image.text.split(image_token)  # the text before, between and after the image tokens
    text, first = pieces[0], 1
    for _, grid in image.tiles:
        count = before.num_tokens(grid)
        assert not any(pieces[first : first + count - 1]), "a tile's tokens stand together"
        text += image_token * after.num_tokens(grid) + pieces[first + count - 1]
        first += count
    assert first == len(pieces), f"{len(pieces) - 1} image tokens for tiles of {first - 1}"
    return ProcessedImage(image.tiles, text, sum(after.num_tokens(grid) for _, grid in image.tiles))


def _pool(tokens: Tensor) -> Tensor:
    """float[B, T, K] -> float[B, ceil(T / 8), K], means of tokens in a row; a shorter remainder is one token too."""
    return F.avg_pool1d(tokens.transpose(1, 2), STI_POOL, ceil_mode=True).transpose(1, 2)
