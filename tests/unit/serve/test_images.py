"""What strangers send as images: judged by their headers, before anything is decoded."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from tests.served import data_uri, png
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.images import FORMATS, check_image, read_data_uri, webp_size

pytestmark = pytest.mark.unit


def encoded(kind: str, width: int = 30, height: int = 20, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_measured_by_its_header(kind: str) -> None:
    data = encoded(kind)
    check_image(data, max_pixels=600)
    with pytest.raises(RefusedError) as refused:
        check_image(data, max_pixels=599)
    assert refused.value.status == 413


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0\0\0\0\0"}])
def test_webp_sizes_are_those_pillow_reads(options: dict[str, object]) -> None:
    assert webp_size(encoded("WEBP", 123, 45, **options)) == (123, 45)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n", encoded("TIFF"), b"\x89PNG\r\n\x1a\n"])
def test_other_files_are_no_images(data: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        check_image(data, max_pixels=10**6)
    assert refused.value.status == 400


def test_only_a_jpeg_of_many_scans_is_refused() -> None:
    check_image(encoded("JPEG", progressive=True), max_pixels=10**6)
    with pytest.raises(RefusedError, match="scans"):
        check_image(encoded("JPEG") + b"\xff\xda" * 1000, max_pixels=10**6)


def test_data_uris() -> None:
    assert read_data_uri(data_uri(png())) == png()
    for uri, status in (("data:text/html;base64,aGk=", 415), ("data:image/png,hi", 400), ("../../etc/passwd", 400)):
        with pytest.raises(RefusedError) as refused:
            read_data_uri(uri)
        assert refused.value.status == status
