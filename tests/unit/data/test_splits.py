"""Splits and label sets: seeded, stratified, the same on every file system; a label outside the set is an error."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.duplicates import group_identical_files
from vlmtune.data.labels import build_label_set
from vlmtune.data.sampling import hold_out, stratified_order, subset
from vlmtune.data.split_names import assign_roles
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import DataError
from vlmtune.records import Example, ImageSource

pytestmark = pytest.mark.unit


def row(number: int, label: str, content: bytes | None = None) -> Example:
    data = content if content is not None else f"{number}".encode()
    return Example(f"{label}/{number}", ImageSource(data=data), (label,), origin=f"somewhere, row {number}")


counts_per_label = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), min_size=1)


# --- stratified order


@settings(deadline=None, max_examples=60)
@given(counts_per_label, st.integers(0, 5), st.randoms())
def test_order_does_not_depend_on_the_order_of_the_input(
    counts: dict[str, int], seed: int, shuffler: random.Random
) -> None:
    items = [(f"{label}/{i}", label) for label, num in counts.items() for i in range(num)]
    shuffled = list(items)
    shuffler.shuffle(shuffled)

    def ordered(pairs: list[tuple[str, str]]) -> list[str]:
        ids = [pair[0] for pair in pairs]
        return [ids[i] for i in stratified_order(ids, [pair[1] for pair in pairs], seed, "test")]

    assert ordered(items) == ordered(shuffled)


@settings(deadline=None, max_examples=60)
@given(counts_per_label, st.floats(0.05, 1.0))
def test_every_beginning_of_the_order_is_stratified(counts: dict[str, int], share: float) -> None:
    items = [(f"{label}/{i}", label) for label, num in counts.items() for i in range(num)]
    num = round(share * len(items))
    order = stratified_order([i for i, _ in items], [label for _, label in items], 0, "test")
    taken = Counter(items[position][1] for position in order[:num])
    for label, count in counts.items():
        # Webster's method may leave the quota by more than one only in contrived cases; two is a safe bound here.
        assert abs(taken[label] - num * count / len(items)) < 2


def test_subsets_have_every_label_and_are_nested() -> None:
    examples = [
        Example(f"{label}/{i}", ImageSource(data=b""), (label,))
        for label, n in (("a", 90), ("b", 9), ("c", 1))
        for i in range(n)
    ]
    small, large = subset(examples, 3, 0), subset(examples, 40, 0)
    assert {example.label for example in small} == {"a", "b", "c"}
    assert {example.id for example in small} < {example.id for example in large}
    assert [e.id for e in large] == [e.id for e in examples if e in large]
    assert {e.id for e in subset(examples, 40, 1)} != {e.id for e in large}


# --- holding out


@settings(deadline=None, max_examples=60)
@given(counts_per_label, st.floats(0.01, 0.9), st.integers(0, 3))
def test_held_out_images_are_disjoint_and_leave_every_label_one(
    counts: dict[str, int], share: float, seed: int
) -> None:
    rows = [row(i, label) for label, num in counts.items() for i in range(num)]
    rows = [Example(r.id, ImageSource(data=r.id.encode()), r.answers, origin=r.origin) for r in rows]
    kept, held, twins = hold_out(rows, share, seed, "validation")
    assert sorted(r.id for r in kept + held) == sorted(r.id for r in rows)
    assert {r.answers for r in kept} == {r.answers for r in rows}
    assert twins == 0


def test_identical_files_are_held_out_together_and_counted() -> None:
    # Every file exists three times under different names, with labels that partly disagree.
    rows = [row(3 * i + j, "ab"[(i + (j == 2)) % 2], f"image {i}".encode()) for i in range(40) for j in range(3)]
    kept, held, twins = hold_out(rows, 0.25, 0, "test")
    assert twins == 120
    assert 27 <= len(held) <= 30
    assert not {r.image.data for r in kept} & {r.image.data for r in held}


def test_files_of_equal_length_are_told_apart_by_content(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one"), ("d", b"longer")):
        (tmp_path / name).write_bytes(content)
    images = [ImageSource(path=tmp_path / name) for name in ("a", "b", "c", "d", "absent")]
    assert group_identical_files(images) == [0, 1, 0, 3, 4]


def folder(root: Path, order: list[int]) -> Path:
    for number in order:
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{number}".encode())
    return root


def ids(splits: Splits) -> tuple[list[str], ...]:
    return tuple([example.id for example in part] for part in (splits.train, splits.validation, splits.test))


def test_a_seed_decides_the_split_wherever_files_are(tmp_path: Path) -> None:
    numbers = list(range(60))
    first = folder(tmp_path / "one", numbers)
    second = folder(tmp_path / "two", numbers[::-1])
    third = tmp_path / "three"
    shutil.copytree(first, third)
    parts = [ids(load_splits(DataSection(source=str(root)), TaskSection(), 3)) for root in (first, second, third)]
    assert parts[0] == parts[1] == parts[2]
    other = ids(load_splits(DataSection(source=str(first)), TaskSection(), 4))
    assert other[1] != parts[0][1]
    assert other[2] == parts[0][2]  # the test images never change sides with the seed


def test_fraction_and_limits_shorten_and_are_accounted_for(tmp_path: Path) -> None:
    source = str(folder(tmp_path, list(range(100))))
    whole = load_splits(DataSection(source=source), TaskSection(), 0)
    part = load_splits(DataSection(source=source, fraction=0.5, limit=10, limit_test=4), TaskSection(), 0)
    assert (len(part.train), len(part.validation), len(part.test)) == (10, 8, 4)
    assert set(ids(part)[0]) < set(ids(whole)[0])
    assert ids(part)[1] == ids(whole)[1]
    described = part.description["splits"]
    assert (described["train"]["found"], described["train"]["used"]) == (72, 10)
    assert described["train"]["per_label"] == {"a": 5, "b": 5}
    reasons = {item["reason"]: item["count"] for item in part.description["left_out"]}
    assert reasons == {"data.fraction 0.5 and data.limit 10 (train)": 62, "data.limit_test 4 (test)": 16}
    assert described["test"]["fingerprint"] != whole.description["splits"]["test"]["fingerprint"]


def test_a_label_s_only_image_is_not_held_out(tmp_path: Path) -> None:
    splits = load_splits(DataSection(source=str(folder(tmp_path, [0, 1]))), TaskSection(), 0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (2, 0, 0)
    assert any("no test image could be held out" in note for note in splits.description["notes"])


# --- roles


def test_roles_are_recognized_or_asked_for() -> None:
    assert assign_roles(DataSection(), ["test", "train", "val"], "x") == {
        "train": "train",
        "validation": "val",
        "test": "test",
    }
    assert assign_roles(DataSection(), ["all"], "x") == {"train": "all"}
    assert assign_roles(DataSection(test_split="validation"), ["train", "validation", "test"], "x") == {
        "train": "train",
        "test": "validation",
    }
    with pytest.raises(DataError, match=r"Unknown split 'tets'. Did you mean 'test'\?"):
        assign_roles(DataSection(test_split="tets"), ["train", "test"], "x")
    with pytest.raises(DataError, match="is given two roles"):
        assign_roles(DataSection(test_split="train", train_split="train"), ["train", "test"], "x")
    with pytest.raises(DataError, match="none of its splits is called 'train': even, odd"):
        assign_roles(DataSection(), ["even", "odd"], "x")


# --- labels


def label_set(task: TaskSection, labels: list[str], class_names: list[str] | None = None):
    return build_label_set(task, [row(i, label) for i, label in enumerate(labels)], class_names, "somewhere")[0]


def test_task_labels_come_before_the_source_s() -> None:
    data = ["b", "a", "b"]
    assert label_set(TaskSection(labels=["c", "b", "a"]), data, ["b", "a"]).stored == ("c", "b", "a")
    assert label_set(TaskSection(), data, ["b", "a"]).stored == ("b", "a")
    assert label_set(TaskSection(), data).stored == ("a", "b")
    assert label_set(TaskSection(), ["10", "9", "0"]).stored == ("0", "9", "10")


def test_an_unknown_label_names_its_row_and_the_nearest() -> None:
    with pytest.raises(DataError, match=r"somewhere, row 1: a label is not in task.labels.*Did you mean 'beetle'\?"):
        label_set(TaskSection(labels=["bee", "beetle"]), ["bee", "betle"])
    with pytest.raises(DataError, match=r"row 2: a label is not in task.label_names .*\(2 rows in all"):
        label_set(TaskSection(label_names={"0": "a", "1": "b"}), ["0", "1", "2", "3"])


def test_shown_names_map_back_and_must_be_told_apart() -> None:
    task = TaskSection(label_names={"aquarium_fish": ["aquarium fish", "goldfish"]})
    labels = label_set(task, ["aquarium_fish", "bee"])
    assert labels.shown == (("aquarium fish", "goldfish"), ("bee",))
    with pytest.raises(DataError, match="'bee' and 'fly' are both shown as 'insect'"):
        label_set(TaskSection(label_names={"bee": "insect", "fly": "insect"}), ["bee", "fly"])
    with pytest.raises(DataError, match=r"Unknown label 'aquariumfish'. Did you mean 'aquarium_fish'\?"):
        label_set(TaskSection(label_names={"aquariumfish": "x"}), ["aquarium_fish", "bee"])


def test_one_label_and_repeated_labels_are_errors() -> None:
    with pytest.raises(DataError, match=r"only one label \(a\)"):
        label_set(TaskSection(), ["a", "a"])
    with pytest.raises(DataError, match=r"labels hold 'a' twice"):
        label_set(TaskSection(labels=["a", "b", "a "]), ["a"])


def test_labels_without_images_are_noted(tmp_path: Path) -> None:
    source = str(folder(tmp_path, list(range(20))))
    splits = load_splits(DataSection(source=source), TaskSection(labels=["a", "b", "c"]), 0)
    assert "labels without an image in train: c" in splits.description["notes"]
