"""Untrusted images: a request's data become bytes whose format and size are known before any decoding.

In: data URIs and uploads. Out: an `ImageSource` that `records` opens like any other image.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

from PIL import Image

from vlmtune.records import ImageSource
from vlmtune.serve.errors import RefusedError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
"""Formats that browsers show. Pillow knows forty more (EPS runs a program, TIFF has odd codecs), which stay closed."""

_DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?P<parameters>(?:;[\w.+-]+=[^;,]*)*)(?P<base64>;base64)?,")
# A progressive JPEG of a few megabytes can ask for thousands of passes over all its pixels. Real ones have about ten.
_MAX_JPEG_SCANS = 64
_JPEG_SCAN = b"\xff\xda"  # cannot occur inside a scan, where 0xff is always escaped


def check_image(data: bytes, max_pixels: int, name: str = "image") -> ImageSource:
    """Look at an image's header. Nothing is decoded.

    Raises:
        RefusedError: 400 for anything but an image in one of `FORMATS`, 413 for more than ``max_pixels``.
    """
    if not data:
        raise RefusedError(400, "invalid_image", f"{name}: the image is empty.", param=name)
    size = webp_size(data)
    if size is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is stricter
                size = Image.open(io.BytesIO(data), formats=FORMATS).size
        except Image.DecompressionBombError as error:
            raise _too_large(name, "more than 178 million", max_pixels) from error
        # By format, Pillow raises OSError, SyntaxError, ValueError, struct.error and more on a damaged header.
        except Exception as error:
            raise RefusedError(
                400,
                "invalid_image",
                f"{name}: not an image in a known format. Known: {', '.join(FORMATS)}.",
                param=name,
            ) from error
    width, height = size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height}", max_pixels)
    if data.startswith(b"\xff\xd8") and data.count(_JPEG_SCAN) > _MAX_JPEG_SCANS:
        raise RefusedError(400, "invalid_image", f"{name}: a JPEG of more than {_MAX_JPEG_SCANS} scans.", param=name)
    return ImageSource(data=data, name=name)


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP image from its first bytes, else None.

    Pillow's reader allocates the whole canvas when it opens the file, before its size is known.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind, number = data[12:16], int.from_bytes
    if kind == b"VP8X":
        return number(data[24:27], "little") + 1, number(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = number(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return number(data[26:28], "little") & 0x3FFF, number(data[28:30], "little") & 0x3FFF
    return None


def is_web_address(text: str) -> bool:
    """Whether an image is a web address that must be fetched."""
    return text[:8].lower().startswith(("http://", "https://"))


def read_data_uri(uri: str, name: str = "image") -> bytes:
    """The bytes of `data:image/png;base64,…`. Raises RefusedError: 400, or 415 for another kind of file."""
    head = _DATA_URI.match(uri[:200])
    if head is None or not head["base64"]:
        start = uri[:40] + ("…" if len(uri) > 40 else "")
        raise RefusedError(
            400,
            "invalid_image",
            f"{name}: found {start!r}, expected a data URI like 'data:image/png;base64,iVBORw0…'.",
            param=name,
        )
    check_media_type(head["type"] or "text/plain", name)
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(
            400, "invalid_image", f"{name}: the data URI is not valid base64 ({error}).", param=name
        ) from error


def check_media_type(media_type: str | None, name: str) -> None:
    """Refuse (415) a media type that is not an image. The actual format is read from the bytes."""
    kind = (media_type or "application/octet-stream").partition(";")[0].strip().lower()
    if not kind.startswith("image/") and kind != "application/octet-stream":
        raise RefusedError(
            415, "unsupported_media_type", f"{name}: sent as {kind}; expected image/png, image/jpeg…", param=name
        )


def _too_large(name: str, found: str, max_pixels: int) -> RefusedError:
    return RefusedError(
        413,
        "image_too_large",
        f"{name}: {found} pixels; this server takes up to {max_pixels:,}. Send a smaller image.",
        param=name,
    )
