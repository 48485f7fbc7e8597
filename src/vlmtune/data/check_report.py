"""What `vlmtune data check` finds, as plain data and as tables of text.

Made by `check`, printed by `cli.data`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vlmtune.data.duplicates import METHOD
from vlmtune.data.split_names import Role

MAX_ROWS = 20
"""Rows of the tables of unreadable images and duplicates; `--json` lists more."""
MAX_LABELS = 60
"""Rows of the table of labels; with more, the most frequent and the rarest are listed."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An image that cannot be decoded, and why."""

    id: str
    split: Role
    label: str
    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Copy:
    """One image among duplicates."""

    id: str
    split: Role
    label: str


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Images with the same pixels."""

    copies: tuple[Copy, ...]
    across_splits: bool
    labels_differ: bool


@dataclass(frozen=True, slots=True)
class NearPair:
    """Two images that are nearly the same."""

    first: Copy
    second: Copy
    distance_bits: int
    difference_levels: float
    across_splits: bool
    labels_differ: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median and maximum of one measure."""

    min: float
    median: float
    max: float


@dataclass(slots=True)
class DuplicateCounts:
    """Total numbers of duplicates; the lists beside them are cut at `check.MAX_LISTED`."""

    groups: int = 0
    images: int = 0
    groups_across_splits: int = 0
    groups_with_different_labels: int = 0
    near_pairs: int = 0
    near_pairs_across_splits: int = 0
    near_pairs_with_different_labels: int = 0
    is_complete: bool = True
    method: str = METHOD


@dataclass(slots=True)
class CheckReport:
    """What `vlmtune data check` found. Splits are complete: limits of the experiment are listed, not applied."""

    source: str
    kind: str
    revision: str | None
    labels_from: str
    num_images: int
    counts: dict[str, int]  # by split
    counts_per_label: dict[str, dict[str, int]]  # label -> split -> images
    origins: dict[str, str]  # split -> where its images come from
    imbalance: dict[str, float | None]  # split -> most frequent / rarest label; None with a label that has none
    width: Spread | None
    height: Spread | None
    modes: dict[str, int]
    formats: dict[str, int]
    peculiarities: dict[str, int]  # what reading normalizes: rotation, transparency, frames after the first
    unreadable: list[Unreadable]
    duplicates: list[DuplicateGroup]
    near_duplicates: list[NearPair]
    duplicate_counts: DuplicateCounts
    left_out: list[dict[str, Any]]
    notes: list[str]
    limits: dict[str, float] = field(default_factory=dict)
    num_questions: int = 0  # for questions; counts are then of images, and labels are answer types


class Table(NamedTuple):
    """Cells under column names."""

    columns: list[str]
    rows: Sequence[tuple[object, ...]]
    title: str | None = None


def tables(report: CheckReport) -> Iterator[Table | str]:
    """The report from top to bottom: tables, and sentences between them."""
    yield _splits_table(report)
    yield _labels_table(report)
    facts = [
        ("width", _spread_text(report.width)),
        ("height", _spread_text(report.height)),
        ("formats", counts_text(report.formats)),
        ("modes", counts_text(report.modes)),
        *((name, f"{count:,}") for name, count in report.peculiarities.items()),
    ]
    yield Table(["images", ""], facts)
    yield from _duplicate_tables(report)
    if report.unreadable:
        files = [(item.file, item.split, item.label, item.reason) for item in report.unreadable[:MAX_ROWS]]
        yield Table(["file", "split", "label", "reason"], files, first_rows("Unreadable", len(report.unreadable)))
    left_out = [(item["reason"], item["count"], ", ".join(item["examples"])) for item in report.left_out]
    if left_out:
        yield Table(["left out", "count", "such as"], left_out)
    notes = [*report.notes]
    if report.limits:
        limits = ", ".join(f"{name} {value:g}" for name, value in report.limits.items())
        notes.append(f"the experiment uses less than is counted here: {limits}")
    yield from (f"Note: {note}." for note in notes)


def first_rows(title: str, num: int) -> str:
    """A table's title, with a note if only the first of ``num`` rows are listed."""
    return f"{title} (first {MAX_ROWS} of {num:,}; more with --json)" if num > MAX_ROWS else title


def counts_text(counts: dict[str, int]) -> str:
    """`JPEG 1,234, PNG 5`."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _splits_table(report: CheckReport) -> Table:
    title = f"{report.source}: {report.kind}" + (f", revision {report.revision}" if report.revision else "")
    rows = [
        (
            split,
            count,
            "–" if report.num_questions else _imbalance_text(report.imbalance[split], count),
            report.origins[split],
        )
        for split, count in report.counts.items()
    ]
    return Table(["split", "images", "most / fewest a label", "from"], rows, title)


def _labels_table(report: CheckReport) -> Table:
    splits = list(report.counts)
    labels = list(report.counts_per_label.items())
    title = f"{len(labels)} labels, from {report.labels_from}"
    if report.num_questions:
        title = f"{report.num_questions:,} questions by type of answer; {report.labels_from}"
    if len(labels) > MAX_LABELS:
        by_count = sorted(labels, key=lambda item: -sum(item[1].values()))
        labels = by_count[: MAX_LABELS // 2] + by_count[-MAX_LABELS // 2 :]
        title += f"; the {MAX_LABELS // 2} most frequent and the {MAX_LABELS // 2} rarest (all with --json)"
    name = "answers" if report.num_questions else "label"
    rows = [(label or "no type", *(counts[split] for split in splits)) for label, counts in labels]
    return Table([name, *splits], rows, title)


def _duplicate_tables(report: CheckReport) -> Iterator[Table | str]:
    counts = report.duplicate_counts
    rows = [
        (
            f"same pixels (groups; {counts.images:,} images)",
            counts.groups,
            counts.groups_across_splits,
            counts.groups_with_different_labels,
        ),
        (
            "nearly the same (pairs)",
            counts.near_pairs,
            counts.near_pairs_across_splits,
            counts.near_pairs_with_different_labels,
        ),
    ]
    yield Table(["duplicates", "all", "across splits", "labels differ"], rows)
    yield f"Nearly the same: {counts.method}."
    if not counts.is_complete:
        yield "The search for nearly equal images gave up: too many are alike (blank images?). Counts are a part."
    columns = ["images", "across splits", "labels differ"]
    if report.duplicates:
        groups = [
            (_copies_text(group.copies), _yes(group.across_splits), _yes(group.labels_differ))
            for group in report.duplicates[:MAX_ROWS]
        ]
        yield Table(columns, groups, first_rows("Same pixels", counts.groups))
    if report.near_duplicates:
        pairs = [
            (_copies_text((p.first, p.second)), _yes(p.across_splits), _yes(p.labels_differ), f"{p.distance_bits} bits")
            for p in report.near_duplicates[:MAX_ROWS]
        ]
        yield Table([*columns, "distance"], pairs, first_rows("Nearly the same", counts.near_pairs))


def _copies_text(copies: tuple[Copy, ...]) -> str:
    more = f"\n… {len(copies) - 4} more" if len(copies) > 4 else ""
    lines = (f"{copy.id} [{copy.split}{f', {copy.label}' if copy.label else ''}]" for copy in copies[:4])
    return "\n".join(lines) + more


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _imbalance_text(ratio: float | None, count: int) -> str:
    if not count:
        return ""
    return "a label has none" if ratio is None else f"{ratio:g}"


def _spread_text(spread: Spread | None) -> str:
    if spread is None:
        return "none could be read"
    if spread.min == spread.max:
        return f"{spread.min:g} px"
    return f"{spread.min:g} to {spread.max:g} px, median {spread.median:g}"
