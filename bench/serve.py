"""Requests per second and latency of `/v1/classify`, batched against unbatched, at 1, 8 and 64 clients.

Each server is `vlmtune serve` in a process of its own; `wrk` (Debian: apt-get install wrk) asks one after the other, in
turns. Both servers are the same but for `--max-batch`: also the unbatched one keeps the prompt's cache and decodes on
other threads. Besides wall-clock figures, the server's processor time for one request is given,
which on a busy machine says more than requests per second.

    python bench/serve.py --json bench/results/serve.json
    python bench/serve.py --model 450m --labels 100 --seconds 30 --json bench/results/serve_450m.json
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import torch

CLIENTS = (1, 8, 64)
REQUEST = """
local file = io.open("{body}", "rb")
wrk.body = file:read("*a")
file:close()
wrk.method = "POST"
wrk.headers["Content-Type"] = "multipart/form-data; boundary=B"
function done(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %f %f %f\\n", summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""


@dataclass
class Server:
    name: str
    url: str
    process: subprocess.Popen[str]

    def cpu_seconds(self) -> float:
        """Processor time so far, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(name: str, model: str, labels: str, threads: int, *options: str) -> Iterator[Server]:
    """Start a server on a free port and wait until it listens."""
    command = [sys.executable, "-m", "vlmtune.cli.main", "serve", model, "--port", "0", "--labels", labels, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.search(r"served at (http://\S+)", line):
                yield Server(name, match[1], process)
                return
        raise SystemExit(f"{' '.join(command)} did not start")
    finally:
        process.terminate()
        process.wait()


def ask(server: Server, script: Path, clients: int, seconds: float) -> dict[str, float]:
    """One stretch of load."""
    before = server.cpu_seconds()
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "300s", "-s", str(script)]
    done = subprocess.run([*command, f"{server.url}/v1/classify"], capture_output=True, text=True, check=True)
    used = server.cpu_seconds() - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    requests, microseconds, errors, p50, p99, slowest = map(float, line.split()[1:])
    if errors:
        raise SystemExit(f"{server.name}, {clients} clients: {errors:.0f} errors")
    if requests < clients:  # too busy a machine for so short a time
        return ask(server, script, clients, 2 * seconds)
    return {
        "requests_per_s": requests / microseconds * 1e6,
        "p50_ms": p50 / 1000,
        "p99_ms": p99 / 1000,
        "max_ms": slowest / 1000,
        "cpu_ms_per_request": 1000 * used / requests,
        "requests": requests,
    }


def write_request(folder: Path) -> Path:
    """One of scikit-learn's digits in a form, as wrk sends it."""
    from vlmtune.data.read.builtin import read_digits

    image = read_digits().splits["all"]()[7].image.read()
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="7.png"\r\nContent-Type: image/png\r\n\r\n'
    (folder / "body").write_bytes(head + image + b"\r\n--B--\r\n")
    script = folder / "classify.lua"
    script.write_text(REQUEST.format(body=folder / "body"))
    return script


def write_450m(folder: Path) -> Path:
    """LFM2-VL-450M's sizes with random weights in bfloat16, and the tiny model's tokenizer (its tokens are enough)."""
    import peers

    from vlmtune.models.lfm2_vl import Lfm2Vl
    from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
    from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor
    from vlmtune.models.source import locate
    from vlmtune.models.weights import save_hf
    from vlmtune.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(locate("builtin:tiny"))
    config = Lfm2VlConfig.from_dict({**peers.config_450m(), "image_token_id": tokenizer.image_token_id})
    with torch.device("meta"):
        model = Lfm2Vl(config)
    model.load_state_dict(peers.random_weights(torch.bfloat16, torch.device("cpu")), strict=True, assign=True)
    folder.mkdir()
    save_hf(folder, model, model.config_dict(), tokenizer=tokenizer, processor=Lfm2VlImageProcessor())
    return folder


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every stretch of every server, and the ratios."""
    stretches: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = write_request(folder)
        model = str(write_450m(folder / "lfm2-vl-450m-random")) if options.model == "450m" else "builtin:tiny"
        labels = ",".join(map(str, range(options.labels)))
        servers = [
            stack.enter_context(
                serving(f"{dtype}_{kind}", model, labels, options.threads, "--dtype", dtype, "--max-batch", size)
            )
            for dtype in options.dtype
            for kind, size in (("batched", "64"), ("unbatched", "1"))
        ]
        for server in servers:
            ask(server, script, 1, 1)  # warm
        for repetition in range(options.repetitions):
            for clients in options.clients:
                for server in servers:
                    stretch = ask(server, script, clients, options.seconds)
                    stretches.setdefault(f"{server.name}:{clients}", []).append(stretch)
                    measure.progress(
                        f"  {repetition + 1}/{options.repetitions} {server.name}, {clients} clients: "
                        f"{stretch['requests_per_s']:.1f}/s, p99 {stretch['p99_ms']:.0f} ms, "
                        f"{stretch['cpu_ms_per_request']:.2f} ms of processor"
                    )
            servers.reverse()
    return {"stretches": stretches, "ratios": ratios(stretches, options)}


def ratios(stretches: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Batched against unbatched, formed within a repetition."""
    results = {}
    for dtype in options.dtype:
        for clients in options.clients:
            batched, unbatched = (stretches[f"{dtype}_{kind}:{clients}"] for kind in ("batched", "unbatched"))
            pairs = list(zip(batched, unbatched, strict=True))
            results[f"{dtype}_requests_per_s:{clients}"] = measure.spread(
                [b["requests_per_s"] / u["requests_per_s"] for b, u in pairs]
            )
            results[f"{dtype}_cpu:{clients}"] = measure.spread(
                [u["cpu_ms_per_request"] / b["cpu_ms_per_request"] for b, u in pairs]
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "450m"], default="tiny")
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS))
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch in each server")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("bench/serve.py needs wrk (Debian: apt-get install wrk)")
    started, load = time.time(), os.getloadavg()
    results = run(options)
    for name, value in results["ratios"].items():
        print(f"{name:36s} {value['value']:.2f}  ({value['low']:.2f} to {value['high']:.2f})")
    facts = {
        "model": options.model,
        "labels": options.labels,
        "threads": options.threads,
        "stretch_s": options.seconds,
        "load": {"before": load, "after": os.getloadavg()},
        "taken_s": round(time.time() - started),
    }
    measure.write_json(options.json, measure.record("serve", torch.device("cpu"), False, **facts, **results))


if __name__ == "__main__":
    main()
