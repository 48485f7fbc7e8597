"""One image on its way through a network: as the tower takes it, and as the tower gives it to the connector."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Level and columns of patches."""


@dataclass(frozen=True)
class ProcessedImage:
    """Attributes:
    tiles: for each tile, float32[P, patch * patch * 3] patches and their grid.
    text: the placeholder string of the whole image, every image token spelled out.
    num_tokens: image tokens in `text`.
    """

    tiles: list[tuple[Tensor, Grid]]
    text: str
    num_tokens: int

    @property
    def num_bytes(self) -> int:
        """Memory of the patches."""
        return sum(patches.nbytes for patches, _ in self.tiles)


@dataclass(frozen=True)
class VisionFeatures:
    """What the tower makes of one image and the connector reads.

    Attributes:
        patches: float[P, C], the patches of all tiles, tile after tile. C is the tower's width, or several times it
            where the connector reads several segments of the tower's layers.
        grids: each tile's grid; P is the sum of their products.
    """

    patches: Tensor
    grids: tuple[Grid, ...]

    def tiles(self) -> list[tuple[Tensor, Grid]]:
        """float[P', C] of each tile, with its grid."""
        sizes = [rows * columns for rows, columns in self.grids]
        return list(zip(torch.split(self.patches, sizes), self.grids, strict=True))


def group_by_grid(grids: Iterable[Grid]) -> dict[Grid, list[int]]:
    """Which tiles share a grid: they go through a network as one batch in which nothing is padded."""
    members: dict[Grid, list[int]] = {}
    for index, grid in enumerate(grids):
        members.setdefault(grid, []).append(index)
    return members
