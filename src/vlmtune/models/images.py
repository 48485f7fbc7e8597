"""One picture as a network takes it: patches of each tile and the placeholder text that stands for it in a prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ProcessedImage:
    """Attributes:
    tiles: for each tile, float32[P, patch * patch * 3] patches and the (rows, columns) of their grid.
    text: the placeholder string of the whole picture, every image token spelled out.
    num_tokens: image tokens in `text`.
    """

    tiles: list[tuple[Tensor, tuple[int, int]]]
    text: str
    num_tokens: int
