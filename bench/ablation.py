"""The contribution of each part of the recipe, added one by one, on the CIFAR-10 sample with `builtin:tiny`.

    python bench/ablation.py --cifar FOLDER --json bench/results/ablation.json --chart bench/results/ablation.png

From the older repos' recipe (loss on every token, LoRA on q, k and v) to ours, one arm at a time, each on top of the
one before it: every arm learns the same training images for as many steps, with several seeds, and answers all test
images by the same label scorer. The last step is measured: nothing is chosen on the test, and no validation is run.
Learning rates were chosen beforehand, on validation images with another seed (docs/LOG.md). The JSON is written after
every run; a second start resumes where the first stopped. `--show` only reads it.

Intervals are over the test images (a bootstrap of each image's mean over seeds); the range over seeds is beside
them. The difference to the arm before is paired by image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Clock, add_options, apply_options, progress, record, table, write_json

from vlmtune.config import defaults
from vlmtune.config.schema import ROLES, Experiment
from vlmtune.data.splits import Splits, load_splits
from vlmtune.evaluate.bootstrap import bootstrap_means, percentile_interval
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.models.registry import open_model
from vlmtune.records import LabelScores
from vlmtune.runs.folder import RunFolder
from vlmtune.train.loop import StepEvent, Trainer


@dataclass(frozen=True)
class Arm:
    """One more change to the experiment: dotted keys and their values."""

    name: str
    changes: dict[str, Any]


ARMS = (
    Arm(
        "older recipe",
        {"train.loss": "all", "adapter.targets": ["q_proj", "k_proj", "v_proj"], "task.list_labels": "prompt"},
    ),
    Arm("answer-only loss", {"train.loss": "answer"}),
    Arm("+ all-linear LoRA", {"adapter.targets": list(ROLES)}),
    Arm("+ augmentation", {"train.augment": "flip-crop"}),
    Arm("+ MixUp/CutMix", {"train.mixup": 0.2, "train.cutmix": 1.0, "train.mix_probability": 0.5}),
    Arm("+ class-list drop", {"task.list_labels": "drop-after-first-epoch"}),
)


def experiment_of(arm: int, options: argparse.Namespace) -> Experiment:
    """The experiment of an arm, the arms before it included; the seed is set by each run."""
    values: dict[str, Any] = {
        "name": "ablation",
        "model": {"base": "builtin:tiny", "device": options.device},
        "data": {"source": str(options.cifar), "limit": options.images, "limit_test": options.test_images},
        "adapter": {"rank": 16, "alpha": 32, "parts": []},
        "train": {"epochs": options.epochs, "batch_size": 16, "learning_rate": options.rate, "feature_cache": "off"},
        "task": {},
    }
    for step in ARMS[: arm + 1]:
        for key, value in step.changes.items():
            section, name = key.split(".")
            values[section][name] = value
    if arm == 0:
        values["train"]["learning_rate"] = options.older_rate
    return Experiment.model_validate(values)


def run(arm: int, seed: int, splits: Splits, options: argparse.Namespace) -> dict[str, Any]:
    """Train one arm with one seed and measure it on every test image."""
    assert splits.labels is not None
    experiment = experiment_of(arm, options)
    experiment.seed = seed
    experiment = defaults.apply(experiment, num_train=len(splits.train), num_labels=len(splits.labels))
    experiment.train.eval_every = experiment.train.save_every = 10**9
    opened = open_model("builtin:tiny", device=options.device)
    losses: list[float] = []

    def on_step(event: StepEvent) -> None:
        losses.append(event.loss)

    silent = Splits(splits.train, [], splits.test, splits.labels, splits.description)
    trainer = Trainer(experiment, opened, silent)
    with tempfile.TemporaryDirectory() as folder:
        start = Clock.now()
        trainer.run(RunFolder(Path(folder)), on_step=on_step)
        train_s = Clock.now() - start
        start = Clock.now()
        predictor = Predictor(opened, experiment.task.after_first_epoch(), splits.labels)
        results = predictor.classify((Query(example.image, example.question) for example in splits.test), "argmax")
        right = [
            isinstance(result, LabelScores) and result.prediction == example.label
            for example, result in zip(splits.test, results, strict=True)
        ]
    return {
        "arm": ARMS[arm].name,
        "seed": seed,
        "accuracy": sum(right) / len(right),
        "train_s": round(train_s, 2),
        "score_s": round(Clock.now() - start, 2),
        "steps": trainer.num_steps,
        "parameters": trainer.plan.num_trainable,
        "loss_at_the_end": round(float(np.mean(losses[-20:])), 4),
        "right": "".join("1" if value else "0" for value in right),
    }


def base_accuracy(splits: Splits, options: argparse.Namespace) -> float:
    """Accuracy of the model before any training, with the class list in its prompt."""
    experiment = experiment_of(0, options)
    predictor = Predictor(open_model("builtin:tiny", device=options.device), experiment.task, splits.labels)
    results = predictor.classify((Query(example.image) for example in splits.test), "argmax")
    right = [
        isinstance(result, LabelScores) and result.prediction == example.label
        for example, result in zip(splits.test, results, strict=True)
    ]
    return sum(right) / len(right)


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm that has runs: means over its seeds, and intervals over the test images."""
    summary: list[dict[str, Any]] = []
    before: dict[int, np.ndarray] = {}
    for arm in ARMS:
        right = {r["seed"]: np.array([c == "1" for c in r["right"]], dtype=float) for r in runs if r["arm"] == arm.name}
        if not right:
            continue
        rights = np.stack(list(right.values()), axis=1)
        means = bootstrap_means(rights.mean(1, keepdims=True), num_resamples=4000)
        row: dict[str, Any] = {
            "arm": arm.name,
            "seeds": sorted(right),
            "accuracy": float(rights.mean()),
            "interval": percentile_interval(means[:, 0]),
            "by_seed": [float(column.mean()) for column in rights.T],
            "train_s": float(np.mean([r["train_s"] for r in runs if r["arm"] == arm.name])),
            "parameters": next(r["parameters"] for r in runs if r["arm"] == arm.name),
        }
        common = sorted(right.keys() & before.keys())
        if common:
            gained = np.mean([right[seed] - before[seed] for seed in common], axis=0)
            resampled = bootstrap_means(gained[:, None], num_resamples=4000)
            row |= {"gain": float(gained.mean()), "gain_interval": percentile_interval(resampled[:, 0])}
            row["gain_by_seed"] = [float((right[seed] - before[seed]).mean()) for seed in common]
        summary.append(row)
        before = right
    return summary


def summary_table(summary: list[dict[str, Any]]) -> str:
    """Markdown, in percent."""
    rows = []
    for row in summary:
        low, high = row["interval"]
        gain = ""
        if "gain" in row:
            least, most = row["gain_interval"]
            gain = f"{100 * row['gain']:+.1f} ({100 * least:+.1f} to {100 * most:+.1f})"
        rows.append(
            [
                row["arm"],
                f"{100 * row['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})",
                " / ".join(f"{100 * value:.1f}" for value in row["by_seed"]),
                gain,
                f"{row['train_s']:.0f}",
                f"{row['parameters']:,}",
            ]
        )
    return table(["arm", "accuracy, %", "by seed", "gain over the arm before", "training, s", "parameters"], rows)


def draw(summary: list[dict[str, Any]], base: float | None, path: Path, clock: str) -> None:
    """Accuracy of each arm: every seed a dot, the mean with its interval; beside it the seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(summary) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for y, row in enumerate(summary):
        low, high = row["interval"]
        left.plot([100 * low, 100 * high], [y, y], color="C0", linewidth=2)
        left.plot(100 * row["accuracy"], y, "|", color="C0", markersize=14, markeredgewidth=2)
        left.plot([100 * value for value in row["by_seed"]], [y] * len(row["by_seed"]), "o", color="C0", alpha=0.4)
        right.barh(y, row["train_s"], color="C7", height=0.5)
    if base is not None:
        left.axvline(100 * base, color="C7", linestyle=":", linewidth=1)
        left.text(100 * base, -0.55, " untrained", color="C7", fontsize=8, va="bottom")
    left.set_yticks(range(len(summary)), [row["arm"] for row in summary])
    left.invert_yaxis()
    left.set_xlabel("test accuracy, %: seeds, mean and 95 % interval over images")
    right.set_xlabel(f"training, {clock} s")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Settings that must be equal for runs to share a table."""
    keys = ("images", "test_images", "epochs", "rate", "older_rate", "clock", "threads")
    return {key: getattr(options, key) for key in keys}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--cifar", type=Path, help="a folder with train/ and test/, each a folder a class")
    parser.add_argument("--images", type=int, default=1500, help="training images, the same for every arm and seed")
    parser.add_argument("--test-images", type=int, help="of the test split; default: all")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--older-rate", type=float, default=5e-5, help="learning rate of the older recipe")
    parser.add_argument("--chart", type=Path, help="a PNG file")
    parser.add_argument("--show", action="store_true", help="table and chart of the JSON as it stands; nothing is run")
    options = parser.parse_args()
    if options.quick:
        options.images, options.test_images, options.epochs, options.seeds = 200, 200, 2.0, 1
    device = apply_options(options)
    state: dict[str, Any] = {"runs": [], "base": None, "settings": settings_of(options)}
    if options.json and options.json.exists():
        state = json.loads(options.json.read_text(encoding="utf-8"))
    if not options.show:
        if options.cifar is None:
            parser.error("--cifar is needed to run anything")
        if state["settings"] != settings_of(options):
            parser.error(f"{options.json} holds runs with other settings ({state['settings']}). Choose another --json.")
        _run_all(state, options, device)
    summary = summarize(state["runs"])
    print(summary_table(summary))
    if state["base"] is not None:
        print(f"\nuntrained: {100 * state['base']:.1f} %")
    if options.chart:
        draw(summary, state["base"], options.chart, "processor" if state["settings"]["clock"] == "cpu" else "wall")


def _run_all(found: dict[str, Any], options: argparse.Namespace, device: torch.device) -> None:
    """Every run that is not in ``found`` yet, seed by seed so that an early end leaves whole ladders."""
    keep_freed_memory()
    experiment = experiment_of(0, options)
    splits = load_splits(experiment.data, experiment.task, seed=0)  # the same images for every seed
    progress(f"{len(splits.train)} training and {len(splits.test)} test images")
    if found["base"] is None:
        found["base"] = base_accuracy(splits, options)
    done = {(r["arm"], r["seed"]) for r in found["runs"]}
    for seed in range(options.seeds):
        for arm, step in enumerate(ARMS):
            if (step.name, seed) in done:
                continue
            torch.manual_seed(seed)
            found["runs"].append(run(arm, seed, splits, options))
            last = found["runs"][-1]
            progress(f"  {last['arm']}, seed {seed}: {last['accuracy']:.3f}, {last['train_s']} s of training")
            content = {key: found[key] for key in ("settings", "base", "runs")}
            _keep(options.json, record("ablation", device, options.quick, **content, summary=summarize(found["runs"])))


def _keep(path: Path | None, content: dict[str, Any]) -> None:
    """Write the results whole or not at all: a killed run loses only itself."""
    if path is not None:
        temporary = path.with_suffix(".tmp")
        write_json(temporary, content)
        temporary.replace(path)


if __name__ == "__main__":
    main()
