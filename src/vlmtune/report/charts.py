"""Drawing in SVG: a canvas, axes, bars. Colors come from the page's style sheet, so a chart follows its theme.

In: plain numbers. Out: a `Chart`, drawn once, for a page or as a file. Called by every module that shows a chart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from itertools import cycle, pairwise

from markupsafe import Markup

from vlmtune.report.numbers import interval, number, percent, shortened

Point = tuple[float, float]
Range = tuple[float, float]

SUBJECT_COLOR = "s2"
_ROW = 46
_KEY = 20


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a legend: the CSS class of a color, and what it stands for."""

    color: str
    name: str


@dataclass(frozen=True, slots=True)
class Score:
    """A share that was measured, with its 95 % interval, and the CSS class of its color."""

    name: str
    value: float | None
    interval: Sequence[float] | None
    color: str = SUBJECT_COLOR


@dataclass(frozen=True, slots=True)
class Chart:
    """A finished drawing with its legend.

    Attributes:
        caption: a sentence above it, which says what is under the pointer meanwhile.
        max_width: in pixels, on a wide page; min_width: on a narrow one, which then scrolls.
    """

    canvas: Canvas
    legend: Sequence[Key] = ()
    caption: str = ""
    max_width: int = 640
    min_width: int = 0

    def svg(self) -> Markup:
        """The drawing inside a page, whose style sheet gives it colors and whose legend is text."""
        return self.canvas.render()

    def standalone(self) -> str:
        """The drawing as a file: legend below, on a white ground, in the plain colors of the light theme."""
        canvas = self.canvas
        whole = Canvas(canvas.width + 10, canvas.height + _KEY * len(self.legend) + 8, canvas.description)
        whole.elements = ['<rect width="100%" height="100%" class="paper"/>', *canvas.elements]
        for line, key in enumerate(self.legend):
            top = canvas.height + _KEY * line
            whole.rect(14, top + 2, 10, 10, f"bar {key.color}", radius=3)
            whole.text(30, top + 11, shortened(key.name, round(canvas.width / 8)), "tick")
        colors = palette()  # put in as plain values, since drawing programs do not resolve variables
        _, _, rules = style("chart.css").partition("}")  # the first rule declares the variables
        plain = re.sub(r"var\(--([\w-]+)\)", lambda match: colors[match[1]], rules)
        start, _, rest = str(whole.render()).removeprefix("<svg ").partition(">")
        size = f'width="{whole.width:.0f}" height="{whole.height:.0f}"'
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {start}><style>{plain}</style>{rest}\n'


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
        data: Mapping[str, str] | None = None,
    ) -> None:
        faded = "" if opacity is None else f' fill-opacity="{_n(opacity, 2)}"'
        rounded = f' rx="{_n(radius)}"' if radius else ""
        start = f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" class="{css}"'
        end = f"><title>{escape(title)}</title></rect>" if title else "/>"
        values = "".join(f' data-{name}="{escape(value)}"' for name, value in (data or {}).items())
        self.elements.append(f"{start}{faded}{rounded}{values}{end}")

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
        position = f'x="{_n(x)}" y="{_n(y)}"'
        self.elements.append(f"<text {position}{styled}{anchored}{turned}{sized}>{escape(content)}</text>")

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
        """A horizontal dashed line with its name, for a value without a position on x."""
        self.canvas.line(self.left, self.y(value), self.right, self.y(value), "chance")
        self.canvas.text(self.right, self.y(value) - 6, name, "tick", "end")

    def dot(self, x: float, y: float, radius: float, css: str, title: str = "") -> None:
        self.canvas.dot(self.x(x), self.y(y), radius, css, title)

    def whisker(self, x: float, low: float, high: float, css: str) -> None:
        self.canvas.line(self.x(x), self.y(low), self.x(x), self.y(high), css)


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Round numbers inside a range, about ``num`` (steps of 1, 2, 2.5 or 5 times a power of ten)."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / num
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


def color_names(are_baselines: Sequence[bool]) -> list[str]:
    """One CSS class per run: gray for a baseline, the strongest color for the last run, which the page is about."""
    others = cycle(("s1", "s3", "s4", "s5"))
    given = ["s0" if is_baseline else next(others) for is_baseline in are_baselines]
    return [*given[:-1], SUBJECT_COLOR] if given else []


def draw_bars(scores: Sequence[Score], description: str, chance: float | None = None) -> Canvas:
    """A bar for each score, with its interval; chance is a dashed line."""
    left, right = 2.0, 452.0
    canvas = Canvas(460, _ROW * len(scores) + 30, description)

    def x(share: float) -> float:
        return left + share * (right - left)

    bottom = _ROW * len(scores) + 8
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        canvas.line(x(share), bottom - 4, x(share), bottom, "axis")
        anchor = "start" if share == 0 else "end" if share == 1 else "middle"
        canvas.text(x(share), bottom + 17, percent(share, 0), "tick", anchor)
    for row, score in enumerate(scores):
        top, value = _ROW * row + 8, score.value or 0.0
        canvas.text(left, top + 12, shortened(score.name, 40), "label")
        canvas.text(right, top + 12, percent(score.value), "value", "end")
        canvas.rect(left, top + 18, right - left, 16, "track", radius=3)
        title = f"{score.name}: {percent(value)}" + (f" ({interval(score.interval)})" if score.interval else "")
        canvas.rect(left, top + 18, max(1.0, x(value) - left), 16, f"bar {score.color}", radius=3, title=title)
        if score.interval:
            low, high = (x(end) for end in score.interval)
            for css in ("whisker-halo", "whisker"):
                canvas.line(low, top + 26, high, top + 26, css)
                canvas.line(low, top + 21.5, low, top + 30.5, css)
                canvas.line(high, top + 21.5, high, top + 30.5, css)
        if chance:
            canvas.line(x(chance), top + 15, x(chance), top + 37, "chance")
    return canvas


def small_bar(share: float | None, span: Sequence[float] | None) -> Markup:
    """A bar with its interval, for a cell of a table."""
    if share is None or span is None:
        return Markup("")
    canvas = Canvas(100, 12, f"{number(share, 2)}, interval {number(span[0], 2)} to {number(span[1], 2)}")
    canvas.rect(0, 3, 100, 6, "track", radius=2)
    canvas.rect(0, 3, 100 * share, 6, f"bar {SUBJECT_COLOR}", radius=2)
    canvas.line(100 * span[0], 6, 100 * span[1], 6, "whisker")
    return canvas.render()


def round_range(shares: Sequence[float], step: float) -> Range:
    """A range of shares from one multiple of ``step`` to another that leaves a little room, inside 0 to 1."""
    low, high = (min(shares) - 0.01) / step, (max(shares) + 0.01) / step
    return max(0.0, math.floor(low) * step), min(1.0, math.ceil(high) * step)


def style(name: str) -> str:
    """A style sheet or script to embed in the page."""
    return (resources.files("vlmtune.report") / "templates" / name).read_text(encoding="utf-8")


def palette() -> dict[str, str]:
    """The light theme's colors by name, for output without a style sheet: {"s2": "#2563a8", …}."""
    return dict(re.findall(r"--([\w-]+): light-dark\((#\w+),", style("chart.css")))


def _widened(span: Range) -> Range:
    """A range of nonzero width: a single point or a constant curve still needs an axis."""
    low, high = span
    if high > low:
        return span
    margin = abs(low) * 0.1 or 1.0
    return low - margin, high + margin


def _n(value: float, digits: int = 1) -> str:
    """A short number: charts need no more than a tenth of a pixel."""
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
