"""`data check`: what every image shows, and which images are the same."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vlmtune.config.schema import DataSection, TaskSection
from vlmtune.data.check import CheckReport, check_data
from vlmtune.data.duplicates import difference_hash, pixel_digest, similar_pairs
from vlmtune.records import ImageSource

pytestmark = pytest.mark.unit


def texture(seed: int, side: int = 32) -> Image.Image:
    """A smooth random image, as photos are: neighbors alike, far parts not."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def write(root: Path, plan: dict[str, Image.Image]) -> None:
    for name, image in plan.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    plan = {f"{split}/{label}/{i}.png": texture(hash_of(split, label, i)) for split, num in (("train", 4), ("test", 2))
            for label in ("a", "b") for i in range(num)}  # fmt: skip
    write(tmp_path, plan)
    return tmp_path


def hash_of(split: str, label: str, number: int) -> int:
    return 100 * ("train", "test").index(split) + 10 * "ab".index(label) + number


def check(folder: Path, **keys: object) -> CheckReport:
    return check_data(DataSection(source=str(folder), validation_fraction=0.1, **keys), TaskSection(), 0)


class Bar:
    """Counts what a progress bar would draw."""

    total = 0
    done = 0.0

    def open(self, total: int) -> AbstractContextManager[Bar]:
        self.total = total
        return nullcontext(self)

    def advance(self, num: float = 1) -> None:
        self.done += num


def test_clean_folder_has_counts_and_nothing_to_complain_of(folder: Path) -> None:
    section = DataSection(source=str(folder), limit=2)
    bar = Bar()
    report = check_data(section, TaskSection(), 0, progress=bar.open)
    assert (bar.total, bar.done) == (12, 12)
    assert report.counts["train"] + report.counts["validation"] == 8  # limits are listed, not applied
    assert report.limits == {"data.limit": 2}
    assert report.counts_per_label["a"]["test"] == 2
    assert report.width is not None
    assert (report.width.min, report.width.max) == (32, 32)
    assert report.formats == {"PNG": 12}
    assert (report.unreadable, report.duplicates, report.near_duplicates) == ([], [], [])
    assert report.imbalance["test"] == 1.0


def test_unreadable_images_are_listed_with_reasons(folder: Path) -> None:
    file = io.BytesIO()
    texture(1, 128).save(file, "JPEG")
    (folder / "train/a/cut.jpg").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    (folder / "train/a/empty.png").write_bytes(b"")
    (folder / "train/b/page.jpg").write_text("<html>not found</html>")
    (folder / "test/b/gone.png").symlink_to(folder / "nowhere.png")
    report = check(folder)
    reasons = {Path(item.file).name: item.reason for item in report.unreadable}
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["empty.png"] == "the file is empty"
    assert reasons["page.jpg"] == "not an image in a known format"
    assert "No such file" in reasons["gone.png"]
    assert len(reasons) == 4
    assert report.num_images == 16  # none leaves the count


def test_odd_images_are_read_as_meant_and_named(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = texture(70).crop((0, 0, 32, 16))
    upright.save(folder / "train/a/turned.jpg", exif=exif)
    texture(71).convert("CMYK").save(folder / "train/a/print.jpg")
    clear = Image.new("P", (16, 16), 0)
    clear.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    clear.putpixel((0, 0), 1)
    clear.save(folder / "train/a/clear.png", transparency=0)
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(folder / "train/a/deep.png")
    frames = [texture(72), texture(73)]
    frames[0].save(folder / "train/a/film.gif", save_all=True, append_images=frames[1:])
    report = check(folder)
    assert report.unreadable == []
    assert report.peculiarities == {
        "turned upright by EXIF": 1,
        "CMYK, converted to RGB": 1,
        "transparent, laid over white": 1,
        "more than 8 bits a channel, reduced to 8": 1,
        "several frames, the first is used": 1,
    }
    assert ImageSource(path=folder / "train/a/turned.jpg").open().size == (16, 32)
    assert ImageSource(path=folder / "train/a/clear.png").open().getpixel((5, 5)) == (255, 255, 255)
    levels = np.asarray(ImageSource(path=folder / "train/a/deep.png").open())
    assert 120 < levels.mean() < 135  # Pillow alone would clip nearly all of it to white


def test_equal_pixels_are_found_across_splits_and_labels(folder: Path) -> None:
    original = Image.open(folder / "train/a/0.png")
    original.save(folder / "test/a/copy.bmp")
    original.save(folder / "test/b/copy.tiff")
    report = check(folder)
    assert len(report.duplicates) == 1
    group = report.duplicates[0]
    assert {copy.id for copy in group.copies} == {"train/a/0.png", "test/a/copy.bmp", "test/b/copy.tiff"}
    assert group.across_splits
    assert group.labels_differ
    assert report.duplicate_counts.groups_across_splits == 1
    assert report.near_duplicates == []


def test_recompressed_and_scaled_copies_are_near_duplicates_others_are_not(folder: Path) -> None:
    original = texture(hash_of("train", "a", 0))
    original.save(folder / "test/a/again.jpg", quality=85)
    original.resize((48, 48)).filter(ImageFilter.GaussianBlur(0.5)).save(folder / "train/b/scaled.png")
    report = check(folder)
    pairs = {frozenset((pair.first.id, pair.second.id)) for pair in report.near_duplicates}
    assert pairs == {
        frozenset(pair)
        for pair in (
            ("train/a/0.png", "test/a/again.jpg"),
            ("train/a/0.png", "train/b/scaled.png"),
            ("test/a/again.jpg", "train/b/scaled.png"),
        )
    }
    splits = {copy.id: copy.split for pair in report.near_duplicates for copy in (pair.first, pair.second)}
    num_across = sum(splits[a] != splits[b] for a, b in map(sorted, pairs))
    assert report.duplicate_counts.near_pairs_across_splits == num_across >= 2
    assert report.duplicate_counts.near_pairs_with_different_labels == 2
    assert report.duplicates == []


def test_imbalance_is_most_frequent_to_rarest(folder: Path) -> None:
    write(folder, {f"test/a/more{i}.png": texture(500 + i) for i in range(4)})
    assert check(folder).imbalance["test"] == 3.0
    wider = check_data(DataSection(source=str(folder)), TaskSection(labels=["a", "b", "c"]), 0)
    assert wider.imbalance["test"] is None


def test_similar_pairs_equal_a_plain_search() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, 160, dtype=np.uint64)
    hashes = np.concatenate([base, np.repeat(base, 4) ^ flips])
    thumbnails = np.zeros((200, 16, 16, 3), np.uint8)
    thumbnails[150:] = 200  # near in hash, far in pixels
    result = similar_pairs(hashes, thumbnails, max_distance=2)
    expected = {
        (i, j)
        for i in range(200)
        for j in range(i + 1, 200)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= 2 and (i < 150) == (j < 150)
    }
    assert set(result.pairs) == expected
    assert len(result.pairs) == len(expected) > 200
    assert result.is_complete


def test_too_many_alike_images_stop_the_search_and_say_so() -> None:
    hashes = np.zeros(500, np.uint64)
    result = similar_pairs(hashes, np.zeros((500, 16, 16, 3), np.uint8), max_candidates=10_000)
    assert not result.is_complete


def test_hash_survives_brightness_and_digest_does_not() -> None:
    image = texture(3)
    darker = image.point([level * 3 // 4 for level in range(256)] * 3)
    assert (difference_hash(image) ^ difference_hash(darker)).bit_count() <= 4
    assert pixel_digest(image) != pixel_digest(darker)
    assert (difference_hash(image) ^ difference_hash(texture(4))).bit_count() > 12
