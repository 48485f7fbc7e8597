"""The two lists of calls in CONTRIBUTING are true: a small real run makes these calls, in this order."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import pytest
from PIL import Image

from vlmtune.cli.main import main

pytestmark = pytest.mark.e2e

REPO = Path(__file__).parents[2]
SOURCE = REPO / "src" / "vlmtune"
MOST_HOPS = {"predict": 12, "train": 20}

CONFIG = """
data: {source: "builtin:digits", limit: 40, limit_test: 20}
train: {max_steps: 1, batch_size: 4, feature_cache: "off"}
"""


def flow(command: str) -> list[str]:
    """The functions of a list in CONTRIBUTING, `module.function` each."""
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index(f"**`{command}`") :].partition("\n\n")[2].partition("\n\n")[0]
    return re.findall(r"^\d+\. `([\w.]+)`", section, flags=re.MULTILINE)


@contextmanager
def recorded() -> Iterator[list[str]]:
    """The name of every function of ours that is called on any thread while the block lasts, in order."""
    calls: list[str] = []
    names: dict[CodeType, str | None] = {}

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in names:
            path = Path(code.co_filename)
            is_ours = path.is_relative_to(SOURCE)
            module = ".".join(path.relative_to(SOURCE).with_suffix("").parts) if is_ours else ""
            names[code] = f"{module}.{code.co_qualname}" if is_ours else None
        if (name := names[code]) is not None:
            calls.append(name)

    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def first_missing(functions: list[str], calls: list[str]) -> str | None:
    """The first function that is not called after those before it; None if all are."""
    remaining = iter(calls)
    return next((function for function in functions if function not in remaining), None)


@pytest.mark.parametrize("command", ["predict", "train"])
def test_flow_in_contributing_is_what_happens(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("walk.yaml").write_text(CONFIG)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("a.png")
    arguments = {
        "predict": ["predict", "builtin:tiny", "a.png", "--labels", "one,two"],
        "train": ["train", "walk.yaml"],
    }
    functions = flow(command)
    with recorded() as calls, pytest.raises(SystemExit) as stop:
        main(arguments[command])
    assert not stop.value.code
    assert 0 < len(functions) <= MOST_HOPS[command]
    assert first_missing(functions, calls) is None


def test_a_flow_out_of_order_is_noticed() -> None:
    assert first_missing(["a", "b"], ["a", "c", "b"]) is None
    assert first_missing(["b", "a"], ["a", "c", "b"]) == "a"
