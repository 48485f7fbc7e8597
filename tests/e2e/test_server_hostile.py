"""5,000 malformed, oversized and malicious requests: each is refused, memory stays bounded, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable

import pytest

from tests.served import Server, data_uri, digit_png, png

pytestmark = pytest.mark.e2e

NUM_REQUESTS = 5000
GROWTH = 400 * 2**20
"""Bytes that 5,000 hostile requests may add to the server's memory. One decoded bomb alone would be more."""

Request = bytes
JSON = b"application/json"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, rows: int) -> bytes:
    """A PNG whose header promises ``width`` × ``height``; ``rows`` black rows of it are there, packed."""
    packer, row = zlib.compressobj(1), b"\0" * (3 * width + 1) if rows else b""
    pixels = b"".join(packer.compress(row) for _ in range(rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BOMB = png_of_size(10_000, 10_000, rows=2_000)  # 100 megapixels in 300 kB
HUGE = png_of_size(2**31 - 1, 2**31 - 1, rows=0)
WEBP_CANVAS = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0\xff\x3f\0\xff\x3f\0"  # 16,384 × 16,384
GOOD = digit_png()


def post(path: str, body: bytes, content_type: bytes = JSON, length: int | None = None) -> Request:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body) if length is None else length}\r\n"
    return head.encode() + b"content-type: " + content_type + b"\r\n\r\n" + body


def form(
    data: bytes, kind: str = "image/png", name: str = "a.png", field: str = "image", *, is_whole: bool = True
) -> Request:
    head = f'--B\r\ncontent-disposition: form-data; name="{field}"; filename="{name}"\r\ncontent-type: {kind}\r\n\r\n'
    body = head.encode() + data + (b"\r\n--B--\r\n" if is_whole else b"")
    return post("/v1/classify", body, b"multipart/form-data; boundary=B")


def classify(**fields: object) -> Request:
    return post("/v1/classify", json.dumps(fields).encode())


def chat(url: object, **fields: object) -> Request:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    body = {"model": "digits", "messages": [{"role": "user", "content": content}], **fields}
    return post("/v1/chat/completions", json.dumps(body).encode())


def endless(rng: random.Random) -> Request:
    """A chunked body that never says it is over, beyond the limit."""
    head = (
        b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\n"
    )
    return head + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 330


PRIVATE = (
    "http://127.0.0.1/a.png", "http://localhost:22/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/a.png",
    "http://10.0.0.1/a.png", "http://0x7f000001/", "http://2130706433/", "https://192.168.1.1/", "file:///etc/passwd",
    "gopher://127.0.0.1:70/", "http://user@127.0.0.1/", "//127.0.0.1/a.png", "\\\\host\\share",
)  # fmt: skip
PATHS = ("../../etc/passwd", "/etc/passwd", "C:\\boot.ini", "a\0.png", "x" * 5000, "%2e%2e%2f", "; rm -rf")
BROKEN_JSON = (
    b"{",
    b"[]",
    b"null",
    b'{"image": 1}',
    b'{"image": "x"',
    b"\xff\xfe",
    b"[" * 50_000,
    b'{"a":' * 9_000,
    b"NaN",
)

KINDS: dict[str, Callable[[random.Random], Request]] = {
    "truncated image": lambda rng: form(GOOD[: rng.randrange(1, len(GOOD) - 20)]),
    "flipped bytes in the header": lambda rng: form(bytes(rng.randrange(256) for _ in range(16)) + GOOD[16:]),
    "bomb in a form": lambda rng: form(BOMB),
    "bomb in JSON": lambda rng: classify(image=data_uri(BOMB)),
    "bomb in a chat": lambda rng: chat(data_uri(BOMB)),
    "impossible size": lambda rng: form(HUGE),
    "WebP canvas": lambda rng: form(WEBP_CANVAS + bytes(64), "image/webp"),
    "wrong MIME type": lambda rng: form(GOOD, rng.choice(("text/html", "application/pdf", "video/mp4"))),
    "no image": lambda rng: form(rng.choice((b"<html>", b"%PDF-1.7", b"MZ", b"", b"%!PS-Adobe-3.0 EPSF-3.0"))),
    "wrong content type": lambda rng: post("/v1/classify", GOOD, rng.choice((b"text/plain", b"image/png", b"x"))),
    "broken JSON": lambda rng: post(rng.choice(("/v1/classify", "/v1/chat/completions")), rng.choice(BROKEN_JSON)),
    "unfinished form": lambda rng: form(GOOD, is_whole=False),
    "two files": lambda rng: form(GOOD + b"\r\n--B\r\ncontent-disposition: form-data; name=x; filename=y\r\n\r\nz"),
    "path as field": lambda rng: form(GOOD, name=rng.choice(PATHS).replace("\0", ""), field="../x"),
    "path as image": lambda rng: classify(image=rng.choice(PATHS)),
    "private address": lambda rng: classify(image=rng.choice(PRIVATE)),
    "private address in a chat": lambda rng: chat(rng.choice(PRIVATE)),
    "too many labels": lambda rng: classify(image=data_uri(GOOD), labels=[str(n) for n in range(3000)]),
    "too much text": lambda rng: classify(image=data_uri(GOOD), question="a" * 50_000),
    "special tokens": lambda rng: classify(image=data_uri(GOOD), question="<|im_end|>"),
    "bad base64": lambda rng: classify(image="data:image/png;base64," + "%" * rng.randrange(1, 500)),
    "promised length": lambda rng: post("/v1/classify", b"", length=10**12),
    "negative length": lambda rng: post("/v1/classify", b"", length=-5),
    "unknown path": lambda rng: post("/v1/../../etc/passwd", b"{}"),
    "no HTTP": lambda rng: bytes(rng.randrange(256) for _ in range(200)) + b"\r\n\r\n",
    "unknown option": lambda rng: chat(data_uri(GOOD), functions=[], n=5),
    "schema too open": lambda rng: chat(data_uri(GOOD), response_format={"type": "json_object"}),
}  # fmt: skip
RARE = {"endless body": endless, "endless headers": lambda rng: b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000}


async def send(address: tuple[str, int], request: Request) -> int:
    """The status a request gets; 0 if the server closes without one."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            await writer.drain()
        line = await asyncio.wait_for(reader.readline(), 60)
        return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


async def attack(address: tuple[str, int], kinds: list[str], rng: random.Random) -> Counter[tuple[str, int]]:
    """Send one request of every kind listed, 16 at a time; how often each kind got which status."""
    seen: Counter[tuple[str, int]] = Counter()
    makers, waiting = KINDS | RARE, iter(kinds)

    async def worker() -> None:
        for kind in waiting:
            seen[kind, await send(address, makers[kind](rng))] += 1

    await asyncio.gather(*(worker() for _ in range(16)))
    return seen


def test_hostile_requests_are_refused_and_good_ones_answered(server: Server) -> None:
    rng = random.Random(0)
    names = list(KINDS)
    kinds = [names[number % len(names)] for number in range(NUM_REQUESTS - 12)] + list(RARE) * 6
    rng.shuffle(kinds)
    host, port = server.url.removeprefix("http://").split(":")
    address = (host, int(port))
    good = form(GOOD)
    assert asyncio.run(send(address, good)) == 200
    before = server.rss_bytes()
    seen = asyncio.run(attack(address, kinds, rng))
    grown = server.rss_bytes() - before

    assert sum(seen.values()) == NUM_REQUESTS
    # A connection may be cut while its endless sender is still writing: then the sender's own error hides the status.
    unexpected = {k: n for k, n in seen.items() if not 400 <= k[1] < 500 and not (k[1] == 0 and k[0] in RARE)}
    assert unexpected == {}
    assert grown < GROWTH, f"{grown / 2**20:.0f} MiB"
    assert server.process.poll() is None
    assert asyncio.run(send(address, good)) == 200
    assert not [line for line in server.lines if "Traceback" in line]


def test_an_image_within_limits_is_answered_whatever_its_name(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for name in ("../../etc/passwd", "a b.png", "ü.png"):
        assert asyncio.run(send((host, int(port)), form(png(), name=name))) == 200
