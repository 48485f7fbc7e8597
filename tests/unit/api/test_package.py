"""`import vlmtune` is light, and offers what its stub file promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlmtune

pytestmark = pytest.mark.unit

STUB = Path(vlmtune.__file__).with_suffix(".pyi")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, vlmtune; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "pydantic", "numpy", "PIL", "yaml", "ruamel", "rich", "typer"} & set(loaded) == set()


def test_stub_and_package_offer_the_same_names() -> None:
    nodes = ast.parse(STUB.read_text(encoding="utf-8")).body
    promised = {
        (alias.name, (node.module or "").removeprefix("vlmtune."))
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert promised == set(vlmtune._MODULES.items())  # type: ignore[attr-defined]
    assert set(vlmtune.__all__) <= set(dir(vlmtune))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["train", "evaluate", "export", "serve"])
def test_functions_are_not_hidden_by_packages_of_their_names(name: str) -> None:
    __import__(f"vlmtune.{name}")
    assert callable(getattr(vlmtune, name)) and sys.modules[f"vlmtune.{name}"].__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vlmtune.trian  # type: ignore[attr-defined]  # noqa: B018
