"""Public data sets in miniature: a few drawn images in exactly the hub's layout, features and names.

`MINIATURES` tells for every file in configs/ how it is run on such a set. A new file there needs a row here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from PIL import Image

from tests.vqa_sets import write_official
from vlmtune.data.stanford_cars import prepare

CIFAR_FINE: list[str] = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man
maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
""".split()  # noqa: SIM905
CIFAR_COARSE = [f"group_{number}" for number in range(20)]
CARS = (
    "AM General Hummer SUV 2000",
    "Acura RL Sedan 2012",
    "Acura TL Type-S 2008",
    "Aston Martin V8 Vantage Coupe 2012",
    "Land Rover LR2 SUV 2012",
    "Mercedes-Benz C-Class Sedan 2012",
    "Rolls-Royce Ghost Sedan 2012",
    "smart fortwo Convertible 2012",
)
ACTIONS: list[str] = """
calling clapping cycling dancing drinking eating fighting hugging laughing listening_to_music running sitting sleeping
texting using_laptop
""".split()  # noqa: SIM905


def make_image(label: int, number: int, size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    """An encoded image: one color a label, and noise."""
    rng = np.random.default_rng([label, number])
    color = np.random.default_rng(label).integers(40, 215, 3)
    pixels = np.clip(color + rng.integers(-25, 25, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_hub_folder(root: Path, splits: dict[str, dict[str, list[Any]]], features: dict[str, Any]) -> Path:
    """`root`/data/SPLIT-00000-of-00001.parquet with the features as `datasets` writes them; returns root."""
    for split, columns in splits.items():
        file = root / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(file)
    return root


def _split(names: Sequence[str], each: int, column: str, image: str, first: int = 0, **options: Any) -> dict[str, Any]:
    labels = [label for label in range(len(names)) for _ in range(each)]
    encoded = [make_image(label, first + number, **options) for number, label in enumerate(labels)]
    return {image: [{"bytes": data, "path": None} for data in encoded], column: labels}


def cifar100(root: Path, each: int = 3, names: Sequence[str] = CIFAR_FINE) -> Path:
    """As uoft-cs/cifar100: img, fine_label, coarse_label; ``each`` images of every class in train and in test."""
    splits = {}
    for number, split in enumerate(("train", "test")):
        columns = _split(names, each, "fine_label", "img", first=1000 * number)
        splits[split] = columns | {"coarse_label": [label // 5 for label in columns["fine_label"]]}
    fine, coarse = datasets.ClassLabel(names=list(names)), datasets.ClassLabel(names=CIFAR_COARSE)
    return write_hub_folder(root, splits, {"img": datasets.Image(), "fine_label": fine, "coarse_label": coarse})


def cifar100_binary(root: Path, each: int = 3) -> Path:
    """As the unpacked cifar-100-binary.tar.gz."""
    root.mkdir(parents=True)
    (root / "fine_label_names.txt").write_text("\n".join(CIFAR_FINE) + "\n")
    (root / "coarse_label_names.txt").write_text("\n".join(CIFAR_COARSE) + "\n")
    for first, split in ((0, "train"), (1000, "test")):
        records = bytearray()
        for label in range(len(CIFAR_FINE)):
            for number in range(each):
                pixels = np.asarray(Image.open(io.BytesIO(make_image(label, first + label * each + number))))
                records += bytes([label // 5, label]) + pixels.transpose(2, 0, 1).tobytes()
        (root / f"{split}.bin").write_bytes(records)
    return root


def stanford_cars(root: Path, each: int = 4) -> Path:
    """As tanganke/stanford_cars: image, label with full names; a PNG among JPEGs, and a split of spoilt images."""
    splits = {}
    for number, split in enumerate(("train", "test", "contrast")):
        splits[split] = _split(CARS, each, "label", "image", first=1000 * number, size=(60, 40), kind="JPEG")
    splits["train"]["image"][1] = {"bytes": make_image(0, 7, (60, 40)), "path": None}
    return write_hub_folder(root, splits, {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CARS))})


def prepared_cars(root: Path) -> Path:
    """As `vlmtune data prepare stanford-cars` makes of it."""
    return prepare(root, str(stanford_cars(root.with_name("hub")))).folder


def cars_of_text_003(root: Path, each: int = 6) -> Path:
    """As the older repo's own set: image, and maker, model, year as text."""
    makers = ("AM", "Acura", "Aston", "Land")
    splits = {}
    for number, split in enumerate(("train", "test")):
        columns = _split(makers, each, "label", "image", first=1000 * number, kind="JPEG")
        labels = columns.pop("label")
        splits[split] = columns | {
            "maker": [makers[label] for label in labels],
            "model": ["Sedan"] * len(labels),
            "year": ["2012"] * len(labels),
        }
    text = datasets.Value("string")
    return write_hub_folder(root, splits, {"image": datasets.Image(), "maker": text, "model": text, "year": text})


def cats_vs_dogs(root: Path, splits: tuple[str, ...] = ("train",), each: int = 8) -> Path:
    """As microsoft/cats_vs_dogs: image, labels; a train split only."""
    columns = {
        split: _split(("cat", "dog"), each, "labels", "image", first=1000 * number, size=(50, 40), kind="JPEG")
        for number, split in enumerate(splits)
    }
    return write_hub_folder(
        root, columns, {"image": datasets.Image(), "labels": datasets.ClassLabel(names=["cat", "dog"])}
    )


def human_actions(root: Path, each: int = 5) -> Path:
    """As Bingsu/Human_Action_Recognition: image, labels; its test split has no labels (all are 0)."""
    rounds = [_split(ACTIONS, 1, "labels", "image", first=100 * number, kind="JPEG") for number in range(each)]
    train = {key: [value for columns in rounds for value in columns[key]] for key in rounds[0]}  # in no order of labels
    test = _split(ACTIONS, 1, "labels", "image", first=1000, kind="JPEG")
    test["labels"] = [0] * len(ACTIONS)
    return write_hub_folder(
        root, {"train": train, "test": test}, {"image": datasets.Image(), "labels": datasets.ClassLabel(names=ACTIONS)}
    )


def vqa(root: Path) -> Path:
    """As VQA's official files."""
    return write_official(root, {"train2014": 30, "val2014": 20})


_TWO_STEPS = ("model.base=builtin:tiny", "train.max_steps=2", "train.batch_size=4", "evaluate.batch_size=8")


class Miniature(NamedTuple):
    """How a file of configs/ is run in a moment.

    Attributes:
        command: train, evaluate or pretrain.
        build: writes the set into a new folder; None where the file's own data need no download.
        overrides: besides the data's place.
    """

    command: str
    build: Callable[[Path], Path] | None
    overrides: tuple[str, ...] = ()

    def arguments(self, config: Path, folder: Path) -> list[str]:
        """The command line that runs ``config`` for two steps on its miniature, written into ``folder``."""
        overrides = list(self.overrides)
        if self.command != "pretrain":
            overrides = [*_TWO_STEPS, *overrides]
        if self.build is not None:
            overrides.append(f"data.source={self.build(folder / 'set')}")
        overrides.append(f"output_dir={folder / 'runs'}")
        return [self.command, str(config), *(part for override in overrides for part in ("--set", override))]


_FEW = ("data.limit=40", "data.limit_validation=12", "data.limit_test=12")

MINIATURES = {
    "cats_vs_dogs": Miniature("train", cats_vs_dogs),
    "cifar100": Miniature("train", cifar100, _FEW),
    "cifar100_10": Miniature("train", cifar100_binary, _FEW),
    "cifar100_baseline": Miniature("evaluate", cifar100, _FEW),
    "cifar100_evaluate": Miniature("evaluate", cifar100, (*_FEW, "evaluate.checkpoint=base")),
    "connector_stages": Miniature(
        "pretrain",
        None,
        tuple(
            f"{stage}.{key}"
            for stage in ("align", "instruct")
            for key in ("train.max_steps=2", "train.batch_size=4", *_FEW)
        ),
    ),
    "digits": Miniature("train", None, _FEW),
    "digits_10": Miniature("train", None, _FEW),
    "human_action": Miniature("train", human_actions, ("data.train_split=train[:-15]", "data.test_split=train[-15:]")),
    "images": Miniature("train", cats_vs_dogs),
    "stanford_cars": Miniature("train", prepared_cars),
    "stanford_cars_full": Miniature("train", prepared_cars),
    "vqa_demo": Miniature("train", None, (*_FEW, "train.batch_size=4")),
    "vqav2": Miniature(
        "train",
        vqa,
        ("data.train_split=train", "data.test_split=validation", "data.validation_fraction=0.3", "data.fraction=1"),
    ),
}
"""Name of a file in configs/ -> its miniature."""
