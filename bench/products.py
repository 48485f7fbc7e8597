"""Matrix products of linear layers, MKL against oneDNN, at the shapes of LFM2-VL-450M and of the built-in model.

    python bench/products.py [--threads N] [--quick]

Both are timed in turns in one run, and the shortest of many times counts. With one thread it is the processor's time of
this process, which leaves out most of what others do on the machine. A ratio above 1: oneDNN is faster. `taken` is what
`vlmtune.models.products` takes here in inference.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmtune.models.layers import Linear
from vlmtune.models.products import has_onednn, is_onednn_faster, onednn_linear

# (what, tokens, inputs, outputs, whether a GELU follows)
SHAPES = (
    ("tiny: tower fc1", 1024, 128, 384, True),
    ("tiny: decoder w1", 512, 160, 448, False),
    ("450M: tower q_proj", 1024, 768, 768, False),
    ("450M: tower fc1", 1024, 768, 3072, True),
    ("450M: tower fc2", 1024, 3072, 768, False),
    ("450M: decoder w1", 64, 1024, 4608, False),
    ("450M: decoder w1", 512, 1024, 4608, False),
    ("450M: decoder w2", 512, 4608, 1024, False),
    ("450M: decoder in_proj", 16, 1024, 3072, False),
)


def best_of(runs: list[Callable[[], Tensor]], seconds: float, clock: Callable[[], float]) -> list[float]:
    """The shortest time of each in seconds, measured in turns for about ``seconds``."""
    shortest = [float("inf")] * len(runs)
    end = clock() + seconds
    while clock() < end:
        for index, run in enumerate(runs):
            start = clock()
            run()
            shortest[index] = min(shortest[index], clock() - start)
    return shortest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds = 0.3 if arguments.quick else 3.0
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    print(f"{torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{'product':<24} {'tokens':>6} {'type':>9} {'MKL ms':>8} {'oneDNN ms':>9} {'ratio':>6}  taken")
    for what, num_tokens, width, outputs, has_gelu in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            if not has_onednn(dtype):
                continue
            torch.manual_seed(0)
            linear, x = Linear(width, outputs).to(dtype), torch.randn(num_tokens, width).to(dtype)
            with torch.inference_mode():
                mkl, onednn = best_of(_both(linear, x, has_gelu), seconds, clock)
                taken = "oneDNN" if is_onednn_faster(x) else "MKL"
            name = str(dtype).removeprefix("torch.")
            times = f"{mkl * 1e3:>8.3f} {onednn * 1e3:>9.3f} {mkl / onednn:>6.2f}"
            print(f"{what:<24} {num_tokens:>6} {name:>9} {times}  {taken}")


def _both(linear: Linear, x: Tensor, has_gelu: bool) -> list[Callable[[], Tensor]]:
    def by_mkl() -> Tensor:
        out = F.linear(x, linear.weight, linear.bias)
        return F.gelu(out, approximate="tanh") if has_gelu else out

    return [by_mkl, lambda: onednn_linear(x, linear.weight, linear.bias, "tanh" if has_gelu else None)]


if __name__ == "__main__":
    main()
