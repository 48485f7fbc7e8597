"""A dense connector done right and done as VLM-o did it: training curves and accuracy on the built-in questions.

    python bench/connectors.py --json bench/results/connectors.json --chart docs/connectors.png

Four connectors on `builtin:tiny`, each with several seeds, through the code of `vlmtune pretrain`: the base's own and
a DCI that starts equal to it (new channels at zero), both with stage 1 (the connector alone, on drawn captions); a
linear one with a random start, as there are no weights for it, also with stage 1; and a DCI with a random start and no
stage 1, as VLM-o put it on PaliGemma. Stage 2 is the same for all: connector and LoRA on drawn questions. The best
checkpoint on validation answers the test questions. The JSON is written after every run; a second start resumes where
the first stopped. `--show` only reads it.

Intervals are over test images (a bootstrap of each question's mean over seeds, questions of one image together);
differences to the base's own connector are paired by question.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from measure import Clock, add_options, apply_options, progress, record, table, write_json

from vlmtune.config.load import load_stages
from vlmtune.evaluate.bootstrap import bootstrap_means, percentile_interval
from vlmtune.workflows.train import train

NUM_RESAMPLES = 4_000
_WINDOW = 10  # steps whose losses are one point


@dataclass(frozen=True)
class Arm:
    """A connector as `model.connector` has it (None: the base's own), and whether it is aligned first."""

    name: str
    connector: dict[str, str] | None
    is_aligned: bool = True


ARMS = (
    Arm("own (mlp)", None),
    Arm("DCI from zero", {"kind": "dense", "variant": "dci"}),
    Arm("DCI random, no stage 1", {"kind": "dense", "variant": "dci", "start": "random"}, is_aligned=False),
    Arm("linear random", {"kind": "linear", "start": "random"}),
)


def stages_of(arm: Arm, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The pretraining file of one run."""
    every = max(1, options.steps // 6)
    stages: dict[str, Any] = {
        "name": "run",
        "seed": seed,
        "output_dir": str(folder),
        "model": {"base": "builtin:tiny", "dtype": "float32", "device": options.device, "connector": arm.connector},
        "instruct": {
            "data": {
                "source": "builtin:drawn-vqa",
                "limit": options.questions,
                "limit_validation": options.validation,
                "limit_test": options.test,
            },
            # One rate for all, whether aligned or not; the default is a tenth for an aligned one.
            "adapter": {"learning_rate_factors": {"connector": options.connector_factor}},
            "train": {
                "max_steps": options.steps,
                "batch_size": options.batch,
                "eval_every": every,
                "augment": "none",
                "learning_rate": options.rate,
            },
        },
    }
    if arm.is_aligned:
        stages["align"] = {
            "data": {"source": "builtin:drawn-captions", "limit": options.captions, "limit_validation": 40},
            "train": {"max_steps": options.align_steps, "batch_size": options.batch, "eval_every": options.align_steps},
        }
        stages["align"]["data"]["limit_test"] = 20
    return {key: stages[key] for key in ("name", "seed", "output_dir", "model", "align", "instruct") if key in stages}


def run(arm: Arm, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and measure one connector with one seed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "run.yaml"
        config.write_text(yaml.safe_dump(stages_of(arm, seed, folder / "runs", options), sort_keys=False))
        start = Clock.now()
        for experiment in load_stages(config).values():
            result = train(experiment, with_base=False)
        lines = [json.loads(line) for line in (Path(result.run) / "metrics.jsonl").read_text().splitlines()]
        answers = pq.read_table(Path(result.run) / "evaluation" / "test-fine-tuned" / "predictions.parquet")
        return {
            "arm": arm.name,
            "seed": seed,
            "seconds": Clock.now() - start,
            "loss": _curve([(line["step"], line["loss"]) for line in lines if line["kind"] == "train"], _WINDOW),
            "validation": _curve([(line["step"], line["accuracy"]) for line in lines if line["kind"] == "validation"]),
            # All ten annotators of a drawn question agree: an answer is right or wrong.
            "right": "".join(str(round(value)) for value in answers["accuracy"].to_pylist()),
            "images": " ".join(answers["image_id"].to_pylist()),
        }


def _curve(points: list[tuple[int, float]], window: int = 1) -> dict[str, list[Any]]:
    """Means over windows of consecutive points, at the last step of each."""
    steps = [points[last][0] for last in range(window - 1, len(points), window)]
    means = [
        round(float(np.mean([value for _, value in points[i : i + window]])), 4) for i in range(0, len(points), window)
    ]
    return {"steps": steps, "values": means[: len(steps)]}


def rights(run: dict[str, Any]) -> np.ndarray:
    """float64[N], 1 for each question answered right."""
    return np.array([mark == "1" for mark in run["right"]], dtype=float)


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm: its mean over seeds, and the paired difference to the first arm over the seeds both have."""
    by_arm = {arm.name: {r["seed"]: r for r in runs if r["arm"] == arm.name} for arm in ARMS}
    first = by_arm[ARMS[0].name]
    summary = []
    for name, by_seed in by_arm.items():
        if not by_seed:
            continue
        _, clusters = np.unique(next(iter(by_seed.values()))["images"].split(), return_inverse=True)
        accuracy = np.array([rights(r) for r in by_seed.values()])
        columns = [accuracy.mean(0)]
        common = sorted(by_seed.keys() & first.keys())
        if common and name != ARMS[0].name:
            columns.append(np.mean([rights(by_seed[s]) - rights(first[s]) for s in common], axis=0))
        samples = bootstrap_means(np.column_stack(columns), clusters, NUM_RESAMPLES)
        row = {
            "arm": name,
            "seeds": sorted(by_seed),
            "accuracy": float(columns[0].mean()),
            "interval": percentile_interval(samples[:, 0]),
            "by_seed": [float(values.mean()) for values in accuracy],
            "seconds": float(np.mean([r["seconds"] for r in by_seed.values()])),
        }
        if len(columns) > 1:
            row |= {"difference": float(columns[1].mean()), "difference_interval": percentile_interval(samples[:, 1])}
        summary.append(row)
    return summary


def summary_table(summary: list[dict[str, Any]]) -> str:
    """Markdown, in percent."""

    def with_interval(value: float, interval: tuple[float, float], sign: str = "") -> str:
        low, high = interval
        return f"{100 * value:{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"

    rows = [
        [
            row["arm"],
            with_interval(row["accuracy"], row["interval"]),
            " / ".join(f"{100 * value:.1f}" for value in row["by_seed"]),
            with_interval(row["difference"], row["difference_interval"], "+") if "difference" in row else "",
            f"{row['seconds']:.0f}",
        ]
        for row in summary
    ]
    return table(["connector", "test accuracy, %", "by seed", f"minus {ARMS[0].name}", "seconds a run"], rows)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Stage 2's loss (means of ten steps) and validation accuracy: a thin line per seed, a thick one their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, arm in enumerate(ARMS):
        arm_runs = [r for r in runs if r["arm"] == arm.name]
        if not arm_runs:
            continue
        for axis, key in ((left, "loss"), (right, "validation")):
            steps, values = arm_runs[0][key]["steps"], np.array([r[key]["values"] for r in arm_runs])
            axis.plot(steps, values.T, color=f"C{number}", alpha=0.25, linewidth=0.8)
            axis.plot(steps, values.mean(0), color=f"C{number}", linewidth=2, label=arm.name)
    left.set_ylabel("loss a token")
    right.set_ylabel("validation accuracy")
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.set_xlabel("step of stage 2")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Settings that must be equal for runs to share a table."""
    keys = ("steps", "align_steps", "batch", "rate", "connector_factor", "questions", "captions", "validation", "test")
    return {key: getattr(options, key) for key in (*keys, "clock", "threads")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--steps", type=int, default=120, help="of stage 2")
    parser.add_argument("--align-steps", type=int, default=60, help="of stage 1")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of stage 2")
    parser.add_argument("--connector-factor", type=float, default=1.0, help="of that rate, for the connector")
    parser.add_argument("--questions", type=int, default=4_000, help="to learn from in stage 2")
    parser.add_argument("--captions", type=int, default=2_000, help="to learn from in stage 1")
    parser.add_argument("--validation", type=int, default=120, help="questions")
    parser.add_argument("--test", type=int, default=800, help="questions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", action="append", choices=[arm.name for arm in ARMS], help="this connector; repeatable"
    )
    parser.add_argument("--chart", type=Path, help="a PNG file")
    parser.add_argument("--show", action="store_true", help="table and chart of the JSON as it stands; nothing is run")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.align_steps, options.seeds, options.test = 20, 8, 1, 100
    device = apply_options(options)
    state: dict[str, Any] = {"runs": [], "settings": settings_of(options)}
    if options.json and options.json.exists():
        state = json.loads(options.json.read_text(encoding="utf-8"))
    if not options.show:
        if state["settings"] != settings_of(options):
            parser.error(f"{options.json} holds runs with other settings ({state['settings']}). Choose another --json.")
        done = {(r["arm"], r["seed"]) for r in state["runs"]}
        # Seed by seed, so that an early end leaves whole comparisons; the linear one, a side question, at the end.
        *arms, last_arm = ARMS
        seeds = range(options.seeds)
        for arm, seed in [*((arm, seed) for seed in seeds for arm in arms), *((last_arm, seed) for seed in seeds)]:
            if (arm.name, seed) in done or (options.only and arm.name not in options.only):
                continue
            state["runs"].append(run(arm, seed, options))
            last = state["runs"][-1]
            progress(f"{arm.name}, seed {seed}: {rights(last).mean():.3f} in {last['seconds']:.0f} s")
            content = {key: state[key] for key in ("settings", "runs")}
            summary = summarize(state["runs"])
            write_json(options.json, record("connectors", device, options.quick, **content, summary=summary))
    print(summary_table(summarize(state["runs"])))
    if options.chart:
        draw(state["runs"], options.chart)


if __name__ == "__main__":
    main()
