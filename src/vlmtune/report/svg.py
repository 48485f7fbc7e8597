"""Small SVG drawings: a canvas, axes, ticks. Colors come from the page's CSS, so a chart follows its theme."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import pairwise

from markupsafe import Markup

Point = tuple[float, float]
Range = tuple[float, float]


class Canvas:
    """Collects SVG elements. Classes instead of colors: the style sheet of the page decides."""

    def __init__(self, width: float, height: float, description: str) -> None:
        self.width, self.height, self.description = width, height, description
        self.elements: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.elements.append(f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"/>')

    def path(self, points: Sequence[Point], css: str) -> None:
        """A polyline; nothing for fewer than two points."""
        if len(points) > 1:
            steps = "L".join(f"{_n(x)},{_n(y)}" for x, y in points)
            self.elements.append(f'<path d="M{steps}" class="{css}"/>')

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        css: str,
        opacity: float | None = None,
        radius: float = 0,
        title: str = "",
        data: str = "",
    ) -> None:
        faded = "" if opacity is None else f' fill-opacity="{_n(opacity, 2)}"'
        rounded = f' rx="{_n(radius)}"' if radius else ""
        start = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{css}"'
        end = f"><title>{escape(title)}</title></rect>" if title else "/>"
        self.elements.append(f"{start}{faded}{rounded}{data and ' ' + data}{end}")

    def dot(self, x: float, y: float, radius: float, css: str, title: str = "") -> None:
        start = f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{css}"'
        self.elements.append(start + (f"><title>{escape(title)}</title></circle>" if title else "/>"))

    def text(
        self, x: float, y: float, content: str, css: str = "", anchor: str = "start", turn: float = 0, size: float = 0
    ) -> None:
        turned = f' transform="rotate({_n(turn)} {_n(x)} {_n(y)})"' if turn else ""
        sized = f' style="font-size:{_n(size)}px"' if size else ""
        anchored = "" if anchor == "start" else f' text-anchor="{anchor}"'
        styled = f' class="{css}"' if css else ""
        place = f'x="{_n(x)}" y="{_n(y)}"'
        self.elements.append(f"<text {place}{styled}{anchored}{turned}{sized}>{escape(content)}</text>")

    def render(self) -> Markup:
        """The finished element, named for screen readers."""
        box = f"0 0 {_n(self.width)} {_n(self.height)}"
        name = escape(self.description, quote=True)
        return Markup(f'<svg viewBox="{box}" role="img" aria-label="{name}">{"".join(self.elements)}</svg>')


class Plot:
    """A canvas, or a band of one, with a left and a bottom axis; `x` and `y` map data to the canvas."""

    def __init__(
        self,
        description: str,
        x_range: Range,
        y_range: Range,
        width: float = 460,
        height: float = 300,
        left: float = 62,
        canvas: Canvas | None = None,
        band: Range | None = None,
    ) -> None:
        self.canvas = canvas or Canvas(width, height, description)
        self.x_range, self.y_range = _widened(x_range), _widened(y_range)
        self.left, self.right = left, self.canvas.width - 14
        self.top: float
        self.bottom: float
        self.top, self.bottom = band or (14, height - 44)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def axes(
        self,
        x_label: str,
        y_label: str,
        x_format: Callable[[float], str],
        y_format: Callable[[float], str],
        x_ticks: Sequence[float] | None = None,
    ) -> None:
        """Grid lines, tick labels and axis names; an axis without a name has no tick labels either."""
        for value in ticks(*self.y_range):
            self.canvas.line(self.left, self.y(value), self.right, self.y(value), "grid")
            self.canvas.text(self.left - 8, self.y(value) + 4, y_format(value), "tick", "end")
        for value in (ticks(*self.x_range) if x_ticks is None else x_ticks) if x_label else []:
            self.canvas.text(self.x(value), self.bottom + 17, x_format(value), "tick", "middle")
        self.canvas.line(self.left, self.bottom, self.right, self.bottom, "axis")
        self.canvas.text((self.left + self.right) / 2, self.bottom + 37, x_label, "name", "middle")
        middle = (self.top + self.bottom) / 2
        self.canvas.text(12, middle, y_label, "name", "middle", turn=-90)

    def curve(self, points: Sequence[Point], css: str) -> None:
        self.canvas.path([(self.x(x), self.y(y)) for x, y in points], css)

    def level(self, value: float, name: str) -> None:
        """A value that belongs to no place on the x axis, as a dashed line with its name."""
        self.canvas.line(self.left, self.y(value), self.right, self.y(value), "chance")
        self.canvas.text(self.right, self.y(value) - 6, name, "tick", "end")

    def whisker(self, x: float, low: float, high: float, css: str) -> None:
        self.canvas.line(self.x(x), self.y(low), self.x(x), self.y(high), css)


def standalone(chart: Markup, css: str, colors: Mapping[str, str]) -> str:
    """A chart as a file of its own, on a white ground.

    Args:
        css: the page's style sheet of charts.
        colors: of its variables; put in as plain values, since drawing programs know no variables.
    """
    _, _, rules = css.partition("}")  # the first rule declares the variables
    plain = re.sub(r"var\(--([\w-]+)\)", lambda match: colors[match[1]], rules)
    start, _, rest = str(chart).removeprefix("<svg ").partition(">")
    ground = f'<rect width="100%" height="100%" fill="{colors["card"]}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {start}><style>{plain}</style>{ground}{rest}\n'


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers inside a range, about as many as wanted (steps of 1, 2, 2.5 or 5 times a power of ten)."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """At most `most` points, each the mean of neighbors: a long run's curve without a megabyte of path."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    groups = [points[start:stop] for start, stop in pairwise(edges)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smoothed(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """A centered moving mean over a share of the curve, shorter at the ends."""
    reach = max(1, round(len(points) * share))
    values = [y for _, y in points]
    result = []
    for index, (x, _) in enumerate(points):
        window = values[max(0, index - reach) : index + reach + 1]
        result.append((x, sum(window) / len(window)))
    return result


def _widened(span: Range) -> Range:
    """A range of some width: one point, or a constant curve, still needs an axis."""
    low, high = span
    if high > low:
        return span
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _n(value: float, digits: int = 1) -> str:
    """A short number: charts need no more than a tenth of a pixel."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
