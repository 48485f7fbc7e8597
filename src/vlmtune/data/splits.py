"""From the experiment file to examples: train, validation and test, the label set, and an account of the rest.

The one entry of this package for training and evaluation is `load_splits`.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.duplicates import group_identical_files
from vlmtune.data.labels import build_label_set, normalize_bool
from vlmtune.data.read.rows import Row, Source
from vlmtune.data.read.sources import open_source
from vlmtune.data.split_names import ROLES, Role, assign_roles, parse_split
from vlmtune.data.vqa_splits import hold_out_images, leave_out_unlearnable, take_images
from vlmtune.errors import DataError
from vlmtune.records import Example, LabelSet

TEST_SEED = 0
"""Test images are held out with this seed, whatever the experiment's: two runs with different seeds are then
measured on the same images, and neither has learned from the other's test."""


@dataclass(slots=True)
class Splits:
    """Everything an experiment reads. ``description`` is plain JSON data for run.json, preflight and reports:

    - ``source``, ``kind``, ``revision``, ``seed``, ``labels_from``, ``num_labels``;
    - ``splits[role]``: ``from`` (in words), ``found`` (before limits), ``used``, ``per_label`` (of those used; empty
      for questions, which have ``images`` and ``per_answer_type`` instead), ``fingerprint`` (SHA-256 over the used
      ids and answers: equal for the same examples);
    - ``left_out``: a list of ``reason``, ``count``, ``examples``; ``notes``: sentences for a person.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    labels: LabelSet | None
    description: dict[str, Any] = field(default_factory=dict)

    def split(self, name: Role) -> list[Example]:
        """The examples of a split by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def load_splits(data: DataSection, task: TaskSection, seed: int) -> Splits:
    """Read the source and give every example its split.

    Splits that the source has are used as they are; a missing validation or test split is held out of the training
    images, stratified by label. The choice depends on ids and seed only, never on the order of a file system, and
    files equal byte for byte are held out together. Images are not opened; a damaged one shows when it is read.

    Raises DataError, naming file and row or key, for anything in the source or the label set that cannot be used.
    """
    source = open_source(data, task.asks_from_data)
    roles = assign_roles(data, source.splits, source.name)
    rows = {role: [_row_of_task(row, task) for row in members] for role, members in _read_roles(source, roles).items()}
    every = [row for role in ROLES for row in rows.get(role, [])]
    if not every:
        raise DataError(f"{source.name}: there are no images in it.")
    labels, labels_from = None, "answers are open"
    if task.is_closed:
        labels, labels_from = build_label_set(task, every, source.class_names, source.name)

    notes = list(source.notes)
    left_out = [asdict(item) for item in source.left_out]
    used_names = {part.name for text in roles.values() for part in parse_split(text, source.splits)}
    unused = [name for name in source.splits if name not in used_names]
    if unused:
        reason = "splits that no role uses (data.train_split, data.validation_split, data.test_split)"
        left_out.append({"reason": reason, "count": len(unused), "examples": unused})

    origins = {role: f"split '{name}'" if len(source.splits) > 1 else "the source" for role, name in roles.items()}
    if rows.get("train"):
        _hold_out_missing(rows, origins, data, seed, notes)
    if labels is None or task.asks_from_data:
        left_out += [asdict(item) for item in leave_out_unlearnable(rows, labels, source.name)]
    examples = {role: [_example(row) for row in rows.get(role, [])] for role in ROLES}
    if labels is not None and not task.asks_from_data:
        _note_labels_without_images(labels, examples, notes)

    described: dict[str, Any] = {}
    for role in ROLES:
        found = examples[role]
        used, reason = _limited(found, role, data, seed)
        examples[role] = used
        if len(used) < len(found):
            left_out.append({"reason": f"{reason} ({role})", "count": len(found) - len(used), "examples": []})
        described[role] = {
            "from": origins.get(role, "nowhere: the source has no such split"),
            "found": len(found),
            "used": len(used),
            **_counts(used, labels, task),
            "fingerprint": fingerprint(used),
        }
    description = {
        "source": data.source,
        "kind": source.kind,
        "revision": source.revision,
        "seed": seed,
        "labels_from": labels_from,
        "num_labels": len(labels) if labels else 0,
        "splits": described,
        "left_out": left_out,
        "notes": notes,
    }
    return Splits(examples["train"], examples["validation"], examples["test"], labels, description)


def subset(examples: Sequence[Example], num: int, seed: int, purpose: str = "subset") -> list[Example]:
    """A stratified choice of at most ``num`` examples, in their order. A smaller choice is part of a larger one.

    Questions are chosen with all others about their image, so that these share its encoding.
    """
    if num >= len(examples):
        return list(examples)
    if examples[0].image_id is not None:
        return take_images(examples, num, seed, purpose)
    order = stratified_order(
        [example.id for example in examples],
        [example.label for example in examples],
        seed,
        purpose,
        each_first=True,
    )
    return [examples[position] for position in sorted(order[:num])]


def stratified_order(
    ids: Sequence[str], strata: Sequence[str], seed: int, purpose: str, *, each_first: bool = False
) -> list[int]:
    """Positions in an order of which every beginning is a stratified sample.

    Within a stratum the order is by SHA-256 of seed, purpose and id: it does not depend on the order of the input,
    and one more image moves no other across a cut by more than a place. The r-th of n members stands at
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
            place = 0.0 if each_first and rank == 0 else (rank + 0.5) / len(positions)
            keyed.append((place, ranks[position], position))
    return [position for _, _, position in sorted(keyed)]


def hold_out(rows: Sequence[Row], share: float, seed: int, purpose: str) -> tuple[list[Row], list[Row], int]:
    """Cut off a stratified share (rounded up).

    Files equal byte for byte stay on one side, and every label keeps an image on the first side. Questions about one
    image stay together, and the share is not stratified.
    Returns the rows kept, the rows held out (both in their order) and how many rows have an identical twin.
    """
    if rows[0].image_id is not None:
        return *hold_out_images(rows, share, seed, purpose), 0
    groups: dict[int, list[int]] = defaultdict(list)
    for position, first in enumerate(group_identical_files([row.image for row in rows])):
        groups[first].append(position)
    # The least id stands for its group, so that the order of the input does not matter.
    leaders = {min(group, key=lambda position: rows[position].id): group for group in groups.values()}
    positions = list(leaders)
    ids = [rows[position].id for position in positions]
    strata = [rows[position].answers[0] for position in positions]
    remaining = Counter(row.answers[0] for row in rows)
    target = math.ceil(share * len(rows) - 1e-9)
    held: set[int] = set()
    for place in stratified_order(ids, strata, seed, purpose):
        group = leaders[positions[place]]
        wanted = Counter(rows[position].answers[0] for position in group)
        if len(held) + len(group) > target or any(remaining[label] <= num for label, num in wanted.items()):
            continue
        held.update(group)
        remaining.subtract(wanted)
    kept = [row for position, row in enumerate(rows) if position not in held]
    taken = [row for position, row in enumerate(rows) if position in held]
    return kept, taken, sum(len(group) for group in groups.values() if len(group) > 1)


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over sorted ids, questions (with the turns before) and answers: equal for the same examples."""
    digest = hashlib.sha256()
    for line in sorted(
        "\0".join((e.id, *(text for turn in e.history for text in turn), e.question or "", *e.answers))
        for e in examples
    ):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _read_roles(source: Source, roles: dict[Role, str]) -> dict[Role, list[Row]]:
    """The rows of every role, each split of the source read once. Raises DataError where slices overlap."""
    read: dict[str, list[Row]] = {}
    rows: dict[Role, list[Row]] = {}
    role_of: dict[str, Role] = {}
    for role, text in roles.items():
        rows[role] = []
        for part in parse_split(text, source.splits):
            if part.name not in read:
                read[part.name] = source.splits[part.name]()
            rows[role] += read[part.name][part.rows]
        for row in rows[role]:
            other = role_of.setdefault(row.id, role)
            if other != role:
                raise DataError(
                    f"{source.name}: {row.origin} is in the {other} and in the {role} split, so the model would be "
                    f"measured on what it learned from. Let data.{other}_split and data.{role}_split not overlap."
                )
    return rows


def _hold_out_missing(
    rows: dict[Role, list[Row]], origins: dict[Role, str], data: DataSection, seed: int, notes: list[str]
) -> None:
    """Hold a missing test and a missing validation split out of the training images."""
    whole = origins["train"]
    plans: list[tuple[Role, float, int]] = [
        ("test", data.test_fraction, TEST_SEED),
        ("validation", data.validation_fraction, seed),
    ]
    for role, share, its_seed in plans:
        if role in rows:
            continue
        rows["train"], rows[role], num_twins = hold_out(rows["train"], share, its_seed, role)
        how = "stratified" if not rows["train"] or rows["train"][0].image_id is None else "by image"
        origins[role] = f"held out of {whole} (data.{role}_fraction {share:g}, {how}, seed {its_seed})"
        origins["train"] += f", less the {role} images"
        if num_twins:
            notes.append(
                f"{num_twins} images of {whole} are byte-for-byte copies; "
                f"copies were kept on one side when the {role} split was held out"
            )
        if not rows[role]:
            notes.append(
                f"no {role} image could be held out: every label must keep a training image. "
                f"Add images or a {role} split"
            )


def _limited(examples: list[Example], role: Role, data: DataSection, seed: int) -> tuple[list[Example], str]:
    """A split after data.fraction and data.limit…, and in words what shortened it."""
    limit = {"train": data.limit, "validation": data.limit_validation, "test": data.limit_test}[role]
    num, reasons = len(examples), []
    if role == "train" and data.fraction < 1 and num:
        num = max(1, round(data.fraction * num))
        reasons.append(f"data.fraction {data.fraction:g}")
    if limit is not None and limit < num:
        num = limit
        reasons.append(f"data.limit{'' if role == 'train' else '_' + role} {limit}")
    # A limited test is the same for every seed, as the test split itself is.
    return subset(examples, num, TEST_SEED if role == "test" else seed), " and ".join(reasons)


def _row_of_task(row: Row, task: TaskSection) -> Row:
    """The row with the answers of a bool as no and yes; one with an open answer has no label to stratify by."""
    if task.is_bool:
        return replace(row, answers=tuple(map(normalize_bool, row.answers)))
    return row if task.is_closed or row.image_id is not None else replace(row, image_id=row.id)


def _example(row: Row) -> Example:
    return Example(
        row.id, row.image, row.answers, row.question, row.question_type, row.answer_type, row.image_id, row.history
    )


def _counts(examples: Sequence[Example], labels: LabelSet | None, task: TaskSection) -> dict[str, Any]:
    """What a split's description counts: its labels, or of questions their images and types of answer."""
    if labels is None or task.asks_from_data:
        types = Counter(example.answer_type or "" for example in examples)
        images = len({example.image_id for example in examples})
        return {"per_label": {}, "images": images, "per_answer_type": dict(types)}
    counts = Counter(example.label for example in examples)
    return {"per_label": {label: counts[label] for label in labels.stored}}


def _note_labels_without_images(labels: LabelSet, examples: dict[Role, list[Example]], notes: list[str]) -> None:
    for role in ROLES:
        if not examples[role]:
            continue
        present = {example.label for example in examples[role]}
        absent = [label for label in labels.stored if label not in present]
        if absent:
            shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
            notes.append(f"labels without an image in {role}: {shown}")
    folded: dict[str, str] = {}
    for label in labels.stored:
        other = folded.setdefault(label.casefold(), label)
        if other != label:
            notes.append(f"the labels '{other}' and '{label}' differ only in upper and lower case; are they one?")
