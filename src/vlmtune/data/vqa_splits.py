"""Splits of questions: by image, so that nothing of an image is in two splits and its questions stay together."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from vlmtune.data.read.rows import LeftOut, Row
from vlmtune.data.split_names import Role
from vlmtune.errors import DataError
from vlmtune.records import Example, LabelSet, usable_answers

_NUM_SHOWN = 5


def hold_out_images(rows: Sequence[Row], share: float, seed: int, purpose: str) -> tuple[list[Row], list[Row]]:
    """Cut off whole images until a share of the questions is reached; at least one image stays.

    Returns the rows kept and the rows held out, both in their order.
    """
    groups = _by_image(rows)
    target = math.ceil(share * len(rows) - 1e-9)
    held: set[int] = set()
    for image_id in _drawn_order(groups, seed, purpose)[: len(groups) - 1]:
        if len(held) >= target:
            break
        held.update(groups[image_id])
    kept = [row for position, row in enumerate(rows) if position not in held]
    return kept, [row for position, row in enumerate(rows) if position in held]


def take_images(examples: Sequence[Example], num: int, seed: int, purpose: str) -> list[Example]:
    """``num`` questions in their order: those of whole images, of the last one only as many as are left to take.

    A smaller choice is part of a larger one.
    """
    groups = _by_image(examples)
    chosen = [position for image_id in _drawn_order(groups, seed, purpose) for position in groups[image_id]]
    return [examples[position] for position in sorted(chosen[:num])]


def image_order(examples: Sequence[Example]) -> list[int]:
    """Positions in the order of the images' first questions, all questions about an image next to each other."""
    return [position for positions in _by_image(examples).values() for position in positions]


def leave_out_unlearnable(rows: dict[Role, list[Row]], closed: LabelSet | None, where: str) -> list[LeftOut]:
    """Take out of the training rows what cannot be learned from, and of validation what cannot be measured.

    That is a question whose image is missing, one without answers, and, with a closed list, a training question
    none of whose answers is in it. Test rows stay: there a missing image counts as a wrong answer.

    Raises DataError if no training question is left.
    """
    accepted = None if closed is None else frozenset(closed.stored)
    left_out: list[LeftOut] = []
    roles: tuple[Role, Role] = ("train", "validation")
    for role in roles:
        reasons: dict[str, list[str]] = defaultdict(list)
        kept: list[Row] = []
        for row in rows.get(role, []):
            if not row.has_image:
                reasons["questions whose image is missing"].append(row.image.name)
            elif not row.answers or not usable_answers(row.answers):
                reasons["questions without answers"].append(row.origin)
            elif role == "train" and accepted is not None and not usable_answers(row.answers, accepted):
                reasons["questions none of whose answers is in task.labels"].append(row.origin)
            else:
                kept.append(row)
        found = [
            LeftOut(f"{reason} ({role})", len(names), tuple(dict.fromkeys(names))[:_NUM_SHOWN])
            for reason, names in reasons.items()
        ]
        if role == "train" and rows.get(role) and not kept:
            told = "; ".join(f"{item.count} {item.reason}, such as {item.examples[0]}" for item in found)
            raise DataError(
                f"{where}: there is no training question to learn from: {told}. Check data.answer_column, "
                "data.image_folder, task.labels and data.train_split."
            )
        if role in rows:
            rows[role] = kept
        left_out += found
    return left_out


def _by_image(items: Sequence[Row | Example]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        groups[item.image_id or item.id].append(position)
    return groups


def _drawn_order(image_ids: dict[str, list[int]], seed: int, purpose: str) -> list[str]:
    """An order by SHA-256 of seed, purpose and id: the same however the source lists its images."""
    return sorted(image_ids, key=lambda image_id: hashlib.sha256(f"{seed}\0{purpose}\0{image_id}".encode()).digest())
