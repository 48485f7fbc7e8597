"""A sheet of the images that training shows the model, after every random change and the processor, with answers.

In: the reader of a run. Out: a sheet to save as PNG, and its entries. Called by `vlmtune data show`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from font_roboto import font_files  # Pillow's own font has no λ and no ü
from PIL import Image, ImageDraw, ImageFont

from vlmtune.errors import UnreadableImageError
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import ImageProcessor
from vlmtune.train.items import ItemReader, TrainItem

_SIDE, _GAP, _LINE, _FONT_SIZE = 176, 12, 15, 11
_NUM_COLUMNS, _NUM_LINES = 6, 4
_BACKGROUND, _INK, _SOFT = "#ffffff", "#1c1c1c", "#6b6b6b"


@dataclass(frozen=True)
class SheetEntry:
    """An example as training presents it once.

    Attributes:
        answers: what it teaches -> weight of its loss.
        mixed_with: the other example's id in a mixed image, and share: this one's part λ of it.
        size: of the image that the tower gets, (width, height) in pixels; of the last tile where there are several.
        num_tiles, num_image_tokens: what the image costs.
    """

    id: str
    question: str | None
    answers: dict[str, float]
    mixed_with: str | None
    share: float | None
    size: tuple[int, int]
    num_tiles: int
    num_image_tokens: int


def sheet_entries(reader: ItemReader, count: int, epoch: int = 0) -> list[tuple[SheetEntry, Image.Image]]:
    """The first ``count`` examples of an epoch as training presents them. Unreadable images are left out and noted in
    ``reader.unreadable``."""
    entries = []
    for slot in islice(reader.order.slots(epoch * len(reader.examples), len(reader.examples)), count):
        try:
            item = reader.item(slot)
        except UnreadableImageError as error:
            reader.unreadable[reader.examples[slot.example].id] = error.reason
            continue
        entries.append(_entry(item, reader.processor))
    return entries


def _entry(item: TrainItem, processor: ImageProcessor) -> tuple[SheetEntry, Image.Image]:
    assert isinstance(item.image, ProcessedImage)
    image = processor.restore(*item.image.tiles[-1])  # the whole image: the thumbnail, where it is cut into tiles
    other, share = item.mixed_with or (None, None)
    entry = SheetEntry(
        id=item.example.id,
        question=item.example.question,
        answers=item.answers,
        mixed_with=other.id if other else None,
        share=share,
        size=image.size,
        num_tiles=len(item.image.tiles),
        num_image_tokens=item.image.num_tokens,
    )
    return entry, image


def draw_sheet(entries: Sequence[tuple[SheetEntry, Image.Image]], title: str) -> Image.Image:
    """Images in rows, enlarged without smoothing so that single pixels show, a caption under each."""
    num_rows = -(-len(entries) // _NUM_COLUMNS)
    cell_width, cell_height = _SIDE + _GAP, _SIDE + _NUM_LINES * _LINE + _GAP
    sheet = Image.new("RGB", (_NUM_COLUMNS * cell_width + _GAP, num_rows * cell_height + 2 * _GAP + _LINE), _BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(font_files["Roboto"], _FONT_SIZE)
    draw.text((_GAP, _GAP // 2), _cut(title, sheet.width - 2 * _GAP, font), _INK, font)
    for index, (entry, image) in enumerate(entries):
        row, column = divmod(index, _NUM_COLUMNS)
        left, top = _GAP + column * cell_width, _GAP + _LINE + row * cell_height
        factor = min(_SIDE / image.width, _SIDE / image.height)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        scaled = image.resize(size, Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BOX)
        sheet.paste(scaled, (left + (_SIDE - size[0]) // 2, top + (_SIDE - size[1]) // 2))
        for line, (text, color) in enumerate(_caption(entry)):
            where = (left, top + _SIDE + line * _LINE)
            draw.text(where, _cut(text, _SIDE, font), color, font)
    return sheet


def _caption(entry: SheetEntry) -> list[tuple[str, str]]:
    ranked = sorted(entry.answers.items(), key=lambda item: -item[1])
    answers = [text if weight == 1 else f"{text} {weight:.2f}" for text, weight in ranked]
    more = f" … {len(answers)} answers" if len(answers) > 3 else ""
    lines = [(" + ".join(answers[:3]) + more, _INK)]
    if entry.question:
        lines.append((entry.question, _INK))
    if entry.mixed_with is not None:
        lines.append((f"λ {entry.share:.2f} with {_tail(entry.mixed_with)}", _SOFT))
    tiles = f", {entry.num_tiles} tiles" if entry.num_tiles > 1 else ""
    lines.append((f"{_tail(entry.id)} · {entry.num_image_tokens} tokens{tiles}", _SOFT))
    return lines[:_NUM_LINES]


def _tail(id_: str) -> str:
    """The end of an id, where examples differ."""
    return id_ if len(id_) <= 20 else f"…{id_[-19:]}"


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """The beginning of a text that fits into a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
