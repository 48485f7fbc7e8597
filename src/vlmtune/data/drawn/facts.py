"""What is true of a drawn image: plain data that captions, labels and questions are made from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thing:
    """One object in an image; its center in 0..1 from the top left."""

    name: str
    color: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Facts:
    """`label` names the image in one word; an image of several objects has none.

    ``writing`` is "printed" or "handwritten" for a character, else empty. ``place`` is the background in one word: a
    place or a color.
    """

    kind: str
    label: str | None
    things: tuple[Thing, ...] = ()
    place: str = ""
    writing: str = ""
    color: str = ""
