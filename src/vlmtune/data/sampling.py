"""Selections of examples that depend only on ids and seed: held-out parts, subsets, orders.

Related examples stay on one side: questions about one image, and files equal byte for byte. Labels are
stratified. Called by `splits`, and by evaluation for smaller test sets.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from vlmtune.data.duplicates import group_identical_files
from vlmtune.records import Example


def subset(examples: Sequence[Example], num: int, seed: int, purpose: str = "subset") -> list[Example]:
    """A choice of at most ``num`` examples, in their order. A smaller choice is part of a larger one.

    It is stratified by label. Questions are chosen with all others about their image, so that these share its
    encoding; the last image may contribute only some.
    """
    if num >= len(examples):
        return list(examples)
    if examples[0].image_id is not None:
        groups = _by_image(examples)
        order = stratified_order(list(groups), [""] * len(groups), seed, purpose)
        members = list(groups.values())
        chosen = [position for group in order for position in members[group]]
    else:
        ids, labels = [example.id for example in examples], [example.label for example in examples]
        chosen = stratified_order(ids, labels, seed, purpose, each_first=True)
    return [examples[position] for position in sorted(chosen[:num])]


def hold_out(
    examples: Sequence[Example], share: float, seed: int, purpose: str
) -> tuple[list[Example], list[Example], int]:
    """Split off a share (rounded up), stratified by label, or for questions by image.

    Files equal byte for byte stay on one side, and every label keeps an image on the first side. Questions about one
    image stay together, and at least one image stays on the first side.

    Returns the two sides (both in their order), and how many examples have an identical twin.
    """
    target = math.ceil(share * len(examples) - 1e-9)
    if examples[0].image_id is not None:
        held, num_twins = _hold_out_images(examples, target, seed, purpose), 0
    else:
        held, num_twins = _hold_out_labels(examples, target, seed, purpose)
    rest = [example for position, example in enumerate(examples) if position not in held]
    return rest, [example for position, example in enumerate(examples) if position in held], num_twins


def _hold_out_images(examples: Sequence[Example], target: int, seed: int, purpose: str) -> set[int]:
    """Positions of whole images, until ``target`` questions are reached."""
    groups = _by_image(examples)
    members = list(groups.values())
    held: set[int] = set()
    for group in stratified_order(list(groups), [""] * len(groups), seed, purpose)[: len(groups) - 1]:
        if len(held) >= target:
            break
        held.update(members[group])
    return held


def _hold_out_labels(examples: Sequence[Example], target: int, seed: int, purpose: str) -> tuple[set[int], int]:
    """Positions of at most ``target`` examples, and how many examples have an identical twin."""
    groups: dict[int, list[int]] = defaultdict(list)
    for position, first in enumerate(group_identical_files([example.image for example in examples])):
        groups[first].append(position)
    # The smallest id represents its group, so that the order of the input does not matter.
    leaders = {min(group, key=lambda position: examples[position].id): group for group in groups.values()}
    positions = list(leaders)
    ids, labels = [examples[p].id for p in positions], [examples[p].label for p in positions]
    remaining = Counter(example.label for example in examples)
    held: set[int] = set()
    for number in stratified_order(ids, labels, seed, purpose):
        group = leaders[positions[number]]
        counts = Counter(examples[position].label for position in group)
        if len(held) + len(group) > target or any(remaining[label] <= num for label, num in counts.items()):
            continue
        held.update(group)
        remaining.subtract(counts)
    return held, sum(len(group) for group in groups.values() if len(group) > 1)


def stratified_order(
    ids: Sequence[str], strata: Sequence[str], seed: int, purpose: str, *, each_first: bool = False
) -> list[int]:
    """Positions in an order of which every prefix is a stratified sample.

    Within a stratum the order is by SHA-256 of seed, purpose and id: it does not depend on the order of the input,
    and adding one image moves others by at most one position. The r-th of n members is at
    (r + 1/2) / n, which is the Webster (Sainte-Laguë) apportionment of a sample of any size.

    Args:
        each_first: one member of every stratum comes before all others, so that no label is lost in a small sample.
    """
    ranks = [hashlib.sha256(f"{seed}\0{purpose}\0{id_}".encode()).digest() for id_ in ids]
    members: dict[str, list[int]] = defaultdict(list)
    for position, stratum in enumerate(strata):
        members[stratum].append(position)
    keyed: list[tuple[float, bytes, int]] = []
    for positions in members.values():
        positions.sort(key=ranks.__getitem__)
        for rank, position in enumerate(positions):
            quota = 0.0 if each_first and rank == 0 else (rank + 0.5) / len(positions)
            keyed.append((quota, ranks[position], position))
    return [position for _, _, position in sorted(keyed)]


def image_order(examples: Sequence[Example]) -> list[int]:
    """Positions in the order of the images' first questions, all questions about an image next to each other."""
    return [position for positions in _by_image(examples).values() for position in positions]


def _by_image(examples: Sequence[Example]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, example in enumerate(examples):
        groups[example.image_id or example.id].append(position)
    return groups
