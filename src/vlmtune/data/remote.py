"""Images from web addresses, where allowed: public hosts only, with bounds on size and time.

`predict --allow-urls` and `serve --allow-urls` come here. A server that fetches addresses from clients must not give
them access to its network (SSRF): it connects to the very address that was checked, checks redirects
like first addresses, and ignores proxies of the environment.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from vlmtune import __version__
from vlmtune.errors import UserError

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/32")  # a gateway maps the rest to an IPv4 address of its network
_PORTS = {"http": 80, "https": 443}
_MAX_REDIRECTS = 3
_CHUNK = 65_536


class RemoteError(UserError):
    """An address that is not fetched, or whose response is not an image."""


def is_public(address: IpAddress) -> bool:
    """Whether an address belongs to the public internet: not private, loopback, link-local, multicast, reserved…"""
    inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    if isinstance(address, ipaddress.IPv6Address) and (address.teredo is not None or address in _NAT64):
        return False
    return address.is_global and not address.is_multicast and (inner is None or is_public(inner))


def fetch_image(
    url: str, *, max_bytes: int, timeout_s: float = 10.0, is_allowed: Callable[[IpAddress], bool] = is_public
) -> bytes:
    """The bytes behind an http(s) address.

    Args:
        url: on the scheme's own port, without user name.
        max_bytes, timeout_s: of the whole fetch, redirects included.
        is_allowed: which addresses may be connected to.

    Raises:
        RemoteError: for a forbidden address, a failure, a status other than 200, or a response that is not an image.
    """
    deadline = time.monotonic() + timeout_s
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _check(url)
        connection = _connect(parts, deadline, is_allowed)
        # A server that sends a byte now and then never triggers the socket's timeout.
        watch = threading.Timer(_left(deadline, url), _shut, [connection.sock])
        watch.start()
        try:
            answer = _ask(connection, parts)
            location = answer.getheader("location")
            if answer.status in (301, 302, 303, 307, 308) and location:
                url = urljoin(url, location)
                continue
            if answer.status != 200:
                raise RemoteError(f"{url}: answered with status {answer.status}, expected 200.")
            kind = (answer.getheader("content-type") or "").partition(";")[0].strip().lower()
            if not kind.startswith("image/") and kind != "application/octet-stream":
                raise RemoteError(f"{url}: sent as {kind or 'nothing in particular'}, expected an image (image/…).")
            return _read(answer, url, max_bytes, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"{url}: could not be fetched ({error or type(error).__name__}).") from error
        finally:
            watch.cancel()
            connection.close()
    raise RemoteError(f"{url}: redirected more than {_MAX_REDIRECTS} times.")


def _check(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise RemoteError(f"{url}: not a valid address ({error}).") from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise RemoteError(f"{url}: expected an address that begins with http:// or https://.")
    if port not in (None, _PORTS[parts.scheme]) or parts.username is not None:
        raise RemoteError(f"{url}: other ports than 80 and 443, and user names in addresses, are not fetched.")
    if not url.isascii() or any(character <= " " for character in url):
        raise RemoteError(f"{url!r}: an address holds ASCII without spaces. Encode the rest (%20, punycode).")
    return parts


def _connect(
    parts: SplitResult, deadline: float, is_allowed: Callable[[IpAddress], bool]
) -> http.client.HTTPConnection:
    """A connection to the checked address, not to the name, which could resolve differently a moment later."""
    host, port = parts.hostname, _PORTS[parts.scheme]
    assert host is not None
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RemoteError(f"{host}: this name cannot be resolved ({error}).") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    if not addresses or not all(map(is_allowed, addresses)):
        raise RemoteError(f"{host}: not a public address. Private networks and this machine are never fetched from.")
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(host, port, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port)
    try:
        plain = socket.create_connection((str(addresses[0]), port), timeout=_left(deadline, host))
        plain.settimeout(_left(deadline, host))
        if isinstance(connection, http.client.HTTPSConnection):
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
        else:
            connection.sock = plain
    except OSError as error:
        raise RemoteError(f"{host}: no connection ({error}).") from error
    return connection


def _ask(connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {"accept": "image/*", "user-agent": f"vlmtune/{__version__}", "connection": "close"}
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def _read(answer: http.client.HTTPResponse, url: str, max_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    while chunk := answer.read1(_CHUNK):
        data += chunk
        if len(data) > max_bytes:
            raise RemoteError(f"{url}: larger than {max_bytes:,} bytes.")
        _left(deadline, url)
    _left(deadline, url)  # the watchdog may have cut it short
    return bytes(data)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _left(deadline: float, what: str) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise RemoteError(f"{what}: took too long.")
    return left
