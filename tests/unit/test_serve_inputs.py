"""What strangers send: images by their headers, forms, addresses, closed sets, and text in pieces."""

from __future__ import annotations

import io
import ipaddress
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from tests.served import data_uri, png
from vlmtune.data.remote import RemoteError, fetch_image, is_public
from vlmtune.serve.closed_answers import closed_answer
from vlmtune.serve.forms import read_form
from vlmtune.serve.images import FORMATS, check_image, read_data_uri, webp_size
from vlmtune.serve.refusals import RefusedError
from vlmtune.serve.schema import ChatRequest
from vlmtune.serve.text_stream import TextStream

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


def test_a_jpeg_of_a_thousand_scans_is_refused_and_a_progressive_one_is_not() -> None:
    check_image(encoded("JPEG", progressive=True), max_pixels=10**6)
    with pytest.raises(RefusedError, match="scans"):
        check_image(encoded("JPEG") + b"\xff\xda" * 1000, max_pixels=10**6)


def test_data_uris() -> None:
    assert read_data_uri(data_uri(png())) == png()
    for uri, status in (("data:text/html;base64,aGk=", 415), ("data:image/png,hi", 400), ("../../etc/passwd", 400)):
        with pytest.raises(RefusedError) as refused:
            read_data_uri(uri)
        assert refused.value.status == status


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_no_address_of_a_private_network_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


def test_public_addresses_are_public() -> None:
    assert all(is_public(ipaddress.ip_address(address)) for address in ("8.8.8.8", "2606:4700:4700::1111"))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png", "http://localhost/a.png", "http://[::1]/a.png", "http://0x7f000001/", "ftp://a/b",
        "http://8.8.8.8:22/", "http://user:word@8.8.8.8/", "http://8.8.8.8/a b", "http:///a", "http://[::1",
    ],
)  # fmt: skip
def test_addresses_that_are_never_fetched(url: str) -> None:
    with pytest.raises(RemoteError):
        fetch_image(url, max_bytes=1000, timeout_s=2)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        kind = "text/html" if self.path == "/page" else "image/png"
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("location", "http://169.254.169.254/latest")
        self.send_header("content-type", kind)
        self.end_headers()
        if self.path != "/away":
            self.wfile.write(png() * (1000 if self.path == "/large" else 1))

    def log_message(self, *_: object) -> None:
        pass


def test_a_fetch_is_bounded_typed_and_checks_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("vlmtune.data.remote._PORTS", {"http": server.server_port})
    host = f"http://127.0.0.1:{server.server_port}"

    def fetch(path: str) -> bytes:
        return fetch_image(host + path, max_bytes=10_000, timeout_s=5, is_allowed=lambda a: a.is_loopback)

    assert fetch("/good") == png()
    for path, said in (("/large", "larger"), ("/page", "text/html"), ("/away", "not a public address")):
        with pytest.raises(RemoteError, match=said):
            fetch(path)
    server.shutdown()


def form(*parts: tuple[str, bytes], boundary: bytes = b"B") -> bytes:
    body = b""
    for head, data in parts:
        body += (
            b"--" + boundary + b"\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n"
        )
    return body + b"--" + boundary + b"--\r\n"


def test_a_form_gives_its_file_and_fields_in_order() -> None:
    body = form(
        ("name=labels", b"cat"), ('name="image"; filename="../../x"', b"\r\n--not\0"), ("name=labels", "hü".encode())
    )
    found = read_form("multipart/form-data; boundary=B", body, "image")
    assert (found.file, found.fields) == (b"\r\n--not\0", [("labels", "cat"), ("labels", "hü")])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"garbage", form(("name=image; filename=a", b"x"))[:-6], form(("filename=a", b"x")),
        form(('name=image; filename="a"', b"x"), ('name=image; filename="b"', b"y")), form(("name=a", b"\xff")),
        form(("name=a", b"x" * 70_000)),
    ],
)  # fmt: skip
def test_broken_forms_are_refused(body: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        read_form("multipart/form-data; boundary=B", body, "image")
    assert refused.value.status == 400


def request(schema: object) -> ChatRequest:
    return ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        }
    )


def test_a_pydantic_enum_in_an_object_is_a_closed_set() -> None:
    schema = {
        "$defs": {"Color": {"enum": ["red", "blue"], "type": "string"}},
        "properties": {"color": {"$ref": "#/$defs/Color"}},
        "required": ["color"],
        "type": "object",
    }
    closed = closed_answer(request(schema))
    assert closed is not None and closed.answers == ("red", "blue")
    assert closed.write("blue") == '{"color": "blue"}'


@pytest.mark.parametrize(
    "schema",
    [
        {}, {"type": "string"}, {"enum": []}, {"enum": [None]}, {"enum": ["a"], "minLength": 3}, {"$ref": "#/$defs/x"},
        {"type": "object", "properties": {"a": {"enum": ["x"]}, "b": {"enum": ["y"]}}}, {"enum": ["a", "a"]},
        {"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "object", "properties": {"a": 1}},
    ],
)  # fmt: skip
def test_schemas_that_leave_more_open_are_refused(schema: object) -> None:
    with pytest.raises(RefusedError):
        closed_answer(request(schema))


class _Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode("utf-8", "replace")


def stream(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    pieces = TextStream(_Letters(), stops)  # type: ignore[arg-type]
    given = []
    for token in text.encode():
        given.append(pieces.push(token))
        if pieces.is_stopped:
            break
    return [*given, pieces.finish()], pieces


def test_streamed_pieces_hold_whole_characters_and_are_the_whole_text() -> None:
    pieces, _ = stream(" ein grüner 漢 Baum ")
    assert "".join(pieces) == "ein grüner 漢 Baum"
    assert all("\ufffd" not in piece for piece in pieces)


def test_nothing_of_a_stop_is_shown_and_a_false_start_is() -> None:
    pieces, stopped = stream("one END of ENDING", stops=("ENDING",))
    assert "".join(pieces) == "one END of" and stopped.is_stopped
    pieces, going = stream("one END", stops=("ENDING",))
    assert "".join(pieces) == "one END" and not going.is_stopped
