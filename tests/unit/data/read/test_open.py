"""Readers: every kind of source gives the same rows, and what cannot be used is named with its place."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.read.open import is_hub_id, open_source
from vlmtune.data.splits import load_splits
from vlmtune.errors import DataError

pytestmark = pytest.mark.unit

COLORS = {"red": (200, 10, 10), "green": (10, 200, 10), "blue": (10, 10, 200)}


def make_image(color: str, number: int = 0, side: int = 8) -> Image.Image:
    image = Image.new("RGB", (side, side), COLORS[color])
    image.putpixel((0, 0), (number, number // 256, 7))  # no two files alike
    return image


def encoded(color: str, number: int = 0) -> bytes:
    file = io.BytesIO()
    make_image(color, number).save(file, "PNG")
    return file.getvalue()


def class_folder(root: Path, color: str, num: int, start: int = 0) -> None:
    (root / color).mkdir(parents=True, exist_ok=True)
    for number in range(start, start + num):
        make_image(color, number).save(root / color / f"{number}.png")


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def load(source: Path | str, task: TaskSection | None = None, **keys: object):
    return load_splits(DataSection(source=str(source), **keys), task or TaskSection(), 0)


def write_csv(folder: Path, text: str, name: str = "labels.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, color in enumerate(COLORS):
        make_image(color, number).save(folder / f"{color}.png")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


# --- class folders


def test_class_folders_inside_split_folders_keep_their_split(tmp_path: Path) -> None:
    for split, num in (("train", 6), ("val", 2), ("test", 3)):
        for color in COLORS:
            class_folder(tmp_path / split, color, num)
    splits = load(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 6, 9)
    assert splits.labels is not None
    assert splits.labels.stored == ("blue", "green", "red")
    assert splits.test[0].id == "test/blue/0.png"
    assert splits.test[0].label == "blue"
    assert splits.test[0].image.open().size == (8, 8)


def test_classes_named_like_splits_stay_classes(tmp_path: Path) -> None:
    class_folder(tmp_path, "red", 3)
    (tmp_path / "red").rename(tmp_path / "train")
    class_folder(tmp_path, "blue", 3)
    assert {row.answers[0] for row in open_source(DataSection(source=str(tmp_path))).splits["all"]()} == {
        "train",
        "blue",
    }


def test_other_files_and_loose_images_are_counted(tmp_path: Path) -> None:
    for color in COLORS:
        class_folder(tmp_path, color, 4)
    (tmp_path / "red" / "notes.txt").write_text("x")
    (tmp_path / "red" / "photo.HEIC").write_bytes(b"x")
    (tmp_path / "blue" / ".DS_Store").write_text("x")
    make_image("red").save(tmp_path / "cover.png")
    left_out = {item["reason"]: item for item in load(tmp_path).description["left_out"]}
    assert left_out["files that are not images by name"]["count"] == 3
    assert ".heic (1)" in left_out["files that are not images by name"]["examples"]
    assert left_out["images outside any class folder"]["examples"] == ("cover.png",)


def test_odd_file_names_upper_case_suffixes_and_links_are_read(tmp_path: Path) -> None:
    class_folder(tmp_path / "in", "red", 4)
    folder = tmp_path / "in" / "grüne Äpfel"
    folder.mkdir()
    for name in ("ein Bild.PNG", "写真.JpEg", "a,b;c.png"):
        make_image("green").save(folder / name, "PNG")
    (folder / "deep").mkdir()
    make_image("green", 9).save(folder / "deep" / "x.png")
    (folder / "deep" / "round").symlink_to(folder)  # must not go round for ever
    class_folder(tmp_path / "elsewhere", "blue", 3)
    (tmp_path / "in" / "blue").symlink_to(tmp_path / "elsewhere" / "blue")
    rows = open_source(DataSection(source=str(tmp_path / "in"))).splits["all"]()
    labels = [row.answers[0] for row in rows]
    assert (labels.count("red"), labels.count("grüne Äpfel"), labels.count("blue")) == (4, 4, 3)
    assert all(row.image.open().mode == "RGB" for row in rows)
    assert "grüne Äpfel/ein Bild.PNG" in {row.id for row in rows}


def test_decomposed_unicode_folder_is_the_same_class(tmp_path: Path) -> None:
    for split, name in (("train", "café"), ("test", "cafe\u0301")):
        class_folder(tmp_path / split, "red", 3)
        class_folder(tmp_path / split, "blue", 3)
        (tmp_path / split / "red").rename(tmp_path / split / name)
    splits = load(tmp_path)
    assert splits.labels is not None
    assert splits.labels.stored == ("blue", "café")


def test_broken_link_stays_an_example(tmp_path: Path) -> None:
    class_folder(tmp_path, "red", 2)
    class_folder(tmp_path, "blue", 2)
    (tmp_path / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    rows = open_source(DataSection(source=str(tmp_path))).splits["all"]()
    assert "red/gone.png" in {row.id for row in rows}


def test_empty_class_folder_is_an_error_naming_it(tmp_path: Path) -> None:
    class_folder(tmp_path / "train", "red", 2)
    (tmp_path / "train" / "green").mkdir()
    (tmp_path / "train" / "green" / "list.txt").write_text("x")
    with pytest.raises(DataError, match=r"train/green: this class folder has no images.*\.txt \(1\)"):
        load(tmp_path)


def test_folder_without_classes_explains_the_layout(tmp_path: Path) -> None:
    make_image("red").save(tmp_path / "1.png")
    with pytest.raises(DataError, match=r"no class folders in it, but 1 images without a label. Expected"):
        load(tmp_path)


# --- tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "image,label\nred.png,red\ngreen.png,green\nblue.png,blue\n"),
        ("labels.csv", "\ufefffile_name;class\r\nred.png;red\r\n\r\ngreen.png;green\r\nblue.png;blue\r\n"),
        ("labels.tsv", "path\tcategory\nred.png\tred\ngreen.png\tgreen\nblue.png\t blue \n"),
        (
            "labels.jsonl",
            "\n".join(json.dumps({"img": f"{color}.png", "label": color, "by": "me\u2028"}) for color in COLORS),
        ),
    ],
)
def test_tables_of_any_dialect_give_the_same_rows(tmp_path: Path, name: str, text: str) -> None:
    source = open_source(DataSection(source=str(write_csv(tmp_path, text, name))))
    rows = source.splits["all"]()
    assert [(row.id, row.answers[0]) for row in rows] == [(f"{color}.png", color) for color in COLORS]


def test_words_and_numbers_in_a_table_stay_text(tmp_path: Path) -> None:
    table = write_csv(tmp_path, "image,label\nred.png,yes\ngreen.png,no\nblue.png,1\n")
    assert [row.answers[0] for row in open_source(DataSection(source=str(table))).splits["all"]()] == ["yes", "no", "1"]


def test_a_missing_image_is_named_with_file_and_line(tmp_path: Path) -> None:
    table = write_csv(tmp_path, 'image,label,why\nred.png,red,"two\nlines"\ngone.png,green,"two\nlines"\nblue.png,,\n')
    with pytest.raises(DataError) as caught:
        load(table)
    assert f"{table}, line 4: there is no image file {tmp_path / 'gone.png'}" in str(caught.value)
    assert f"{table}, line 6: the label (column 'label') is empty" in str(caught.value)


def test_a_missing_column_lists_the_columns(tmp_path: Path) -> None:
    table = write_csv(tmp_path, "image,color,shape\nred.png,red,x\n")
    with pytest.raises(DataError, match=r"no column for the label.*Columns: image, color, shape.*data.label_column"):
        load(table)
    with pytest.raises(DataError, match=r"Unknown column 'colr'. Did you mean 'color'\?"):
        load(table, label_column="colr")


def test_a_short_row_and_bad_json_name_their_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels.csv, line 3: this row has 3 cells, the header has 2"):
        load(write_csv(tmp_path, "image,label\nred.png,red\ngreen.png,green,extra\n"))
    with pytest.raises(DataError, match=r"labels.jsonl, line 2: this is not valid JSON"):
        load(write_csv(tmp_path, '{"image": "red.png", "label": "red"}\n{"image"\n', "labels.jsonl"))


def test_a_split_column_and_one_table_a_split_agree(tmp_path: Path) -> None:
    lines = [(f"{color}.png", color) for color in COLORS] * 2
    one = write_csv(
        tmp_path / "one",
        "image,label,split\n" + "".join(f"{a},{b},{'train' if i < 3 else 'test'}\n" for i, (a, b) in enumerate(lines)),
    )
    two = tmp_path / "two"
    write_csv(two, "image,label\n" + "".join(f"{a},{b}\n" for a, b in lines[:3]), "train.csv")
    write_csv(two, "image,label\n" + "".join(f"{a},{b}\n" for a, b in lines[3:]), "test.csv")
    first, second = open_source(DataSection(source=str(one))), open_source(DataSection(source=str(two)))
    for split in ("train", "test"):
        assert [row.answers for row in first.splits[split]()] == [row.answers for row in second.splits[split]()]
    ids = [row.id for source in (first, second) for row in source.splits["train"]() + source.splits["test"]()]
    assert len(set(ids)) == 6  # the same image on two rows has two ids, the same in both layouts


# --- parquet, datasets folders, hub


def parquet_folder(root: Path, rows: Callable[[str], list[dict[str, object]]], readme: str = "") -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows(split)), root / "data" / f"{split}-00000-of-00001.parquet")
    if readme:
        (root / "README.md").write_text(readme)
    return root


def struct_rows(label: Callable[[int], object]) -> Callable[[str], list[dict[str, object]]]:
    def rows(split: str) -> list[dict[str, object]]:
        num = 9 if split == "train" else 6
        start = 0 if split == "train" else 100
        return [
            {"img": {"bytes": encoded(list(COLORS)[i % 3], start + i), "path": f"{i}.png"}, "label": label(i % 3)}
            for i in range(num)
        ]

    return rows


CARD = """---
dataset_info:
  features:
  - name: img
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': red
          '1': green
          '2': blue
  splits:
  - name: train
    num_examples: 9
  - name: test
    num_examples: 6
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test-*
---
"""


def test_class_names_come_from_the_hub_card(hub_cache: Path) -> None:
    folder = parquet_folder(hub_cache / "colors", struct_rows(lambda i: i), CARD)
    splits = load(folder)
    assert splits.labels is not None
    assert splits.labels.stored == ("red", "green", "blue")
    assert (len(splits.train) + len(splits.validation), len(splits.test)) == (9, 6)
    assert [example.label for example in splits.test] == ["red", "green", "blue"] * 2
    assert splits.test[1].id == "test/1"
    pixel = splits.test[1].image.open().getpixel((4, 4))
    assert pixel == COLORS["green"]


def test_pickled_image_of_a_table_carries_its_bytes_only(hub_cache: Path) -> None:
    import pickle

    folder = parquet_folder(hub_cache / "colors", struct_rows(lambda i: i), CARD)
    image = load(folder).test[0].image
    again = pickle.loads(pickle.dumps(image))
    assert again.read() == image.read() == encoded("red", 100)
    assert len(pickle.dumps(image)) < 2 * len(image.read()) + 200


def test_numbers_with_names_equal_text_labels(hub_cache: Path) -> None:
    names = {"2": "blue", "0": "red", "1": "green"}
    numbers = parquet_folder(hub_cache / "numbers", struct_rows(lambda i: i))
    text = parquet_folder(hub_cache / "text", struct_rows(lambda i: list(COLORS)[i]))
    mapped = load(numbers, TaskSection(label_names=names))
    assert mapped.labels is not None
    assert mapped.labels.stored == ("2", "0", "1")  # the mapping's order
    assert mapped.labels.shown == (("blue",), ("red",), ("green",))
    assert mapped.test[0].label == "0"
    plain = load(text)
    assert plain.labels is not None
    assert [example.label for example in plain.test] == [
        mapped.labels.shown[mapped.labels.index(example.label)][0] for example in mapped.test
    ]


def test_class_indices_in_a_mapping_mean_the_named_classes(hub_cache: Path) -> None:
    folder = parquet_folder(hub_cache / "colors", struct_rows(lambda i: i), CARD)
    labels = load(folder, TaskSection(label_names={"0": "crimson", "2": ["navy", "dark blue"]})).labels
    assert labels is not None
    assert labels.stored == ("red", "green", "blue")
    assert labels.shown == (("crimson",), ("green",), ("navy", "dark blue"))


def test_unlabeled_split_and_label_beyond_the_names_are_errors(hub_cache: Path) -> None:
    def rows(split: str) -> list[dict[str, object]]:
        return struct_rows(lambda i: -1 if split == "test" else i)(split)

    folder = parquet_folder(hub_cache / "colors", rows, CARD)
    with pytest.raises(DataError, match=r"split 'test', row 0: the label is -1, which means unlabeled"):
        load(folder)


def test_single_parquet_file_and_saved_folder_are_read(hub_cache: Path) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "answer": datasets.Value("string"), "y": datasets.ClassLabel(names=["a", "b"])}
    )
    columns = {
        "image": [{"bytes": encoded("red", i), "path": None} for i in range(12)],
        "answer": ["x"] * 12,
        "y": [0, 1] * 6,
    }
    dataset = datasets.Dataset.from_dict(columns, features=features)
    dataset.to_parquet(str(hub_cache / "one.parquet"))
    dataset.select(range(11, -1, -1)).save_to_disk(str(hub_cache / "saved"))
    one, saved = load(hub_cache / "one.parquet"), load(hub_cache / "saved")
    assert one.labels == saved.labels
    assert one.labels is not None
    assert one.labels.stored == ("a", "b")
    everything = [*one.train, *one.validation, *one.test]
    assert {example.image.read() for example in everything} == {encoded("red", i) for i in range(12)}
    reversed_rows = open_source(DataSection(source=str(hub_cache / "saved")))
    first = next(iter(reversed_rows.splits.values()))()[0]
    assert (first.image.read(), first.answers) == (encoded("red", 11), ("b",))


def test_two_class_columns_ask_for_a_choice(hub_cache: Path) -> None:
    import datasets

    names = datasets.ClassLabel(names=["a", "b"])
    features = datasets.Features({"img": datasets.Image(), "fine_label": names, "coarse_label": names})
    columns = {"img": [{"bytes": encoded("red"), "path": None}], "fine_label": [0], "coarse_label": [1]}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(hub_cache / "saved"))
    with pytest.raises(DataError, match=r"several columns could hold the label \(fine_label, coarse_label\)"):
        load(hub_cache / "saved")


def test_a_damaged_parquet_file_is_a_data_error(hub_cache: Path) -> None:
    (hub_cache / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"bad.parquet: cannot load this data set"):
        load(hub_cache / "bad.parquet")


def test_hub_ids_pass_revision_and_subset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def fake(path: str, /, **keys: object):
        asked.update(keys, source=path)
        columns = {"image": [{"bytes": encoded("red", i), "path": None} for i in range(4)], "label": ["x", "y"] * 2}
        dataset = datasets.Dataset.from_dict(columns, split=datasets.Split.TEST)
        dataset.info.download_checksums = {"hf://datasets/me/pets@0123abc/data/test.parquet": {}}
        return datasets.DatasetDict({"test": dataset})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    splits = load("me/pets", revision="v2", subset="small")
    assert asked == {"source": "me/pets", "revision": "v2", "name": "small"}
    assert (len(splits.train), len(splits.test)) == (0, 4)
    assert splits.description["revision"] == "0123abc"


def test_paths_are_told_from_hub_ids(tmp_path: Path) -> None:
    assert is_hub_id("uoft-cs/cifar100")
    assert is_hub_id("mnist")
    assert not any(map(is_hub_id, ("./photos", "a/b/c", "/data/x", "photos/labels.csv", "~/x", "one.parquet")))
    with pytest.raises(DataError, match=r"there is no such file or folder"):
        load(tmp_path / "absent")
    with pytest.raises(DataError, match=r"Did you mean 'builtin:digits'"):
        load("builtin:digit")


# --- built-in


def test_digits_are_rgb_images_with_a_fixed_test_split() -> None:
    splits = load("builtin:digits")
    other = load_splits(DataSection(), TaskSection(), 7)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1293, 144, 360)
    assert [example.id for example in splits.test] == [example.id for example in other.test]
    assert [example.id for example in splits.train] != [example.id for example in other.train]
    assert splits.labels is not None
    assert splits.labels.stored == tuple("0123456789")
    assert splits.train[0].image.open().size == (64, 64)
