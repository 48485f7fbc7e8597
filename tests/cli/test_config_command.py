"""`vlmtune`, its exit codes, and `vlmtune config`, run as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlmtune import __version__
from vlmtune.cli import main as command_line
from vlmtune.config.load import load_experiment

pytestmark = pytest.mark.cli


def vlmtune(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmtune.cli.main", *args], capture_output=True, text=True, cwd=cwd, timeout=60
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\ntrain: {epochs: 2}\n")
    return path


def test_version_and_help_succeed() -> None:
    assert vlmtune("--version").stdout == f"vlmtune {__version__}\n"
    assert vlmtune("-h").returncode == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["confg"], "config"),
        (["config", "shw"], "show"),
        (["config", "validate"], "CONFIG"),
        (["config", "show", "x.yaml", "--josn"], "--json"),
    ],
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(args: list[str], words: str) -> None:
    done = vlmtune(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr


def test_show_prints_a_file_that_loads_as_the_same_experiment(config: Path, tmp_path: Path) -> None:
    done = vlmtune("config", "show", str(config), "--as-written", "--set", "train.epochs=5")
    assert (done.returncode, done.stderr) == (0, "")
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    assert load_experiment(again) == load_experiment(config, ["train.epochs=5"])


def test_show_as_json_is_one_object(config: Path) -> None:
    shown = json.loads(vlmtune("config", "show", str(config), "--as-written", "--json").stdout)
    assert (shown["name"], shown["seed"], shown["train"]["epochs"]) == ("mine", 3, 2.0)


def test_show_decides_what_the_file_leaves_out(config: Path) -> None:
    pytest.importorskip("vlmtune.data.splits")
    done = vlmtune("config", "show", str(config), "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["adapter"]["rank"] and shown["train"]["batch_size"] and shown["train"]["epochs"] == 2.0


def test_validate_says_valid(config: Path) -> None:
    done = vlmtune("config", "validate", str(config))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{config}: valid\n", "")


def test_validate_prints_every_error_of_every_file_without_a_traceback(config: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("sed: 1\ntask: {labels: [yes, yes]}\n")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    done = vlmtune("config", "validate", str(wrong), str(config), str(empty))
    assert done.returncode == 1
    assert done.stdout == f"{config}: valid\n"
    assert done.stderr.startswith(f"Error: 2 problems in {wrong}:\n")
    assert f"{wrong}:1: sed: unknown key. Did you mean 'seed'?" in done.stderr
    assert f"{wrong}:2: task.labels[1]: found 'yes' again" in done.stderr
    assert f"{empty}: the file is empty" in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_as_json_lists_place_key_and_message(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("data: ./gone\n")
    done = vlmtune("config", "validate", str(wrong), "--json")
    assert done.returncode == 1
    (file,) = json.loads(done.stdout)
    assert not file["valid"]
    (problem,) = file["problems"]
    assert (problem["place"], problem["key"]) == (f"{wrong}:1", "data.source")
    skipped = vlmtune("config", "validate", str(wrong), "--json", "--skip-paths")
    assert json.loads(skipped.stdout) == [{"file": str(wrong), "valid": True, "problems": []}]


# ── what main() makes of errors ─────────────────────────────────────────────────────────────────────────────────────


def stop_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(command_line, "COMMANDS", (command_line.Command("broken", "vlmtune.errors:broken", "Breaks."),))
    monkeypatch.setattr("vlmtune.errors.broken", broken, raising=False)
    with pytest.raises(SystemExit) as stop:
        command_line.main(["broken"])
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (OSError(28, "No space left on device", "/runs/a/best"), 1, "Error: /runs/a/best: the disk is full. Free some"),
        (PermissionError(13, "Permission denied", "/runs"), 1, "Error: /runs: permission denied. Change its"),
        (OSError(30, "Read-only file system", "/runs"), 1, "Error: /runs: the file system is read-only."),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "Error: the disk is full"),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_the_system_and_the_user_are_answered_in_one_line(error, code, expected, monkeypatch, capsys) -> None:
    assert stop_with(error, monkeypatch) == code
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(expected)
    assert "\n" not in printed


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch) -> None:
    with pytest.raises(ZeroDivisionError):
        stop_with(ZeroDivisionError(), monkeypatch)
    with pytest.raises(OSError, match="unheard"):
        stop_with(OSError(99, "unheard of"), monkeypatch)
