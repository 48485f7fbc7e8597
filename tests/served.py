"""A real `vlmtune serve` in a process of its own, and images to send it."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

DIGITS = "0,1,2,3,4,5,6,7,8,9"


@dataclass
class Server:
    """A server that answers.

    Attributes:
        url: its address, without a slash at the end.
        lines: what it has written to stderr so far.
    """

    url: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def rss_bytes(self) -> int:
        """Memory it holds at this moment."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> int:
        """SIGTERM, as a service manager sends it; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def serving(model: str | Path, *options: str) -> Iterator[Server]:
    """Start a server on a free port and wait until it listens."""
    command = [sys.executable, "-m", "vlmtune.cli.main", "serve", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"served at (http://\S+)", line):
                server = Server(found[1], process, lines)
                # Nobody else reads the pipe; a full one would stop the server.
                threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True).start()
                yield server
                return
        raise AssertionError(f"the server did not start: {''.join(lines)}")
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def digit_png(number: int = 7) -> bytes:
    """One of scikit-learn's digits; number is its place in the set, the first ten are 0 to 9."""
    from vlmtune.data.read.builtin import read_digits

    return read_digits().splits["all"]()[number].image.read()


def png(width: int = 8, height: int = 8, color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
