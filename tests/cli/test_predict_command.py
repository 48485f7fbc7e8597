"""`vlmtune predict` and the options of `vlmtune serve` as a person meets them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.served import DIGITS, digit_png

pytestmark = pytest.mark.cli


def vlmtune(*args: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlmtune.cli.main", *map(str, args)]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    (root / "inner").mkdir()
    (root / "b3.png").write_bytes(digit_png(3))
    (root / "inner" / "c7.png").write_bytes(digit_png(7))
    (root / "a_broken.png").write_bytes(digit_png(7)[:100])
    (root / "notes.txt").write_text("no image")
    return root


def test_an_unreadable_image_is_listed_and_exits_1(folder: Path) -> None:
    done = vlmtune("predict", "builtin:tiny", folder, "--labels", DIGITS, "--json")
    results = json.loads(done.stdout)
    assert done.returncode == 1 and "1 of 3 images could not be read" in done.stderr
    assert [Path(result["image"]).name for result in results] == ["a_broken.png", "b3.png", "c7.png"]
    assert "error" in results[0]
    assert [result["label"] for result in results[1:]] == ["3", "7"]
    for result in results[1:]:
        assert sum(result["probabilities"].values()) == pytest.approx(1)
        assert list(result["probabilities"]) == sorted(result["probabilities"], key=result["probabilities"].get)[::-1]


def test_globs_and_stdin_give_csv_columns_by_label(folder: Path) -> None:
    done = vlmtune("predict", "builtin:tiny", folder / "b*.png", "-", "--labels", DIGITS, "--csv",
                   stdin=f"{folder / 'inner' / 'c7.png'}\n\n")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["label"] for row in rows] == ["3", "7"]
    assert rows[1]["probability"] == rows[1]["7"]


def test_abstaining_and_top_limit_the_labels(folder: Path) -> None:
    done = vlmtune("predict", "builtin:tiny", folder / "b3.png", "--labels", DIGITS, "--json", "--top", "2",
                   "--abstain-below", "1")  # fmt: skip
    (result,) = json.loads(done.stdout)
    assert result["label"] is None and len(result["probabilities"]) == 2
    assert "1 of 1 images got no label" in done.stderr


def test_a_question_gets_an_answer(folder: Path) -> None:
    done = vlmtune("predict", "builtin:tiny", folder / "b3.png", "--question", "What digit is it?")
    assert (done.returncode, done.stdout.split()[-1]) == (0, "3")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.png",), "nowhere.png: not found"),
        (("https://example.com/a.png",), "--allow-urls"),
        (("--json", "--csv", "x.png"), "choose one"),
        (("--labels", "a,a", "x.png"), "more than once"),
        (("--question", "what?", "--top", "2", "x.png"), "--question"),
    ],
)
def test_wrong_input_is_one_message(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    (tmp_path / "x.png").write_bytes(digit_png())
    found = [str(tmp_path / name) if name == "x.png" else name for name in arguments]
    done = vlmtune("predict", "builtin:tiny", *found)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and said in done.stderr


def test_private_addresses_are_not_fetched_even_where_urls_are(tmp_path: Path) -> None:
    done = vlmtune("predict", "builtin:tiny", "http://127.0.0.1/a.png", "--allow-urls", "--labels", "a,b", "--json")
    assert done.returncode == 1
    assert "not a public address" in json.loads(done.stdout)[0]["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--dtype", "int4"), "float32"),
        (("--labels", "@nowhere.txt"), "nowhere.txt"),
        (("--examples", "nowhere"), "nowhere"),
        (("--host", "203.0.113.1"), "cannot listen"),
    ],
)
def test_serve_says_what_is_wrong_before_it_listens(arguments: tuple[str, ...], said: str) -> None:
    done = vlmtune("serve", "builtin:tiny", "--port", "0", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and said in done.stderr
