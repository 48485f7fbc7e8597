"""The image arguments of `vlmtune predict`: files, folders, globs, a list on stdin, web addresses."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmtune.data.read.image_folder import is_hidden, is_image_name
from vlmtune.data.remote import RemoteError, fetch_image
from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.records import ImageSource

MAX_DOWNLOAD_BYTES = 50 * 2**20
STDIN = "-"


@dataclass(frozen=True, slots=True)
class RemoteSource(ImageSource):
    """An image at a web address, fetched when it is opened."""

    url: str = ""

    def read(self) -> bytes:
        """The encoded bytes. Raises UnreadableImageError, also for an address that may not be fetched."""
        try:
            return fetch_image(self.url, max_bytes=MAX_DOWNLOAD_BYTES)
        except RemoteError as error:
            raise UnreadableImageError(self.url, str(error)) from error


def image_inputs(names: Iterable[str], *, allow_urls: bool) -> Iterator[ImageSource]:
    """The images, one at a time; nothing is opened yet.

    Args:
        names: files, folders (searched at any depth, by name), globs, `-` for a list on stdin, one a line, or
            addresses that begin with http:// or https://.

    Raises:
        UserError: for a name that matches nothing, or an address where those are not allowed.
    """
    for name in names:
        if name == STDIN:
            lines = (line.strip() for line in sys.stdin)
            yield from (image for line in lines if line for image in _expand(line, allow_urls=allow_urls))
        else:
            yield from _expand(name, allow_urls=allow_urls)


def measure(names: Sequence[str], *, allow_urls: bool) -> tuple[int | None, int]:
    """The number of images (None if some come from stdin) and the length of the longest name.

    Raises the UserError of `image_inputs` for all names at once, before a model is loaded.
    """
    total, longest, faults = 0, 0, []
    for name in names:
        if name == STDIN:
            continue
        try:
            for image in _expand(name, allow_urls=allow_urls):
                total += 1
                longest = max(longest, len(image.name))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    return None if STDIN in names else total, longest


def _expand(name: str, *, allow_urls: bool) -> Iterator[ImageSource]:
    if name.lower().startswith(("http://", "https://")):
        if not allow_urls:
            raise UserError(f"{name}: web addresses are fetched only with --allow-urls.")
        yield RemoteSource(name=name, url=name)
        return
    path = Path(name).expanduser()
    if path.is_file():
        yield ImageSource(path=path, name=name)
        return
    is_empty = True
    files = _in_folder(path) if path.is_dir() else map(Path, _matches(name))
    for file in files:
        is_empty = False
        yield ImageSource(path=file, name=str(file))
    if is_empty:
        what = "a folder without images" if path.is_dir() else "not found"
        raise UserError(f"{name}: {what}. Give files, folders, globs ('photos/*.jpg'), or - for a list on stdin.")


def _in_folder(folder: Path) -> Iterator[Path]:
    """Images by their names, at any depth, in a fixed order."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(inner for inner in folders if not is_hidden(Path(inner)))
        yield from (Path(parent, file) for file in sorted(files) if is_image_name(file))


def _matches(pattern: str) -> list[str]:
    if not glob.has_magic(pattern):
        return []
    # Path.glob needs the fixed part of a pattern separately, and rejects patterns from the root.
    files = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))  # noqa: PTH207
    return [path for path in files if Path(path).is_file()]
