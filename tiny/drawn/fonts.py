"""The printed letters: which font files this machine has, and a character of one as a gray mask.

They come with the `tiny` extra: matplotlib's own fonts, and those of PyPI's font-* packages.
"""

from __future__ import annotations

import importlib.util
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_PACKAGES = (
    "font_amatic_sc", "font_caladea", "font_fjallaone", "font_fredoka_one", "font_hanken_grotesk", "font_intuitive",
    "font_lato", "font_manrope", "font_roboto", "font_source_sans_pro", "font_source_serif_pro",
)  # fmt: skip
# Mathematical symbol fonts: their code points for letters and digits hold something else, or nothing.
_NOT_TEXT = ("cmex", "cmsy", "cmmi", "STIXSiz", "STIXNonUni", "LastResort", "DejaVuSansDisplay", "DejaVuSerifDisplay")
_SIZE = 64


@cache
def font_files() -> tuple[Path, ...]:
    """Every usable font file, sorted by name so that the same packages always give the same order."""
    folders = []
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        folders.append(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf")
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            folders.append(Path(spec.origin).parent / "files")
    files = {path.stem: path for folder in folders for path in sorted(folder.glob("*.[ot]tf"))}
    return tuple(files[stem] for stem in sorted(files) if not stem.startswith(_NOT_TEXT) and "VariableFont" not in stem)


@cache
def _font(index: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_files()[index]), _SIZE)


@lru_cache(maxsize=16384)
def character_mask(index: int, character: str) -> Image.Image:
    """A character of font `index`, cut to its ink: an "L" image, 255 where the ink is."""
    canvas = Image.new("L", (2 * _SIZE, 2 * _SIZE))
    ImageDraw.Draw(canvas).text((_SIZE // 2, _SIZE // 4), character, fill=255, font=_font(index))
    box = canvas.getbbox()
    return canvas if box is None else canvas.crop(box)
