"""One server of the built-in model for all tests that only ask it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.served import DIGITS, Server, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with serving("builtin:tiny", "--labels", DIGITS, "--name", "digits") as started:
        yield started
