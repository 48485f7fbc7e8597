"""The middleware in front of every route: API key, queue, and limits on a body's size and time.

In: every request. A body is read here, within its limits, before the application sees the request. Out: the
application's answer, or a refusal; both are counted in the metrics. Called by Starlette, see `app.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import time
from collections.abc import Collection

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmtune.serve.errors import RefusedError, busy
from vlmtune.serve.metrics import Metrics
from vlmtune.serve.settings import ServeSettings

log = logging.getLogger("vlmtune.serve")

_PROTECTED = ("/v1/", "/metrics")
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Limits:
    """ASGI middleware.

    Args:
        app: the wrapped application.
        settings, metrics: of the server.
        paths: every path of the application; others are counted together.
        work: the paths that run the model, by POST.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, paths: Collection[str], work: Collection[str]
    ) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._paths = paths
        self._work = work
        self._in_flight = 0
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status, has_started = 500, False
        is_work = scope["method"] == "POST" and scope["path"] in self._work
        # An unread body ends with the connection.
        has_body = _header(scope, b"transfer-encoding") or _header(scope, b"content-length") not in (b"", b"0")
        closing = [(b"connection", b"close")] if has_body and not is_work else []

        async def sending(event: Message) -> None:
            nonlocal status, has_started
            if event["type"] == "http.response.start":
                status, has_started = event["status"], True
                event["headers"] = [*event.get("headers", ()), *_HEADERS, *closing]
            await send(event)

        try:
            await self._pass(scope, receive, sending, is_work)
        except RefusedError as refusal:
            if not has_started:  # otherwise the closed connection shows that the answer is incomplete
                await _refuse(refusal, sending)
        except Exception:
            log.exception("%s %s failed", scope["method"], scope["path"])
            if not has_started:
                failed = RefusedError(500, "internal_error", "The server failed at this request; see its log.")
                await _refuse(failed, sending)
        finally:
            path = scope["path"]
            path = path if path in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(time.perf_counter() - started)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, is_work: bool) -> None:
        path = scope["path"]
        if path.startswith(_PROTECTED):
            self._check_key(scope)
        if not is_work:
            await self._app(scope, _no_body, send)
            return
        if self._in_flight >= self._settings.max_requests:
            raise busy(self._retry_after_s())
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        body = bytearray()
        try:
            await self._read(scope, receive, body)
            async with asyncio.timeout(self._settings.request_timeout_s):
                await self._app(scope, _after_body(bytes(body), receive), send)
        except TimeoutError as error:
            seconds = self._settings.request_timeout_s
            raise RefusedError(504, "timeout", f"Not answered within {seconds:g} s.", retry_after_s=5) from error
        finally:
            self._buffered -= len(body)
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)

    def _check_key(self, scope: Scope) -> None:
        key = self._settings.api_key
        if key is None:
            return
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), key.encode()):
            raise RefusedError(
                401, "invalid_api_key", "This server expects 'Authorization: Bearer KEY' with its own key."
            )

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Fill ``body``. Raises RefusedError: 413 too large, 408 too slow, 429 too many bytes in total."""
        limit = self._settings.max_body_bytes
        too_large = RefusedError(413, "request_too_large", f"The request's body may have up to {limit:,} bytes.")
        length = _header(scope, b"content-length") or b"0"
        if not length.isdigit() or int(length) > limit:
            raise too_large
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise RefusedError(400, "incomplete_body", "The request ended before its body did.")
                    chunk = event.get("body", b"")
                    body += chunk
                    self._buffered += len(chunk)
                    if len(body) > limit:
                        raise too_large
                    if self._buffered > self._settings.max_buffered_bytes:
                        raise busy(self._retry_after_s())
                    if not event.get("more_body", False):
                        return
        except TimeoutError as error:
            raise RefusedError(
                408, "body_too_slow", f"The body did not arrive within {self._settings.body_timeout_s:g} s."
            ) from error

    def _retry_after_s(self) -> int:
        """Estimated seconds until there is room: a full queue at the rate of the last batches."""
        return max(1, math.ceil(self._metrics.seconds_per_request() * self._in_flight))


def _header(scope: Scope, name: bytes) -> bytes:
    value: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return value


async def _no_body() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def _after_body(body: bytes, receive: Receive) -> Receive:
    """``receive`` for the application: the whole body first, then what comes after it."""
    is_given = False

    async def given_first() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return given_first


async def _refuse(refusal: RefusedError, send: Send) -> None:
    """Send the refusal and close the connection, without reading the rest of the body."""
    body = orjson.dumps(refusal.body())
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **refusal.headers(),
    }
    event = {"type": "http.response.start", "status": refusal.status}
    await send({**event, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})
