"""Reads every image and label of an experiment: counts, sizes, unreadable files, duplicates, imbalance.

Called by `vlmtune data check`. What it finds is a `check_report.CheckReport`.
"""

from __future__ import annotations

import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.check_report import CheckReport, Copy, DuplicateCounts, DuplicateGroup, NearPair, Spread, Unreadable
from vlmtune.data.duplicates import difference_hash, pixel_digest, similar_pairs, thumbnail
from vlmtune.data.prefetch import read_ahead
from vlmtune.data.split_names import ROLES, Role
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import UnreadableImageError
from vlmtune.records import Example, ImageSource

MAX_LISTED = 200
"""Duplicates listed one by one; counts always include all."""
_EXIF_ORIENTATION = 0x0112


class Progress(Protocol):
    """Counts the images that were read."""

    def advance(self, num: float = 1) -> None: ...


@dataclass(slots=True)
class _Look:
    """Findings about one image."""

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    peculiarities: tuple[str, ...] = ()
    pixels: str = ""
    hash: int = 0
    thumbnail: NDArray[np.uint8] | None = None
    problem: UnreadableImageError | None = None


def check_data(
    data: DataSection,
    task: TaskSection,
    seed: int,
    *,
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
    num_threads: int | None = None,
) -> CheckReport:
    """Read and decode every image of every split, before limits.

    Args:
        progress: opens a bar for a number of images.
        num_threads: decoders at work; Pillow leaves the interpreter free while it decodes.

    Raises DataError if loading fails (see `load_splits`). Unreadable images are listed, not raised.
    """
    limits = {
        "data.fraction": data.fraction if data.fraction < 1 else None,
        "data.limit": data.limit,
        "data.limit_validation": data.limit_validation,
        "data.limit_test": data.limit_test,
    }
    whole = data.model_copy(update={"fraction": 1.0, "limit": None, "limit_validation": None, "limit_test": None})
    splits = load_splits(whole, task, seed)
    members = _distinct_images(splits)
    images = [example.image for _, example in members]
    with nullcontext() if progress is None else progress(len(images)) as bar:
        looks = list(_look_at_all(images, num_threads, bar))

    described = splits.description["splits"]
    per_label = _counts_per_label(
        described, "per_answer_type" if task.asks_from_data or splits.labels is None else "per_label"
    )
    num_questions = sum(len(splits.split(role)) for role in ROLES) if task.asks_from_data else 0
    readable = [i for i, look in enumerate(looks) if look.problem is None]
    groups, group_counts = _exact_duplicates(members, looks, readable)
    near, near_counts = _near_duplicates(members, looks, readable)
    return CheckReport(
        source=data.source,
        kind=splits.description["kind"],
        revision=splits.description["revision"],
        labels_from=splits.description["labels_from"],
        num_images=len(members),
        counts={role: sum(its_role == role for its_role, _ in members) for role in ROLES},
        counts_per_label=per_label,
        origins={role: described[role]["from"] for role in ROLES},
        imbalance={role: _imbalance([counts[role] for counts in per_label.values()]) for role in ROLES},
        width=_spread([looks[i].width for i in readable]),
        height=_spread([looks[i].height for i in readable]),
        modes=_count(looks[i].mode for i in readable),
        formats=_count(looks[i].format for i in readable),
        peculiarities=_count(name for i in readable for name in looks[i].peculiarities),
        unreadable=[
            Unreadable(example.id, role, _label(example), look.problem.source, look.problem.reason)
            for (role, example), look in zip(members, looks, strict=True)
            if look.problem is not None
        ],
        duplicates=groups,
        near_duplicates=near,
        duplicate_counts=DuplicateCounts(**group_counts, **near_counts),
        left_out=splits.description["left_out"],
        notes=splits.description["notes"],
        limits={name: value for name, value in limits.items() if value is not None},
        num_questions=num_questions,
    )


def _distinct_images(splits: Splits) -> list[tuple[Role, Example]]:
    """One example for each image, by split: it is decoded once, and not a duplicate of itself."""
    first = {(role, e.image_id or e.id): (role, e) for role in ROLES for e in reversed(splits.split(role))}
    members: list[tuple[Role, Example]] = list(first.values())[::-1]
    return sorted(members, key=lambda member: ROLES.index(member[0]))


def _counts_per_label(described: dict[str, Any], key: str) -> dict[str, dict[str, int]]:
    """Label (or type of answer) -> split -> how many."""
    labels = dict.fromkeys(label for role in ROLES for label in described[role][key])
    return {label: {str(role): described[role][key].get(label, 0) for role in ROLES} for label in labels}


def _label(example: Example) -> str:
    """The label, in which copies of an image may disagree; empty for questions."""
    return example.label if example.question is None else ""


def _look_at_all(images: Sequence[ImageSource], num_threads: int | None, bar: Progress | None) -> Iterator[_Look]:
    for _, look in read_ahead(_look_at, images, num_threads=num_threads or min(32, 2 * (os.cpu_count() or 1))):
        if bar is not None:
            bar.advance()
        yield _Look(problem=look) if isinstance(look, UnreadableImageError) else look


def _look_at(source: ImageSource) -> _Look:
    encoded = source.read()
    image = ImageSource(data=encoded, name=str(source.path or source.name)).open()
    with Image.open(io.BytesIO(encoded)) as header:
        return _Look(
            width=image.width,
            height=image.height,
            mode=header.mode,
            format=header.format or "unknown",
            peculiarities=tuple(_peculiarities(header)),
            pixels=pixel_digest(image),
            hash=difference_hash(image),
            thumbnail=thumbnail(image),
        )


def _peculiarities(header: Image.Image) -> Iterator[str]:
    if header.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1):
        yield "turned upright by EXIF"
    if header.mode in ("RGBA", "LA", "PA") or "transparency" in header.info:
        yield "transparent, laid over white"
    if getattr(header, "n_frames", 1) > 1:
        yield "several frames, the first is used"
    if header.mode.startswith(("I", "F")):
        yield "more than 8 bits a channel, reduced to 8"
    if header.mode == "CMYK":
        yield "CMYK, converted to RGB"


def _exact_duplicates(
    members: Sequence[tuple[Role, Example]], looks: Sequence[_Look], readable: Sequence[int]
) -> tuple[list[DuplicateGroup], dict[str, Any]]:
    by_pixels: dict[str, list[int]] = defaultdict(list)
    for i in readable:
        by_pixels[looks[i].pixels].append(i)
    groups = [
        DuplicateGroup(
            tuple(_copy(members[i]) for i in group),
            _differ(members[i][0] for i in group),
            _differ(_label(members[i][1]) for i in group),
        )
        for group in by_pixels.values()
        if len(group) > 1
    ]
    groups.sort(key=lambda group: (not group.across_splits, not group.labels_differ, -len(group.copies)))
    counts = {
        "groups": len(groups),
        "images": sum(len(group.copies) for group in groups),
        "groups_across_splits": sum(group.across_splits for group in groups),
        "groups_with_different_labels": sum(group.labels_differ for group in groups),
    }
    return groups[:MAX_LISTED], counts


def _near_duplicates(
    members: Sequence[tuple[Role, Example]], looks: Sequence[_Look], readable: Sequence[int]
) -> tuple[list[NearPair], dict[str, Any]]:
    """Pairs of images whose pixels differ. One of several exact copies within a split and label represents all."""
    firsts: dict[tuple[str, Role, str], int] = {}
    for i in readable:
        role, example = members[i]
        firsts.setdefault((looks[i].pixels, role, _label(example)), i)
    chosen = list(firsts.values())
    hashes = np.array([looks[i].hash for i in chosen], dtype=np.uint64)
    thumbnails = [looks[i].thumbnail for i in chosen]
    if len(chosen) < 2:
        return [], {}
    similar = similar_pairs(hashes, np.stack([small for small in thumbnails if small is not None]))
    pairs = []
    for (left, right), distance, difference in zip(similar.pairs, similar.distances, similar.differences, strict=True):
        i, j = chosen[left], chosen[right]
        if looks[i].pixels == looks[j].pixels:
            continue
        first, second = _copy(members[i]), _copy(members[j])
        pairs.append(
            NearPair(first, second, distance, difference, first.split != second.split, first.label != second.label)
        )
    pairs.sort(key=lambda pair: (not pair.across_splits, not pair.labels_differ))
    counts = {
        "near_pairs": len(pairs),
        "near_pairs_across_splits": sum(pair.across_splits for pair in pairs),
        "near_pairs_with_different_labels": sum(pair.labels_differ for pair in pairs),
        "is_complete": similar.is_complete,
    }
    return pairs[:MAX_LISTED], counts


def _copy(member: tuple[Role, Example]) -> Copy:
    role, example = member
    return Copy(example.id, role, _label(example))


def _differ(values: Any) -> bool:
    return any(a != b for a, b in pairwise(values))


def _count(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: Sequence[int]) -> Spread | None:
    return Spread(min(values), float(np.median(values)), max(values)) if values else None


def _imbalance(counts: Sequence[int]) -> float | None:
    return round(max(counts) / min(counts), 2) if counts and min(counts) > 0 else None
