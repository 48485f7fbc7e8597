"""CIFAR-100's binary version and Stanford Cars: read and prepared without losing a row in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import miniatures
from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.read.cifar_binary import RECORD_BYTES, read_cifar_binary
from vlmtune.data.read.columns import ColumnMapper
from vlmtune.data.read.open import open_source
from vlmtune.data.splits import load_splits
from vlmtune.data.stanford_cars import prepare, split_name
from vlmtune.errors import DataError, UnreadableImageError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


# ── CIFAR-100 ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_record_s_planes_become_its_image(tmp_path: Path) -> None:
    folder = miniatures.cifar100_binary(tmp_path / "cifar", each=1)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    record = bytes([7, 51]) + pixels.transpose(2, 0, 1).tobytes()
    (folder / "test.bin").write_bytes(record)
    source = open_source(DataSection(source=str(folder)))
    (row,) = source.splits["test"]()
    assert row.answers == ("mushroom",) and np.array_equal(np.asarray(row.image.open()), pixels)
    (row,) = open_source(DataSection(source=str(folder), label_column="coarse_label")).splits["test"]()
    assert row.answers == ("group_7",)
    assert len(source.splits["train"]()) == 100 and source.class_names == tuple(miniatures.CIFAR_FINE)


def test_a_cut_off_file_and_nameless_labels_are_refused(tmp_path: Path) -> None:
    folder = miniatures.cifar100_binary(tmp_path / "cifar", each=1)
    source = read_cifar_binary(folder, ColumnMapper(DataSection(source=str(folder)), has_questions=False))
    rows = source.splits["train"]()
    whole = (folder / "train.bin").read_bytes()
    (folder / "train.bin").write_bytes(whole[:-5])
    with pytest.raises(DataError, match="expected a multiple of 3,074"):
        source.splits["train"]()
    with pytest.raises(UnreadableImageError, match=r"record 99.*ends within this record"):
        rows[-1].image.open()
    (folder / "train.bin").write_bytes(bytes([0, 100]) + whole[2:RECORD_BYTES])
    with pytest.raises(DataError, match=r"record 0: the label is 100, and there are 100 names"):
        source.splits["train"]()
    with pytest.raises(DataError, match="Unknown column 'label'"):
        read_cifar_binary(
            folder, ColumnMapper(DataSection(source=str(folder), label_column="label"), has_questions=False)
        )


# ── Stanford Cars ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Acura RL Sedan 2012", ("Acura", "RL Sedan", "2012")),
        ("Aston Martin V8 Vantage Coupe 2012", ("Aston Martin", "V8 Vantage Coupe", "2012")),
        ("AM General Hummer SUV 2000", ("AM General", "Hummer SUV", "2000")),
        ("Land Rover Range Rover SUV 2012", ("Land Rover", "Range Rover SUV", "2012")),
        ("Rolls-Royce Phantom Drophead Coupe Convertible 2012",
         ("Rolls-Royce", "Phantom Drophead Coupe Convertible", "2012")),
        ("Mercedes-Benz 300-Class Convertible 1993", ("Mercedes-Benz", "300-Class Convertible", "1993")),
        ("Ram C/V Cargo Van Minivan 2012", ("Ram", "C/V Cargo Van Minivan", "2012")),
        ("HUMMER H3T Crew Cab 2010", ("HUMMER", "H3T Crew Cab", "2010")),
    ],
)  # fmt: skip
def test_a_full_name_is_make_model_and_year(name: str, expected: tuple[str, str, str]) -> None:
    assert split_name(name) == expected


@pytest.mark.parametrize("name", ["Acura", "Acura RL Sedan", "Acura 2012", "aquarium_fish"])
def test_a_name_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is not the name of a car"):
        split_name(name)


def test_prepared_cars_have_columns_for_make_model_and_year(tmp_path: Path) -> None:
    hub = miniatures.stanford_cars(tmp_path / "hub", each=4)
    prepared = prepare(tmp_path / "cars", str(hub))
    assert prepared.splits["train"].formats == {"JPEG": 31, "PNG": 1}
    assert {split: found.images for split, found in prepared.splits.items()} == {"train": 32, "test": 32}
    assert prepared.makes == [
        "Acura", "AM General", "Aston Martin", "Land Rover", "Mercedes-Benz", "Rolls-Royce", "smart",
    ]  # fmt: skip
    by_make = load_splits(DataSection(source=str(prepared.folder), label_column="make"), TaskSection(), 0)
    by_car = load_splits(DataSection(source=str(prepared.folder), label_column="car"), TaskSection(), 0)
    assert by_make.labels is not None and by_car.labels is not None
    assert len(by_make.test) == len(by_car.test) == 32
    assert list(by_make.labels.stored) == prepared.makes and list(by_car.labels.stored) == list(miniatures.CARS)
    for make, car in zip(by_make.test, by_car.test, strict=True):
        assert split_name(car.label).make == make.label and make.image.read() == car.image.read()
    years = load_splits(DataSection(source=str(prepared.folder), label_column="year"), TaskSection(), 0)
    assert years.labels is not None and set(years.labels.stored) == {"2000", "2008", "2012"}


def test_images_that_are_left_out_are_counted_and_named(tmp_path: Path) -> None:
    import datasets

    label = datasets.ClassLabel(names=list(miniatures.CARS))
    columns = {
        "image": [{"bytes": data, "path": None} for data in (miniatures.make_image(0, 0), b"no image")] * 2,
        "label": [0, 1, 2, 3],
    }
    columns["image"][2] = {"bytes": miniatures.make_image(2, 0, kind="JPEG"), "path": None}
    hub = miniatures.write_hub_folder(
        tmp_path / "hub", {"train": columns, "test": columns}, {"image": datasets.Image(), "label": label}
    )
    found = prepare(tmp_path / "cars", str(hub)).splits["test"]
    assert (found.images, found.left_out) == (2, 0)
    assert [name.rpartition(", ")[2] for name in found.unreadable] == ["row 1", "row 3"]
    found = prepare(tmp_path / "jpeg", str(hub), jpeg_only=True).splits["test"]
    assert (found.images, found.left_out, len(found.unreadable)) == (1, 1, 2)


def test_nothing_is_written_over_and_other_sets_are_refused(tmp_path: Path) -> None:
    hub = miniatures.stanford_cars(tmp_path / "hub", each=1)
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        prepare(tmp_path / "cars", str(hub))
    with pytest.raises(DataError, match="has no split 'test'"):
        prepare(tmp_path / "pets", str(miniatures.cats_vs_dogs(tmp_path / "pets-hub")))
    with pytest.raises(DataError, match="'calling' is not the name of a car"):
        prepare(tmp_path / "actions", str(miniatures.human_actions(tmp_path / "actions-hub", each=1)))
    assert not (tmp_path / "pets").exists() and not (tmp_path / "actions").exists()
