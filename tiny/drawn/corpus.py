"""Many drawn images at once: a seeded mixture of kinds as one memory-mapped array, with the facts beside it.

`train.pretrain` and contact sheets read it. Image i depends on the seed and i alone, however many processes draw.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from tiny.drawn import Facts, Thing, draw

_CHUNK = 500


@dataclass(frozen=True)
class Corpus:
    """``pixels`` uint8[N, side, side, 3], memory-mapped; ``facts[i]`` about image i."""

    pixels: npt.NDArray[np.uint8]
    facts: list[Facts]

    def __len__(self) -> int:
        return len(self.facts)


def _draw_chunk(job: tuple[dict[str, float], int, int, int, int]) -> tuple[int, npt.NDArray[np.uint8], list[Facts]]:
    mixture, seed, first, last, size = job
    pixels = np.empty((last - first, size, size, 3), dtype=np.uint8)
    facts = []
    for i in range(first, last):
        rng = Random(f"corpus {seed} {i}")
        kind = rng.choices(list(mixture), list(mixture.values()))[0]
        image, fact = draw(kind, rng.getrandbits(48), size)
        pixels[i - first] = np.asarray(image)
        facts.append(fact)
    return first, pixels, facts


def draw_corpus(
    folder: Path,
    mixture: dict[str, float],
    num: int,
    seed: int,
    size: int = 32,
    processes: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Corpus:
    """Draw `num` images into `folder`, or open them if the same ones are already there.

    Args:
        folder: where `pixels.npy`, `facts.jsonl` and `corpus.json` go.
        mixture: kind -> relative weight.
        on_progress: called with the number of images drawn so far.
    """
    identity = {"mixture": mixture, "num": num, "seed": seed, "size": size}
    done_file = folder / "corpus.json"
    if done_file.exists() and json.loads(done_file.read_text()) == identity:
        return open_corpus(folder)
    folder.mkdir(parents=True, exist_ok=True)
    done_file.unlink(missing_ok=True)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=(num, size, size, 3))
    jobs = [(mixture, seed, first, min(first + _CHUNK, num), size) for first in range(0, num, _CHUNK)]
    num_processes = min(processes or os.cpu_count() or 1, len(jobs))
    # `spawn`: a fork of a process that already runs torch threads can hang.
    pool = multiprocessing.get_context("spawn").Pool(num_processes) if num_processes > 1 else None
    with pool or nullcontext(), (folder / "facts.jsonl").open("w") as lines:
        for first, block, facts in (pool.imap if pool else map)(_draw_chunk, jobs):
            pixels[first : first + len(block)] = block
            lines.writelines(json.dumps(asdict(fact)) + "\n" for fact in facts)
            on_progress(first + len(block))
    pixels.flush()
    done_file.write_text(json.dumps(identity))
    return open_corpus(folder)


def open_corpus(folder: Path) -> Corpus:
    """A corpus that `draw_corpus` finished."""
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    facts = []
    with (folder / "facts.jsonl").open() as lines:
        for line in lines:
            values = json.loads(line)
            values["things"] = tuple(Thing(**thing) for thing in values["things"])
            facts.append(Facts(**values))
    return Corpus(pixels, facts)
