"""From an experiment to its data: train, validation and test examples, the label set, and what was left out.

The one entry of this package for training and evaluation is `load_splits`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.labels import build_label_set, normalize_bool
from vlmtune.data.read.open import open_source
from vlmtune.data.read.source import LeftOut, Source, some
from vlmtune.data.sampling import hold_out, subset
from vlmtune.data.split_names import ROLES, Role, assign_roles, parse_split
from vlmtune.errors import DataError
from vlmtune.records import Example, LabelSet, usable_answers

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
    - ``left_out``: a list of ``reason``, ``count``, ``examples``; ``notes``: sentences for the user.
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

    Splits of the source are used unchanged; a missing validation or test split is held out of the training
    images, stratified by label. The choice depends on ids and seed only, never on the order of a file system, and
    files equal byte for byte are held out together. Images are not opened; a damaged one is detected when read.

    Raises DataError, naming file and row or key, for any error in the source or the label set.
    """
    source = open_source(data, task.asks_from_data)
    roles = assign_roles(data, source.splits, source.name)
    examples = _read_roles(source, roles, task)
    every = [example for role in ROLES for example in examples.get(role, [])]
    if not every:
        raise DataError(f"{source.name}: there are no images in it.")
    labels, labels_from = None, "answers are open"
    if task.is_closed:
        labels, labels_from = build_label_set(task, every, source.class_names, source.name)

    notes = list(source.notes)
    left_out = [asdict(item) for item in source.left_out]
    left_out += _unused_splits(source, roles)

    origins = {role: f"split '{name}'" if len(source.splits) > 1 else "the source" for role, name in roles.items()}
    if examples.get("train"):
        _hold_out_missing(examples, origins, data, seed, notes)
    if labels is None or task.asks_from_data:
        left_out += [asdict(item) for item in _leave_out_unlearnable(examples, labels, source.name)]
    elif labels is not None:
        _note_labels_without_images(labels, examples, notes)

    described: dict[str, Any] = {}
    for role in ROLES:
        whole = examples.get(role, [])
        examples[role], reason = _limited(whole, role, data, seed)
        num_left_out = len(whole) - len(examples[role])
        if num_left_out:
            left_out.append({"reason": f"{reason} ({role})", "count": num_left_out, "examples": []})
        described[role] = {
            "from": origins.get(role, "nowhere: the source has no such split"),
            "found": len(whole),
            "used": len(examples[role]),
            **_counts(examples[role], labels, task),
            "fingerprint": fingerprint(examples[role]),
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


def _unused_splits(source: Source, roles: dict[Role, str]) -> list[dict[str, Any]]:
    used = {part.name for text in roles.values() for part in parse_split(text, source.splits)}
    unused = [name for name in source.splits if name not in used]
    reason = "splits that no role uses (data.train_split, data.validation_split, data.test_split)"
    return [{"reason": reason, "count": len(unused), "examples": unused}] if unused else []


def fingerprint(examples: Sequence[Example]) -> str:
    """SHA-256 over sorted ids, questions (with the turns before) and answers: equal for the same examples."""
    digest = hashlib.sha256()
    for line in sorted(
        "\0".join((e.id, *(text for turn in e.history for text in turn), e.question or "", *e.answers))
        for e in examples
    ):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _read_roles(source: Source, roles: dict[Role, str], task: TaskSection) -> dict[Role, list[Example]]:
    """The examples of every role, each split of the source read once. Raises DataError where slices overlap."""
    splits: dict[str, list[Example]] = {}
    examples: dict[Role, list[Example]] = {}
    role_of: dict[str, Role] = {}
    for role, text in roles.items():
        examples[role] = []
        for part in parse_split(text, source.splits):
            if part.name not in splits:
                splits[part.name] = [_of_task(example, task) for example in source.splits[part.name]()]
            examples[role] += splits[part.name][part.rows]
        for example in examples[role]:
            other = role_of.setdefault(example.id, role)
            if other != role:
                raise DataError(
                    f"{source.name}: {example.origin} is in the {other} and in the {role} split, so the model would be "
                    f"measured on what it learned from. Let data.{other}_split and data.{role}_split not overlap."
                )
    return examples


def _hold_out_missing(
    examples: dict[Role, list[Example]], origins: dict[Role, str], data: DataSection, seed: int, notes: list[str]
) -> None:
    """Hold a missing test and a missing validation split out of the training images."""
    whole = origins["train"]
    plans: list[tuple[Role, float, int]] = [
        ("test", data.test_fraction, TEST_SEED),
        ("validation", data.validation_fraction, seed),
    ]
    for role, share, its_seed in plans:
        if role in examples:
            continue
        train, examples[role], num_twins = hold_out(examples["train"], share, its_seed, role)
        examples["train"] = train
        how = "stratified" if not train or train[0].image_id is None else "by image"
        origins[role] = f"held out of {whole} (data.{role}_fraction {share:g}, {how}, seed {its_seed})"
        origins["train"] += f", less the {role} images"
        if num_twins:
            notes.append(
                f"{num_twins} images of {whole} are byte-for-byte copies; "
                f"copies stayed on one side when the {role} split was held out"
            )
        if not examples[role]:
            notes.append(
                f"no {role} image could be held out: every label must keep a training image. "
                f"Add images or a {role} split"
            )


def _limited(examples: list[Example], role: Role, data: DataSection, seed: int) -> tuple[list[Example], str]:
    """A split after data.fraction and data.limit…, and a description of the limits."""
    limit = {"train": data.limit, "validation": data.limit_validation, "test": data.limit_test}[role]
    num, reasons = len(examples), []
    if role == "train" and data.fraction < 1 and num:
        num = max(1, round(data.fraction * num))
        reasons.append(f"data.fraction {data.fraction:g}")
    if limit is not None and limit < num:
        num = limit
        reasons.append(f"data.limit{'' if role == 'train' else '_' + role} {limit}")
    # A limited test is the same for every seed, like the test split itself.
    return subset(examples, num, TEST_SEED if role == "test" else seed), " and ".join(reasons)


def _of_task(example: Example, task: TaskSection) -> Example:
    """The example, with bool answers as no and yes; with an open answer, it has no label to stratify by."""
    if task.is_bool:
        return replace(example, answers=tuple(map(normalize_bool, example.answers)))
    return example if task.is_closed or example.image_id is not None else replace(example, image_id=example.id)


def _leave_out_unlearnable(examples: dict[Role, list[Example]], closed: LabelSet | None, where: str) -> list[LeftOut]:
    """Remove training questions that cannot be learned from, and validation questions that cannot be measured.

    These are questions without an image or without answers, and, with closed answers, training questions
    none of whose answers is in the set. Test questions stay: there a missing image counts as a wrong answer.

    Raises DataError if no training question is left.
    """
    accepted = None if closed is None else frozenset(closed.stored)
    left_out: list[LeftOut] = []
    roles: tuple[Role, Role] = ("train", "validation")
    for role in roles:
        reasons: dict[str, list[str]] = defaultdict(list)
        usable: list[Example] = []
        for example in examples.get(role, []):
            if not example.has_image:
                reasons["questions whose image is missing"].append(example.image.name)
            elif not usable_answers(example.answers):
                reasons["questions without answers"].append(example.origin)
            elif role == "train" and accepted is not None and not usable_answers(example.answers, accepted):
                reasons["questions none of whose answers is in task.labels"].append(example.origin)
            else:
                usable.append(example)
        items = [
            LeftOut(f"{reason} ({role})", len(names), tuple(dict.fromkeys(names))[:5])
            for reason, names in reasons.items()
        ]
        if role == "train" and examples.get(role) and not usable:
            summary = "; ".join(f"{item.count} {item.reason}, such as {item.examples[0]}" for item in items)
            raise DataError(
                f"{where}: there is no training question to learn from: {summary}. Check data.answer_column, "
                "data.image_folder, task.labels and data.train_split."
            )
        if role in examples:
            examples[role] = usable
        left_out += items
    return left_out


def _counts(examples: Sequence[Example], labels: LabelSet | None, task: TaskSection) -> dict[str, Any]:
    """The counts in a split's description: labels, or for questions images and answer types."""
    if labels is None or task.asks_from_data:
        types = Counter(example.answer_type or "" for example in examples)
        images = len({example.image_id for example in examples})
        return {"per_label": {}, "images": images, "per_answer_type": dict(types)}
    counts = Counter(example.label for example in examples)
    return {"per_label": {label: counts[label] for label in labels.stored}}


def _note_labels_without_images(labels: LabelSet, examples: dict[Role, list[Example]], notes: list[str]) -> None:
    for role in ROLES:
        if not examples.get(role):
            continue
        present = {example.label for example in examples[role]}
        absent = [label for label in labels.stored if label not in present]
        if absent:
            notes.append(f"labels without an image in {role}: {some(absent, 8)}")
    folded: dict[str, str] = {}
    for label in labels.stored:
        other = folded.setdefault(label.casefold(), label)
        if other != label:
            notes.append(f"the labels '{other}' and '{label}' differ only in upper and lower case; are they one?")
