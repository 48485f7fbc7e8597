"""Two revisions of this repository in turns: training step, label scoring, server and demo, and their peak memory.

    git worktree add ../before REVISION
    python bench/revisions.py --before ../before --json bench/results/revisions.json

Each measurement is a command of vlmtune in a separate process with the sources of one tree or the other; the
order alternates. Ratios are before / after of paired repetitions: above 1 the working tree is faster. The 450M has
LFM2-VL's sizes and random weights; its images are scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import serve


@dataclass(frozen=True)
class Tree:
    """A checkout whose `src/` is measured."""

    name: str
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.path / "src"), "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Outcome:
    """One run of a command: seconds of what is measured, and the process's peak memory in MiB."""

    seconds: float
    memory_mib: float


def run(tree: Tree, *arguments: str) -> tuple[Any, Outcome]:
    """A command's JSON (None without), its wall-clock seconds and peak memory."""
    command = [sys.executable, "-m", "vlmtune.cli.main", *arguments]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, env={**os.environ, **tree.environment})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), log.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{log.read().decode()[-2000:]}")
        text = out.read().decode()
    seconds = time.perf_counter() - started
    return (json.loads(text) if "--json" in arguments else None), Outcome(seconds, usage.ru_maxrss / 1024)


def experiment(folder: Path, model: str, **sections: dict[str, Any]) -> Path:
    """An experiment's file; JSON is YAML."""
    values = {"model": {"base": model, "dtype": "float32"}, "data": {"source": "builtin:digits"}, **sections}
    values["output_dir"] = str(folder / "runs")
    path = folder / f"{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(json.dumps(values))
    return path


def train(tree: Tree, folder: Path, model: str, steps: int, batch: int) -> Outcome:
    """Training alone, without preflight, validation and test."""
    config = experiment(
        folder,
        model,
        data={"source": "builtin:digits", "limit": 200, "limit_validation": 4, "limit_test": 4},
        train={"max_steps": steps, "batch_size": batch, "eval_every": steps, "feature_cache": "off"},
    )
    result, outcome = run(tree, "train", str(config), "--json")
    return Outcome(result["seconds"], outcome.memory_mib)


def score(tree: Tree, folder: Path, model: str, mode: str, images: int) -> Outcome:
    """The evaluation's own seconds, without opening the model."""
    names = {str(label): f"label {label} of ten" for label in range(10)}
    config = experiment(folder, model, task={"label_names": names}, evaluate={"mode": mode, "limit": images})
    facts, outcome = run(tree, "evaluate", str(config), "--checkpoint", "base", "--json")
    return Outcome(facts["seconds"], outcome.memory_mib)


def demo(tree: Tree, folder: Path, number: int) -> Outcome:
    """The whole demo, including the report."""
    return run(tree, "demo", "--output", str(folder / f"demo-{tree.name}-{number}"))[1]


def compare(
    trees: tuple[Tree, Tree], name: str, repetitions: int, work: Callable[[Tree, int], Outcome]
) -> dict[str, Any]:
    """Both trees in turns; every outcome, and the ratios."""
    outcomes: dict[str, list[Outcome]] = {tree.name: [] for tree in trees}
    order = list(trees)
    for number in range(repetitions):
        for tree in order:
            outcome = work(tree, number)
            outcomes[tree.name].append(outcome)
            measure.progress(f"  {name} {tree.name}: {outcome.seconds:.2f} s, {outcome.memory_mib:.0f} MiB")
        order.reverse()
    before, after = (outcomes[tree.name] for tree in trees)
    return {
        "seconds": {tree: [round(o.seconds, 3) for o in runs] for tree, runs in outcomes.items()},
        "memory_mib": {tree: [round(o.memory_mib) for o in runs] for tree, runs in outcomes.items()},
        "speed": measure.ratio([o.seconds for o in before], [o.seconds for o in after]),
        "memory": measure.ratio([o.memory_mib for o in before], [o.memory_mib for o in after]),
    }


def compare_servers(trees: tuple[Tree, Tree], folder: Path, repetitions: int, seconds: float) -> dict[str, Any]:
    """Requests per second of two servers side by side, loaded in turns."""
    script = serve.write_request(folder)
    stretches: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        servers = []
        for tree in trees:
            os.environ.update(tree.environment)
            servers.append(stack.enter_context(serve.serving(tree.name, "builtin:tiny", "0,1,2,3,4,5,6,7,8,9", 2)))
        for server in servers:
            serve.ask(server, script, 1, 1)  # warm
        for _ in range(repetitions):
            for clients in (1, 64):
                for server in servers:
                    rate = serve.ask(server, script, clients, seconds)["requests_per_s"]
                    stretches.setdefault(f"{clients} clients", {}).setdefault(server.name, []).append(rate)
                    measure.progress(f"  serve {server.name}, {clients} clients: {rate:.1f}/s")
            servers.reverse()
    names = [tree.name for tree in trees]
    return {
        key: {"requests_per_s": rates, "speed": measure.ratio(rates[names[1]], rates[names[0]])}
        for key, rates in stretches.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the older revision")
    parser.add_argument("--only", nargs="+", choices=["train", "score", "serve", "demo"])
    measure.add_options(parser)
    options = parser.parse_args()
    device = measure.apply_options(options)
    trees = (Tree("before", options.before.resolve()), Tree("after", Path(__file__).resolve().parents[1]))
    repetitions = options.repetitions or (2 if options.quick else 4)
    parts = options.only or ["train", "score", "serve", "demo"]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if {"train", "score"} & set(parts):
            large = str(serve.write_450m(folder / "lfm2-vl-450m-random"))
        if "train" in parts:
            for name, model, steps, batch in (("tiny", "builtin:tiny", 60, 16), ("450m", large, 4, 4)):
                results[f"train {name}"] = compare(
                    trees,
                    f"train {name}",
                    repetitions,
                    lambda t, n, m=model, s=steps, b=batch: train(t, folder, m, s, b),
                )
        if "score" in parts:
            for name, model, images in (("tiny", "builtin:tiny", 360), ("450m", large, 16)):
                for mode in ("full", "argmax"):
                    results[f"score {name} {mode}"] = compare(
                        trees,
                        f"score {name} {mode}",
                        repetitions,
                        lambda t, n, m=model, i=images, k=mode: score(t, folder, m, k, i),
                    )
        if "serve" in parts:
            results |= {
                f"serve {key}": value for key, value in compare_servers(trees, folder, repetitions, 5.0).items()
            }
        if "demo" in parts:
            results["demo"] = compare(trees, "demo", max(1, repetitions // 2), lambda t, n: demo(t, folder, n))
    ratios = {
        f"{name}: {kind}": value[kind]
        for name, value in results.items()
        for kind in ("speed", "memory")
        if kind in value
    }
    print(measure.ratio_table(ratios))
    measure.write_json(options.json, measure.record("revisions", device, options.quick, results=results, ratios=ratios))


if __name__ == "__main__":
    main()
