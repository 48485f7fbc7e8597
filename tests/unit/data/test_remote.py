"""Images fetched from web addresses: public ones only, bounded, and typed."""

from __future__ import annotations

import ipaddress
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.served import png
from vlmtune.data.remote import RemoteError, fetch_image, is_public

pytestmark = pytest.mark.unit


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
