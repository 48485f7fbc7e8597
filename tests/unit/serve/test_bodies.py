"""Forms as strangers send them."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.requests import Request

from vlmtune.serve.bodies import read_form, read_json
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.schema import ClassifyForm, ClassifyRequest

pytestmark = pytest.mark.unit


def request(body: bytes, content_type: str = "multipart/form-data; boundary=B") -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type.encode())]}
    return Request(scope, receive)


def form(*parts: tuple[str, bytes], end: bytes = b"--B--\r\n") -> bytes:
    heads = (b"--B\r\nContent-Disposition: form-data; " + head.encode() for head, _ in parts)
    return b"".join(head + b"\r\n\r\n" + data + b"\r\n" for head, (_, data) in zip(heads, parts, strict=True)) + end


def read(body: bytes) -> ClassifyForm:
    return asyncio.run(read_form(request(body)))


IMAGE = ('name="image"; filename="../../x"', b"\r\n--not\0")


def test_form_gives_its_file_and_fields() -> None:
    given = read(form(("name=labels", b"cat"), IMAGE, ("name=labels", "hü".encode()), ("name=top_k", b"1")))
    assert (given.image, given.labels, given.top_k) == (IMAGE[1], ["cat", "hü"], 1)


def test_one_field_may_hold_all_labels() -> None:
    assert read(form(IMAGE, ("name=labels", b"cat, dog"))).labels == ["cat", "dog"]


def test_large_file_is_not_written_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the file was rolled over to the disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", fail)
    assert len(read(form((IMAGE[0], bytes(5_000_000)))).image) == 5_000_000


@pytest.mark.parametrize(
    "body",
    [
        b"", b"garbage", form(IMAGE, end=b""), form(IMAGE, end=b"--B"), form(("filename=a", b"x")), form(IMAGE, IMAGE),
        form(IMAGE, ("name=question", b"\xff")), form(IMAGE, ("name=question", b"x" * 70_000)),
        form(IMAGE, ("name=image", b"x")),
        form(("name=image", b"x"), IMAGE), form(("name=image", b"x")), form(('name="other"; filename="a"', b"x")),
        form(IMAGE, ("name=top_k", b"1"), ("name=top_k", b"2")), form(IMAGE, ("name=unknown", b"1")),
        form(IMAGE, *[("name=labels", b"x")] * 2200),
    ],
)  # fmt: skip
def test_broken_forms_are_refused(body: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        read(body)
    assert refused.value.status == 400


def test_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(RefusedError, match="boundary"):
        asyncio.run(read_form(request(form(IMAGE), "multipart/form-data")))


def test_json_faults_are_listed_by_field() -> None:
    body = json.dumps({"image": "x", "top_k": 0, "unknown": 1}).encode()
    with pytest.raises(RefusedError, match=r"top_k: .*unknown: "):
        asyncio.run(read_json(request(body, "application/json; charset=utf-8"), ClassifyRequest))


def test_json_must_be_declared() -> None:
    with pytest.raises(RefusedError) as refused:
        asyncio.run(read_json(request(b"{}", "text/plain"), ClassifyRequest))
    assert refused.value.status == 415
