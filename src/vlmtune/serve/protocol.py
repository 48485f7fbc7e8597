"""uvicorn's HTTP protocol with the two limits it lacks: how long headers may take, and how large they may be.

A connection that never finishes its headers reaches no application, so no middleware can end it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vlmtune.serve.settings import ServeSettings


def bounded_protocol(settings: ServeSettings) -> type[HttpToolsProtocol]:
    """The protocol class for these limits, as uvicorn's option ``http`` takes it."""

    class BoundedProtocol(HttpToolsProtocol):
        _header_bytes = 0
        _is_in_headers = True
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._is_in_headers:
                if self._timer is None:
                    self._await_headers()
                # One packet may hold the end of the headers and much of the body, so the last one is accepted.
                if self._header_bytes > settings.max_header_bytes:
                    self._give_up("The headers of this request are too large.")
                    return
                self._header_bytes += len(data)
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._is_in_headers = False
            self._stop_timer()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            self._is_in_headers = True
            self._header_bytes = 0
            super().on_response_complete()

        def _await_headers(self) -> None:
            self._timer = self.loop.call_later(
                settings.header_timeout_s, self._give_up, "The headers of this request took too long."
            )

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _give_up(self, message: str) -> None:
            self._stop_timer()
            if not self.transport.is_closing():
                self.send_400_response(message)

    return BoundedProtocol
