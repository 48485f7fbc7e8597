"""Stanford Cars with columns for make, model and year, made from the hub's copy with 196 full names.

A class there is called "Acura RL Sedan 2012", which becomes make "Acura", model "RL Sedan", year 2012; and
"Aston Martin V8 Vantage Coupe 2012" is an Aston Martin, not an Aston. Called by `vlmtune data prepare stanford-cars`.
"""

from __future__ import annotations

import io
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vlmtune.data.read.arrow import load_data_set
from vlmtune.data.read.columns import find_column
from vlmtune.errors import DataError

HUB_SOURCE = "tanganke/stanford_cars"
MAKES_OF_TWO_WORDS = ("AM General", "Aston Martin", "Land Rover")
"""Every other make is one word, hyphens included: Mercedes-Benz, Rolls-Royce."""
_SPLITS = ("train", "test")
"""The hub's copy has further splits of spoilt test images (contrast, gaussian_noise, …), which are not used."""
_YEAR = re.compile(r"(?:19|20)\d\d")


class Car(NamedTuple):
    """A class of cars. ``year`` is text: a label, not a quantity."""

    make: str
    model: str
    year: str


@dataclass(frozen=True)
class PreparedSplit:
    """The outcome of one split: images by file format, and files that are not recognized as images."""

    images: int
    formats: dict[str, int]
    unreadable: list[str] = field(default_factory=list)
    left_out: int = 0


@dataclass(frozen=True)
class Prepared:
    """The written folder, and the outcome of every row."""

    folder: Path
    splits: dict[str, PreparedSplit]
    makes: list[str]
    classes: list[str]


def split_name(name: str) -> Car:
    """Make, model and year of a full name. Raises DataError for any other name."""
    words = name.split()
    make = next((two for two in MAKES_OF_TWO_WORDS if name.lower().startswith(two.lower() + " ")), None)
    num_make = 1 if make is None else 2
    if len(words) < num_make + 2 or not _YEAR.fullmatch(words[-1]):
        raise DataError(f"'{name}' is not the name of a car. Expected make, model and year: 'Acura RL Sedan 2012'.")
    return Car(make or words[0], " ".join(words[num_make:-1]), words[-1])


def prepare(
    output: Path,
    source: str = HUB_SOURCE,
    revision: str | None = None,
    *,
    jpeg_only: bool = False,
    on_split: Callable[[str, int], None] = lambda split, total: None,
) -> Prepared:
    """Write the set as a folder in the hub's layout: `data/train.parquet`, `data/test.parquet`.

    Columns: image, make (ClassLabel), model, year, car (ClassLabel of the full names), all images as they are.

    Args:
        output: a new folder.
        source: the hub's copy, or a local folder in its layout.
        jpeg_only: leave out images of other formats, as the older repo did.
        on_split: called with each split's name and its number of images.

    Raises DataError: no such source, columns or names of another kind, or the folder exists.
    """
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise DataError(f"{output}: exists already. Name another --output, or remove it.")
    loaded = load_data_set(source, revision)
    missing = [split for split in _SPLITS if split not in loaded]
    if missing:
        raise DataError(f"{source}: has no split '{missing[0]}'. Found: {', '.join(loaded)}.")
    names = _class_names(loaded["train"], source)
    cars = [split_name(name) for name in names]
    makes = sorted({car.make for car in cars}, key=str.casefold)
    unfinished = output.with_name(output.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    splits = {}
    for split in _SPLITS:
        on_split(split, len(loaded[split]))
        splits[split] = _write(loaded[split], source, split, names, cars, makes, jpeg_only, unfinished / "data")
    if output.exists():
        output.rmdir()
    unfinished.rename(output)
    return Prepared(output, splits, makes, names)


def _class_names(dataset: Any, source: str) -> list[str]:
    import datasets

    column = _label_column(dataset, source)
    feature = dataset.features[column]
    if not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"{source}: the column '{column}' has no class names, expected the full ones ('Acura RL Sedan 2012'). "
            f"{HUB_SOURCE} has them."
        )
    return list(feature.names)


def _label_column(dataset: Any, source: str) -> str:
    return find_column("label", None, list(dataset.features), source)


def _write(
    dataset: Any,
    source: str,
    split: str,
    names: Sequence[str],
    cars: Sequence[Car],
    makes: Sequence[str],
    jpeg_only: bool,
    folder: Path,
) -> PreparedSplit:
    import datasets

    image_column = find_column("image", None, list(dataset.features), source)
    encoded = dataset.cast_column(image_column, datasets.Image(decode=False))
    formats = [_format_of(row[image_column]) for row in encoded.select_columns([image_column])]
    chosen = [number for number, format_ in enumerate(formats) if format_ == "JPEG" or (format_ and not jpeg_only)]
    classes = dataset[_label_column(dataset, source)]
    numbers = [int(classes[number]) for number in chosen]
    rows = [cars[number] for number in numbers]
    table = encoded.select(chosen).select_columns([image_column]).cast_column(image_column, datasets.Image())
    if image_column != "image":
        table = table.rename_column(image_column, "image")
    text = datasets.Value("string")
    columns: list[tuple[str, list[Any], Any]] = [
        ("make", [makes.index(car.make) for car in rows], datasets.ClassLabel(names=list(makes))),
        ("model", [car.model for car in rows], text),
        ("year", [car.year for car in rows], text),
        ("car", numbers, datasets.ClassLabel(names=list(names))),
    ]
    for name, values, feature in columns:
        table = table.add_column(name, values, feature=feature)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    unreadable = [f"{source}, split '{split}', row {n}" for n, format_ in enumerate(formats) if format_ is None]
    counts = dict(Counter(format_ or "unreadable" for format_ in formats).most_common())
    return PreparedSplit(len(chosen), counts, unreadable, len(formats) - len(chosen) - len(unreadable))


def _format_of(cell: dict[str, Any]) -> str | None:
    """An image's format by its header; None if Pillow does not recognize it."""
    try:
        with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]) as image:
            return image.format
    except Exception:  # as in `ImageSource.open`: by format, Pillow raises many kinds of error
        return None
