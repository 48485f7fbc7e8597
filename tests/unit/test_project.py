"""The shape of the code: who may import whom, what stays free of torch; that commands and configs are in order."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from vlmtune.cli import main
from vlmtune.config.load import is_staged, load_experiment, load_stages

pytestmark = pytest.mark.unit

REPO = Path(__file__).parents[2]
SOURCE = REPO / "src" / "vlmtune"
FILES = sorted(SOURCE.rglob("*.py"))

# A package imports only those that stand before it; serve and export are neighbors that do not know each other.
RANKS = (
    ("errors",),
    ("records",),
    ("files",),
    ("config",),
    ("data", "text"),
    ("models",),
    ("adapters",),
    ("runs",),
    ("inference",),
    ("tasks",),
    ("train",),
    ("estimate", "evaluate"),
    ("report",),
    ("serve", "export"),
    ("workflows",),
    ("api",),
    ("scale",),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}

# Modules that run where there is no torch, or before it is loaded: with everything of ours that they import.
TORCH_FREE = (
    "vlmtune.errors",
    "vlmtune.records",
    "vlmtune.files",
    "vlmtune.config",
    "vlmtune.data",
    "vlmtune.runs.layout",
    "vlmtune.runs.record",
    "vlmtune.runs.environment",
    "vlmtune.report",
    "vlmtune.evaluate.metrics",
    "vlmtune.evaluate.statistics",
    "vlmtune.evaluate.scoring",
    "vlmtune.evaluate.calibration",
    "vlmtune.evaluate.block_cache",
    "vlmtune.evaluate.compare",
    "vlmtune.workflows.progress",
    "vlmtune.api.results",
    "vlmtune.cli.main",
    "vlmtune.cli.console",
    "vlmtune.cli.options",
    "vlmtune.cli.config",
)
REPORT_MAY_IMPORT = ("errors", "records", "files", "config", "runs", "evaluate", "report")
TESTS_AND_BENCHMARKS_ONLY = {"transformers", "peft", "trl", "outlines", "accelerate"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
NO_COMMAND = {"__init__", "main", "console", "options"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, int]]:
    """Every module that is imported anywhere in a file, functions included, with its line; TYPE_CHECKING blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in MODULES else base), node.lineno


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    path = MODULES[module]
    return tuple(imports_of(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py"))


def package_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "vlmtune" and len(parts) > 1 else None


def rank_faults(module: str, imported: tuple[tuple[str, int], ...]) -> list[str]:
    own = package_of(module)
    if own is None:
        return []
    faults = []
    for name, line in imported:
        other = package_of(name)
        if other is None or other == own:
            continue
        if RANK[other] >= RANK[own]:
            faults.append(f"{module}:{line} imports {name}: {other} does not rank below {own}")
        elif own == "report" and other not in REPORT_MAY_IMPORT:
            faults.append(f"{module}:{line} imports {name}: a report is rendered from files alone")
    return faults


def test_every_package_has_a_rank() -> None:
    assert {package_of(module) for module in MODULES} - {None} <= set(RANK)


def test_imports_go_only_down_the_ranks() -> None:
    assert [fault for module in MODULES for fault in rank_faults(module, imports(module))] == []


def test_the_rank_rule_sees_imports_inside_functions_and_relative_ones() -> None:
    code = "def late():\n    from vlmtune.train import step\n    from ..cli import main\n    from . import weights\n"
    found = tuple(imports_of(ast.parse(code), "vlmtune.models.weights", is_package=False))
    assert found == (
        ("vlmtune.train.step" if "vlmtune.train.step" in MODULES else "vlmtune.train", 2),
        ("vlmtune.cli.main", 3),
        ("vlmtune.models.weights", 4),
    )
    assert len(rank_faults("vlmtune.models.weights", found)) == 2


def closure(module: str) -> dict[str, str]:
    """Everything of ours that importing a module (and calling its functions) loads: module -> who imports it."""
    found: dict[str, str] = {module: ""}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        names = [name for name, _ in imports(current) if name in MODULES]
        parts = current.split(".")
        names += [".".join(parts[:end]) for end in range(1, len(parts))]
        for name in names:
            if name not in found:
                found[name] = current
                waiting.append(name)
    return found


@pytest.mark.parametrize("prefix", TORCH_FREE)
def test_modules_that_promise_it_are_free_of_torch(prefix: str) -> None:
    faults = []
    for module in MODULES:
        if module != prefix and not module.startswith(prefix + "."):
            continue
        for inner, importer in closure(module).items():
            faults += [
                f"{module} → {inner}:{line} imports {name} (through {importer or 'itself'})"
                for name, line in imports(inner)
                if name.split(".")[0] in {"torch", "torchvision", "safetensors"}
            ]
    assert faults == []


def test_the_library_runs_without_the_peers_it_is_tested_against() -> None:
    assert [
        f"{module}:{line} imports {name}"
        for module in MODULES
        for name, line in imports(module)
        if name.split(".")[0] in TESTS_AND_BENCHMARKS_ONLY
    ] == []


def test_no_pickle_is_loaded() -> None:
    faults = []
    for module, path in MODULES.items():
        faults += [f"{module}:{line} imports {name}" for name, line in imports(module) if name in ("pickle", "joblib")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if keywords.get("weights_only") != "True":
                    faults.append(f"{module}:{node.lineno} calls torch.load without weights_only=True")
    assert faults == []


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    everywhere = [*FILES, *(REPO / "tests").rglob("*.py"), *(REPO / "bench").rglob("*.py")]
    assert [str(path) for path in everywhere if path.stem in FORBIDDEN_NAMES] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [
        module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ] == []


def test_every_test_file_names_its_tier() -> None:
    faults = []
    for path in (REPO / "tests").rglob("test_*.py"):
        tier = path.relative_to(REPO / "tests").parts[0]
        body = ast.parse(path.read_text(encoding="utf-8")).body
        marks = [ast.unparse(node) for node in body if isinstance(node, ast.Assign)]
        if not any(mark.startswith("pytestmark") and f"pytest.mark.{tier}" in mark for mark in marks):
            faults.append(str(path.relative_to(REPO)))
    assert faults == []


# ── commands ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_command_file_is_registered() -> None:
    files = {f"vlmtune.cli.{path.stem}" for path in (SOURCE / "cli").glob("*.py") if path.stem not in NO_COMMAND}
    assert files == {command.module for command in main.available()}


@pytest.mark.parametrize("command", main.available(), ids=lambda command: command.name)
def test_every_registered_command_has_the_function_that_is_named(command: main.Command) -> None:
    attribute = command.target.partition(":")[2]
    tree = ast.parse(MODULES[command.module].read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    defined |= {ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}
    assert attribute in defined


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from vlmtune.cli.main import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO)
    text, _, loaded = done.stdout.rpartition("LOADED")
    for command in main.available():
        assert f" {command.name} " in text
    heavy = {"torch", "datasets", "sklearn", "scipy", "matplotlib", "numpy", "pyarrow", "PIL", "pydantic", "tokenizers"}
    assert heavy & set(loaded.split()) == set()
    assert "typer" in loaded.split()


# ── experiments in the tree ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", sorted((REPO / "configs").rglob("*.y*ml")), ids=lambda path: path.name)
def test_every_yaml_in_the_tree_is_valid(path: Path) -> None:
    if is_staged(path):
        load_stages(path)
    else:
        load_experiment(path, must_exist=False)
