"""Side-by-side timing: contenders in turns in one process, memory each in its own, every repetition kept.

The benchmarks hand in functions and get back seconds; ratios are formed within a repetition, so that a busy
machine slows both sides of a ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

PACKAGES = ("vlmtune", "torch", "transformers", "peft", "trl", "accelerate", "outlines", "outlines_core", "tokenizers")


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards is meaningful."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """The unit of a benchmark's seconds.

    ``kind`` is ``wall``; or ``cpu``, processor seconds of this process: for use with one thread where others
    use the same cores, since waiting for a core is not counted.
    """

    kind: Literal["wall", "cpu"] = "wall"

    @classmethod
    def now(cls) -> float:
        return time.perf_counter() if cls.kind == "wall" else time.process_time()


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call, by the benchmark's clock."""
    gc.collect()
    synchronize(device)
    start = Clock.now()
    work()
    synchronize(device)
    return Clock.now() - start


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="under four minutes on two cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, help="write every repetition and the ratios there")
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time, for a machine in use"
    )


def apply_options(options: argparse.Namespace) -> torch.device:
    device = torch.device(options.device)
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    Clock.kind = options.clock
    return device


def interleave(
    contenders: Mapping[str, Callable[[], Any]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each contender, in turns: A B C, then C B A, and so on, against drift of the machine."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for repetition in range(repetitions):
        for name in order:
            taken = seconds_of(contenders[name], device)
            seconds[name].append(taken)
            progress(f"  {repetition + 1}/{repetitions} {name}: {taken:.2f} s")
        order.reverse()
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Speedup of the second over the first: median and range of the ratios of paired repetitions."""
    paired = [s / f for s, f in zip(slow, fast, strict=True)]
    return {"value": statistics.median(paired), "low": min(paired), "high": max(paired)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of ratios."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values)}


def matrix_rate(device: torch.device, dtype: torch.dtype, rows: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s of plain matrix products of the decoder's own sizes: [rows, 1024] × [1024, 4608] and back.

    The best of several stretches: the machine's capability, not its rate under other load.
    """
    x = torch.randn(rows, 1024, device=device, dtype=dtype)
    up = torch.randn(4608, 1024, device=device, dtype=dtype)
    down = torch.randn(1024, 4608, device=device, dtype=dtype)
    flop = 2 * 2 * rows * 1024 * 4608

    def product() -> None:
        torch.nn.functional.linear(torch.nn.functional.linear(x, up), down)

    product()
    best, deadline = float("inf"), Clock.now() + seconds
    while Clock.now() < deadline:
        best = min(best, seconds_of(product, device))
    return flop / best


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far (building a model needs more than stepping it)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process held since `reset_peak_memory`; on CUDA, of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder again with other arguments; it prints one JSON object as its last line."""
    progress(f"  own process: {' '.join(arguments)}")
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}.")
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def machine(device: torch.device) -> dict[str, Any]:
    """A description of the machine that was measured."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next((line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")), model)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    packages = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return packages


def record(benchmark: str, device: torch.device, quick: bool, **content: Any) -> dict[str, Any]:
    """The JSON object of a benchmark: machine, time, versions, and results."""
    return {
        "benchmark": benchmark,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "clock": Clock.kind,
        "machine": machine(device),
        "versions": versions(),
        **content,
    }


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        progress(f"written: {path}")


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for reading as plain text too."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    lines = [
        [str(c).ljust(w) if i == 0 else str(c).rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in [header, rule, *rows]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio_table(ratios: Mapping[str, Mapping[str, float] | None]) -> str:
    rows = [
        [name, f"{r['value']:.2f}", f"{r['low']:.2f} to {r['high']:.2f}"] if r else [name, "not measured", ""]
        for name, r in ratios.items()
    ]
    return table(["ratio", "median", "range"], rows)
