"""RandAugment and TrivialAugment: a few operations, drawn from one table, at a fixed or a drawn strength.

RandAugment (arXiv 1909.13719) applies several at one strength, TrivialAugment (arXiv 2103.10158) a single one at a
strength of its own, over wider ranges. Ranges and the scale of 31 strengths are those of torchvision's
`RandAugment` and `TrivialAugmentWide`, which draw from torch's global generator: here each image has a generator of its
own, so that neither threads nor a resumed run change the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

Draw = np.random.Generator
NUM_STRENGTHS = 31


@dataclass(frozen=True)
class Operation:
    """One row of a table.

    Attributes:
        apply: (image, amount) -> image.
        amounts: the amount at strength 0 and at the largest strength; between them in equal steps.
        is_signed: whether the amount's sign is drawn.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    amounts: tuple[float, float] = (0.0, 0.0)
    is_signed: bool = False


def affine(
    image: Image.Image,
    *,
    degrees: float = 0.0,
    scale: float = 1.0,
    shear: tuple[float, float] = (0.0, 0.0),
    shift: tuple[float, float] = (0.0, 0.0),
) -> Image.Image:
    """Sheared, turned and scaled about the center, then moved; the corner's color fills what is uncovered.

    Args:
        degrees: clockwise.
        scale: above 1 enlarges.
        shear: tangents along x and y.
        shift: pixels to the right and down.
    """
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    # Pillow maps output to input.
    back = np.linalg.inv(turn @ np.array([[1.0, shear[0]], [shear[1], 1.0]]))
    center = np.array(image.size) / 2
    offset = center - back @ (center + shift)
    matrix = tuple(float(value) for value in (*back[0], offset[0], *back[1], offset[1]))
    corner = image.getpixel((0, 0))
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=corner)


def _shear_x(image: Image.Image, amount: float) -> Image.Image:
    return affine(image, shear=(amount, 0))


def _shear_y(image: Image.Image, amount: float) -> Image.Image:
    return affine(image, shear=(0, amount))


def _move_x(image: Image.Image, amount: float) -> Image.Image:
    return affine(image, shift=(amount * image.width, 0))


def _move_y(image: Image.Image, amount: float) -> Image.Image:
    return affine(image, shift=(0, amount * image.height))


def _turn(image: Image.Image, amount: float) -> Image.Image:
    return affine(image, degrees=amount)


def _brightness(image: Image.Image, amount: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + amount)


def _saturation(image: Image.Image, amount: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + amount)


def _contrast(image: Image.Image, amount: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + amount)


def _sharpness(image: Image.Image, amount: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + amount)


def _posterize(image: Image.Image, amount: float) -> Image.Image:
    return ImageOps.posterize(image, round(amount))


def _solarize(image: Image.Image, amount: float) -> Image.Image:
    return ImageOps.solarize(image, round(amount))


def _table(shear: float, move: float, turn: float, enhance: float, min_bits: int) -> Mapping[str, Operation]:
    """The fourteen operations; the arguments are the amounts at the largest strength."""
    return MappingProxyType(
        {
            "identity": Operation(lambda image, _: image),
            "shear_x": Operation(_shear_x, (0, shear), True),
            "shear_y": Operation(_shear_y, (0, shear), True),
            "move_x": Operation(_move_x, (0, move), True),
            "move_y": Operation(_move_y, (0, move), True),
            "turn": Operation(_turn, (0, turn), True),
            "brightness": Operation(_brightness, (0, enhance), True),
            "saturation": Operation(_saturation, (0, enhance), True),
            "contrast": Operation(_contrast, (0, enhance), True),
            "sharpness": Operation(_sharpness, (0, enhance), True),
            "posterize": Operation(_posterize, (8, min_bits)),
            "solarize": Operation(_solarize, (256, 0)),
            "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
            "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
        }
    )


RAND_AUGMENT = _table(shear=0.3, move=150 / 331, turn=30, enhance=0.9, min_bits=4)
# torchvision moves by up to 32 pixels of ImageNet's 224; as a share, a small image is not pushed out of its frame.
TRIVIAL_AUGMENT = _table(shear=0.99, move=32 / 224, turn=135, enhance=0.99, min_bits=2)


COLOR_OPERATIONS = frozenset(
    {"brightness", "saturation", "contrast", "posterize", "solarize", "autocontrast", "equalize"}
)
"""Operations that change colors: omitted where an answer names one."""


def rand_augment(
    image: Image.Image, draw: Draw, ops: float = 2, magnitude: float = 9, without: frozenset[str] = frozenset()
) -> Image.Image:
    """``ops`` operations one after another, each at strength ``magnitude`` (of 0 to 30); none of ``without``."""
    for _ in range(round(ops)):
        image = _apply(RAND_AUGMENT[_pick(RAND_AUGMENT, without, draw)], image, draw, magnitude)
    return image


def trivial_augment(
    image: Image.Image, draw: Draw, max_turn: float = 135, without: frozenset[str] = frozenset()
) -> Image.Image:
    """One operation, none of ``without``, at a drawn strength; turns by no more than ``max_turn`` degrees."""
    name = _pick(TRIVIAL_AUGMENT, without, draw)
    operation, strength = TRIVIAL_AUGMENT[name], draw.integers(NUM_STRENGTHS)
    if name == "turn":
        operation = Operation(_turn, (0, max_turn), True)
    return _apply(operation, image, draw, float(strength))


def _pick(table: Mapping[str, Operation], without: frozenset[str], draw: Draw) -> str:
    names = [name for name in table if name not in without]
    return names[draw.integers(len(names))]


def _apply(operation: Operation, image: Image.Image, draw: Draw, strength: float) -> Image.Image:
    weakest, strongest = operation.amounts
    amount = weakest + (strongest - weakest) * strength / (NUM_STRENGTHS - 1)
    sign = -1 if operation.is_signed and draw.random() < 0.5 else 1
    return operation.apply(image, sign * amount)
