"""Numbers formatted for people. Called by every module that writes a sentence or a table, and by the command line."""

from __future__ import annotations

from collections.abc import Sequence


def percent(value: float | None, digits: int = 1) -> str:
    """0.987 -> "98.7%"; "–" where there is no number."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign: 0.431 -> "+43.1"."""
    if value is None:
        return "–"
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def interval(pair: Sequence[float] | None) -> str:
    """[0.97, 0.99] -> "97.0 to 99.0%"."""
    return "–" if pair is None else f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}%"


def points_interval(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"{points(pair[0])} to {points(pair[1])}"


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str:
    """0.0123 -> "+0.012"."""
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """12345 -> "12,345"."""
    return "–" if value is None else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}" if value < 0.1 else f"p = {value:.2f}"


def yes_no(value: bool) -> str:
    return "yes" if value else "no"


def duration(seconds: float | None) -> str:
    """95 -> "1 min 35 s"."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def per_image(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def shortened(name: str, most: int) -> str:
    """A name shortened to fit into a chart."""
    return name if len(name) <= most else name[: most - 1] + "…"


def counted(amount: int, one: str, many: str | None = None) -> str:
    """3, "image" -> "3 images"."""
    return f"{count(amount)} {plural(amount, one, many)}"


def listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def plural(amount: int, one: str, many: str | None = None) -> str:
    return one if amount == 1 else many or (f"{one}es" if one.endswith("s") else f"{one}s")


def article(noun: str) -> str:
    """ "image" -> "an image"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def capitalized(text: str) -> str:
    """ "VQA accuracy" keeps its capitals."""
    return text[:1].upper() + text[1:]


def limit_sentences(limit: int | None, unit: str = "image") -> list[str]:
    """What a limit means for the figures; nothing where there was none."""
    if not limit:
        return []
    verb = "was" if limit == 1 else "were"
    return [f"Only {counted(limit, unit)} {verb} measured, by request (limit), not the whole split."]
