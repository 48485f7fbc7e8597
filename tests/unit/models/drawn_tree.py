"""The example that `models/tree.py` and `models/plan.py` draw, its tables as lists, and its plan."""

from __future__ import annotations

from types import ModuleType

import torch

from vlmtune.models.cache import Cache
from vlmtune.models.plan import DecodePlan
from vlmtune.models.tree import Level

TOKENS = ["p0", "p1", "p2", "a0", "a1", "b0", "x0", "x1", "x2", "y0", "y1"]
LEVELS = [
    Level.chains([3], read_last=0),
    Level.chains([2, 1], parent=[0, 0], read_last=0),
    Level.tree([[-1, 0, 0], [-1, 0]], parent=[0, 1]),
]
SEGMENTS = [[["p0", "p1", "p2"]], [["a0", "a1"], ["b0", "."]], [["x0", "x1", "x2"], ["y0", "y1", "."]]]
COLUMNS = [
    [SEGMENTS[0][0]],
    [SEGMENTS[0][0] + SEGMENTS[1][0], SEGMENTS[0][0] + SEGMENTS[1][1]],
    [SEGMENTS[0][0] + SEGMENTS[1][0] + SEGMENTS[2][0], SEGMENTS[0][0] + SEGMENTS[1][1] + SEGMENTS[2][1]],
]


def plan() -> DecodePlan:
    """With a kernel of three inputs, and one convolution above the last attention layer."""
    return DecodePlan(
        LEVELS, Cache.empty([]), num_inputs=2, num_convs_above=1, want_cache=False, device=torch.device("cpu")
    )


def drawn(module: ModuleType) -> list[list[str]]:
    """The words of each line of a module's docstring."""
    assert module.__doc__ is not None
    return [line.split() for line in module.__doc__.splitlines()]


def line(head: str, *values: object) -> list[str]:
    return [head, *map(str, values)]


def marks(visible: torch.Tensor) -> list[str]:
    return ["1" if column else "." for column in visible.tolist()]
