"""Letters as a pen writes them: one or more ways of writing each, as smooth curves through jittered points.

In: the ways of writing a character, and a random source. Out: polylines in a unit square, x to the right, y down; see
`ink.pen_mask`. A stroke passes through its points as a Catmull-Rom spline, except that `!` makes a point a corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]

# Boxes of 10 by 10. Each text is one way of writing the letter; `|` lifts the pen.
LETTER_STROKES: dict[str, tuple[str, ...]] = {
    "A": ("5,0 1,10 | 5,0 9,10 | 2.6,6.4 7.4,6.4", "1,10 4.8,0.4 5.4,0.4 9,10! | 2.2,6 8,6.4"),
    "B": (
        "2,0 2,10 | 2,0! 6.5,0.4 7.4,2.6 5.5,4.6 2,4.8! 6.6,5 8.4,7.4 6.6,9.6 2,10",
        "2.4,0.4 2,10! | 1.6,0.8 5.6,0 7,2.4 3,4.8! 7.4,5.8 7.4,9 2,10",
    ),
    "C": ("8.5,2 6,0 3,0.8 1.2,5 3,9.2 6,10 8.6,8", "8,1.6 5,0 2,2.6 1.6,7 4.4,10 8.4,8.8"),
    "E": ("8,0 2,0! 2,10! 8,10 | 2,5 7,5", "7.8,0.8 3.4,0.4 2.8,4.2 6,4.8! 2,6.4 3,9.8 8,9.4"),
    "H": ("2,0 2,10 | 8,0 8,10 | 2,5 8,5",),
    "K": ("2,0 2,10 | 8.4,0 2,5.6 | 4,4 8.8,10", "2.2,0 2,10 | 8,0.4 2.4,5! 8.4,9.8"),
    "L": ("2,0 2,10! 8.4,10", "2.6,0 2,9.4! 8,9.8"),
    "N": ("2,10 2,0! 8,10! 8,0",),
    "P": ("2,0 2,10 | 2,0.2! 6.4,0.2 8.4,2.6 6.4,5.2 2,5.4", "2.4,0.6 2,10 | 1.6,1 5.6,0 8,2.2 6,5 2.2,5.2"),
    "S": ("8,1.6 5.4,0 2.4,1.4 2.6,4 7,5.8 8.2,8 5.4,10 1.6,8.8",),
    "T": ("1,0 9,0 | 5,0 5,10", "1.2,0.4 8.8,0.2 | 5.2,0.3 4.8,10"),
    "U": ("1.8,0 1.8,7 3.6,9.8 6.6,9.8 8.2,7 8.2,0",),
    "X": ("1.4,0 8.6,10 | 8.6,0 1.4,10",),
    "Z": ("1.4,0 8.6,0! 1.4,10! 8.8,10", "1.4,0.4 8.4,0! 1.6,10! 8.6,9.8 | 3,5 7,5"),
}


def write(ways: Sequence[str], rng: Random, wildness: float = 1.0) -> list[Points]:
    """One handwritten instance of a character.

    Args:
        ways: ways of writing the character, as in `LETTER_STROKES`.
        rng: decides which of them, and every jitter.
        wildness: 0 writes the template, 1 as people do.

    Returns:
        Polylines float64[N, 2] in about the unit square.
    """
    text = rng.choice(ways)
    noise = np.random.default_rng(rng.getrandbits(64))
    sigma = wildness * rng.uniform(0.15, 0.55)
    lines: list[Points] = []
    for stroke in text.split("|"):
        words = stroke.split()
        corners = [word.endswith("!") for word in words]
        points = np.array([word.rstrip("!").split(",") for word in words], dtype=np.float64)
        points += noise.normal(0.0, sigma, points.shape)
        lines.append(_smooth(points, corners))
    return _bend(lines, rng, wildness)


def _smooth(points: Points, corners: list[bool]) -> Points:
    """A Catmull-Rom spline through the points, broken at corners. float64[N, 2] -> float64[M, 2]."""
    cuts = [0, *(i for i in range(1, len(points) - 1) if corners[i]), len(points) - 1]
    pieces = [_spline(points[a : b + 1]) for a, b in pairwise(cuts)]
    return np.concatenate(pieces)


_T = np.linspace(0.0, 1.0, 7)[:, None]
_BASIS = 0.5 * np.concatenate(
    [-_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3, -(_T**2) + _T**3], axis=1
)


def _spline(points: Points) -> Points:
    if len(points) == 2:
        return points
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    windows = np.stack([padded[i : i + len(points) - 1] for i in range(4)], axis=1)  # [segments, 4, 2]
    curve: Points = (_BASIS @ windows).reshape(-1, 2)
    return curve


def _bend(lines: list[Points], rng: Random, wildness: float) -> list[Points]:
    """Slant, turn, stretch and a slow wave over the whole character; then into the unit square's scale."""
    slant = rng.gauss(0.0, 0.18) * wildness
    angle = rng.gauss(0.0, 0.07) * wildness
    wave, phase_x, phase_y = rng.uniform(0.0, 0.6) * wildness, rng.uniform(0, 6.3), rng.uniform(0, 6.3)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, -slant], [0.0, 1.0]])
    bent = []
    for line in lines:
        centered = line - 5.0
        waved = centered + wave * np.sin(centered[:, ::-1] * 0.55 + np.array([phase_x, phase_y]))
        bent.append((waved @ turn.T + 5.0) / 10.0)
    return bent
