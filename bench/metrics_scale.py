"""Metrics, calibration and comparison of evaluations of 100,000 images with 100 labels: seconds and peak memory.

    python bench/metrics_scale.py [--num 100000] [--labels 100] [--clock cpu] [--json FILE]

Predictions are random; everything else is the program's own: the folders are written, read back, measured, calibrated
against a tenth of them and compared in a pair and in three. No torch.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import log_softmax

from vlmtune.evaluate.calibration import calibrate
from vlmtune.evaluate.compare import compare
from vlmtune.evaluate.files import Evaluation, read_evaluation, write_evaluation
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.table import AnswerSpace, PredictionTable


def random_predictions(num: int, num_labels: int, skill: float, seed: int) -> PredictionTable:
    """A model whose logit of the true label is ``skill`` higher on average; equal ids and truths for every seed."""
    truth = np.random.default_rng(0).integers(0, num_labels, num)
    logits = np.random.default_rng(seed).normal(size=(num, num_labels)).astype(np.float32)
    logits[np.arange(num), truth] += skill
    log_probs = log_softmax(logits, axis=1)
    labels = tuple(f"class {label:03d}" for label in range(num_labels))
    names = pa.array(labels)
    prediction = log_probs.argmax(axis=1)
    return PredictionTable.from_columns(
        {"question": AnswerSpace("choice", labels)},
        id=[f"test/{row:06d}" for row in range(num)],
        truth=pa.ListArray.from_arrays(pa.array(np.arange(num + 1, dtype=np.int32)), names.take(pa.array(truth))),
        prediction=names.take(pa.array(prediction)),
        score=(prediction == truth).astype(np.float64),
        log_probs=log_probs,
        seconds=np.full(num, 0.01),
        num_tokens=np.full(num, 200),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100_000, help="images")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds: dict[str, float] = {}
    started = clock()

    def lap(name: str) -> None:
        nonlocal started
        seconds[name] = round(clock() - started, 2)
        started = clock()

    with tempfile.TemporaryDirectory() as place:
        for seed in (1, 2, 3):
            table = random_predictions(options.num, options.labels, 1 + seed, seed)
            facts = {"name": f"run {seed}", "task": {"type": "choice", "question_from": "prompt"}, "data": {}}
            lap("making the predictions (not part of the program)")
            facts["metrics"] = measure(table)
            lap("metrics of one evaluation")
            write_evaluation(Path(place) / str(seed), facts, table)
            lap("writing one evaluation")
        del table
        evaluations: list[Evaluation] = [read_evaluation(Path(place) / str(seed)) for seed in (1, 2, 3)]
        lap("reading three evaluations")
    whole = evaluations[0].predictions
    tenth = np.arange(len(whole)) < len(whole) // 10
    calibrate(whole.take(np.flatnonzero(tenth)), whole.take(np.flatnonzero(~tenth)))
    lap("calibration")
    compare(evaluations[:2])
    lap("comparison of two")
    compare(evaluations)
    lap("comparison of three")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name, value in seconds.items():
        print(f"{name:50} {value:7.2f} s")
    both = seconds["metrics of one evaluation"] + seconds["comparison of two"]
    print(f"{'metrics and comparison':50} {both:7.2f} s\n{'peak memory of the process':50} {peak:7.2f} GiB")
    if options.json:
        found = {"num": options.num, "labels": options.labels, "seconds": seconds, "peak_gib": round(peak, 2)}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
