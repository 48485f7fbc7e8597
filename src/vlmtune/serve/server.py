"""uvicorn around the application: where it listens, and how it stops."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import uvicorn

from vlmtune.errors import UserError
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.serve.app import create_app
from vlmtune.serve.protocol import bounded_protocol
from vlmtune.serve.service import Service


class _Server(uvicorn.Server):
    """Reports its address once it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def run_server(
    service: Service, host: str, port: int, *, examples: Sequence[str] = (), on_ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; then stop listening, answer accepted requests, and return.

    Args:
        port: 0 picks a free one.
        examples: images for the page.
        on_ready: called with the server's address.

    Raises:
        UserError: if the address cannot be listened on.
    """
    listening, url = _listen(host, port)
    server = _Server(_config(service, examples), lambda: on_ready(url))
    # uvicorn raises the signal again once it has stopped; a server that finished its work exits with 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


class RunningServer:
    """A server on a thread of this process. Also a context manager: leaving it stops the server.

    Attributes:
        url: where it listens.
    """

    def __init__(self, server: uvicorn.Server, thread: threading.Thread, url: str) -> None:
        self._server, self._thread, self.url = server, thread, url

    def stop(self) -> None:
        """Stop listening and answer accepted requests."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"RunningServer({self.url!r})"


def start_server(service: Service, host: str, port: int, *, examples: Sequence[str] = ()) -> RunningServer:
    """Serve on a thread and return once it takes requests; arguments and errors as for `run_server`."""
    listening, url = _listen(host, port)
    is_ready = threading.Event()
    server = _Server(_config(service, examples), is_ready.set)

    def run() -> None:
        try:
            server.run(sockets=[listening])
        finally:
            is_ready.set()  # do not wait for a server that failed to start

    thread = threading.Thread(target=run, name="vlmtune-serve", daemon=True)
    thread.start()
    is_ready.wait()
    return RunningServer(server, thread, url)


def _config(service: Service, examples: Sequence[str]) -> uvicorn.Config:
    keep_freed_memory()  # batches of many sizes come and go; a tenth of a batch's time was spent on fresh pages
    settings = service.settings
    options: dict[str, Any] = {"http": bounded_protocol(settings), "ws": "none", "log_level": "warning"}
    return uvicorn.Config(
        create_app(service, examples),
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=round(settings.shutdown_timeout_s),
        backlog=2048,
        **options,
    )


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, and its address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({error.strerror or error}). Choose another --port or --host."
        ) from error
    listening.set_inheritable(True)
    written = f"[{host}]" if ":" in host else host
    return listening, f"http://{written}:{listening.getsockname()[1]}"
