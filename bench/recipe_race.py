"""The older recipe in Trainer + PEFT against ours, from the same tiny base: test accuracy against time and images.

    python bench/recipe_race.py [--cifar FOLDER] [--quick] [--json FILE] [--chart FILE.png]

Both start from `builtin:tiny`, whose folder transformers loads, and learn the same training images under the same
prompt. The older recipe: transformers' Trainer, batch 4, activation checkpointing, labels on every token, LoRA r=16 on
the names of which q, k and v match; and, since labels on every token harm a base that never learned to write prompts,
the same with labels on answers only. Ours: `train.loop.Trainer` with what `config/defaults.py` decides. Each side runs
at several learning rates, all shown; the one that ends best on validation images races. The clock stops while either
side is measured, and both are measured by the same label scorer, so that only what was learned differs.
"""

from __future__ import annotations

import argparse
import bisect
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from measure import Clock, add_options, apply_options, progress, ratio_table, record, table, write_json
from peers import OLDER_TARGETS
from torch import Tensor

from vlmtune.config import defaults
from vlmtune.config.schema import DataSection, Experiment
from vlmtune.data.splits import Splits, load_splits
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.records import Example, LabelScores
from vlmtune.runs.folder import RunFolder
from vlmtune.train.loop import StepEvent, Trainer

BASE = "builtin:tiny"
OLDER_RATES = (5e-5, 2e-4, 1e-3)
OUR_FACTORS = (0.5, 1.0, 2.0)
OLDER_BATCH = 4
NAMES = {
    "ours": "vlmtune",
    "older": "Trainer + PEFT, older recipe",
    "older_answers_only": "Trainer + PEFT, labels on answers",
}
COLORS = {"ours": "C0", "older": "C1", "older_answers_only": "C2"}


@dataclass
class Curve:
    """One run: its accuracy over time.

    Attributes:
        seconds: of learning, the measuring left out; samples: images seen; accuracy: on the test images.
        validation: accuracy on the validation images at the end.
    """

    name: str
    learning_rate: float
    seconds: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    validation: float = 0.0

    def add(self, seconds: float, samples: int, accuracy: float) -> None:
        self.seconds.append(round(seconds, 3))
        self.samples.append(samples)
        self.accuracy.append(accuracy)
        progress(f"    {self.name} lr {self.learning_rate:g}: {samples} images, {seconds:.1f} s: {accuracy:.3f}")

    def reached(self, accuracy: float) -> float | None:
        """Seconds until an accuracy was first measured; None if never."""
        return next((s for s, a in zip(self.seconds, self.accuracy, strict=True) if a >= accuracy), None)

    def at(self, samples: int) -> float:
        """The accuracy at the last measurement within a number of images."""
        index = bisect.bisect_right(self.samples, samples)
        return self.accuracy[index - 1] if index else 0.0


class StopWatch:
    """A clock that can be paused."""

    def __init__(self) -> None:
        self.total, self.started = 0.0, Clock.now()

    def hold(self) -> float:
        self.total += Clock.now() - self.started
        return self.total

    def go_on(self) -> None:
        self.started = Clock.now()


def accuracy_of(opened: OpenedModel, experiment: Experiment, splits: Splits, examples: list[Example]) -> float:
    predictor = Predictor(opened, experiment.task, splits.labels, experiment.evaluate.batch_size)
    results = predictor.classify(Query(example.image, example.question) for example in examples)
    right = [
        isinstance(result, LabelScores) and result.prediction == example.label
        for example, result in zip(examples, results, strict=True)
    ]
    return sum(right) / len(right)


def milestones(total: int) -> list[int]:
    """Images seen at which to measure: closer together at the start, where curves are steep."""
    shares = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)
    return sorted({max(1, round(total * share)) for share in shares})


def run_ours(experiment: Experiment, splits: Splits, rate: float, epochs: float) -> Curve:
    """Our loop, as `vlmtune train` runs it, without its own validation (measuring is done here, off the clock)."""
    curve = Curve("ours", rate)
    experiment = experiment.model_copy(deep=True)
    experiment.train.learning_rate, experiment.train.epochs = rate, epochs
    experiment.train.eval_every = experiment.train.save_every = 10**9
    opened = open_model(BASE, None, experiment.model.dtype, experiment.model.device)
    silent = Splits(splits.train, [], splits.test, splits.labels, splits.description)
    batch = experiment.train.batch_size
    assert batch is not None
    due = milestones(round(len(splits.train) * epochs))
    watch = StopWatch()

    def measure(event: StepEvent) -> None:
        seen = min(event.step * batch, due[-1])
        if (due and seen >= due[0]) or event.step == event.num_steps:
            seconds = watch.hold()
            while len(due) > 1 and seen >= due[0]:
                due.pop(0)
            curve.add(seconds, seen, accuracy_of(opened, experiment, splits, splits.test))
            watch.go_on()

    trainer = Trainer(experiment, opened, silent)
    with tempfile.TemporaryDirectory() as folder:
        watch.go_on()
        trainer.run(RunFolder(Path(folder)), on_step=measure)
    curve.validation = accuracy_of(opened, experiment, splits, splits.validation)
    return curve


def run_older(
    experiment: Experiment, splits: Splits, rate: float, epochs: float, *, answers_only: bool = False
) -> Curve:
    """transformers' Trainer with PEFT, at the older repos' settings, or with labels on the answers only."""
    from peft import LoraConfig, get_peft_model
    from transformers import Lfm2VlForConditionalGeneration, TrainerCallback, TrainingArguments
    from transformers import Trainer as PeerTrainer
    from transformers.trainer_utils import set_seed

    set_seed(experiment.seed)
    curve = Curve("older_answers_only" if answers_only else "older", rate)
    opened = open_model(BASE, None, experiment.model.dtype, experiment.model.device)
    predictor = Predictor(opened, experiment.task, splits.labels)
    base = Lfm2VlForConditionalGeneration.from_pretrained(opened.folder, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=OLDER_TARGETS))
    collate = _collator(predictor, splits, answers_only)
    watch = StopWatch()

    class Measure(TrainerCallback):  # type: ignore[misc]
        wanted = milestones(round(len(splits.train) * epochs))

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.go_on()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            seen = min(state.global_step * OLDER_BATCH, milestones(round(len(splits.train) * epochs))[-1])
            if seen >= self.wanted[0] or state.global_step == state.max_steps:
                seconds = watch.hold()
                while len(self.wanted) > 1 and seen >= self.wanted[0]:
                    self.wanted.pop(0)
                _copy_merged(model, opened)
                curve.add(seconds, seen, accuracy_of(opened, experiment, splits, splits.test))
                watch.go_on()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=OLDER_BATCH,
            num_train_epochs=epochs,
            learning_rate=rate,
            warmup_steps=round(0.05 * len(splits.train) * epochs / OLDER_BATCH),
            lr_scheduler_type="cosine",
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=True,
            use_cpu=opened.model.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            seed=experiment.seed,
        )
        model.enable_input_require_grads()
        PeerTrainer(model, arguments, collate, splits.train, callbacks=[Measure()]).train()
    _copy_merged(model, opened)
    curve.validation = accuracy_of(opened, experiment, splits, splits.validation)
    return curve


def _collator(predictor: Predictor, splits: Splits, answers_only: bool) -> Callable[[list[Example]], dict[str, Tensor]]:
    """Images and tokens as our own loop makes them; labels on every token but padding."""
    labels = splits.labels
    assert labels is not None

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        rows, images, prompts = [], [], []
        for example in examples:
            image = predictor.opened.processor.process(example.image.open())
            answer = predictor.prompt.answer_tokens(labels.shown[labels.index(example.label)][0])
            rows.append([*predictor.prefix, *predictor.rest_of_prompt(image, example.question), *answer])
            images += image.tiles
            prompts.append(len(rows[-1]) - len(answer))
        longest = max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        learned = mask.bool()
        if answers_only:
            learned &= torch.arange(longest) >= torch.tensor(prompts)[:, None]
        most = max(len(patches) for patches, _ in images)
        pixels = torch.zeros(len(images), most, images[0][0].shape[1])
        pixel_mask = torch.zeros(len(images), most, dtype=torch.int32)
        for i, (patches, _) in enumerate(images):
            pixels[i, : len(patches)], pixel_mask[i, : len(patches)] = patches, 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.where(learned, ids, -100),
            "pixel_values": pixels,
            "pixel_attention_mask": pixel_mask,
            "spatial_shapes": torch.tensor([grid for _, grid in images]),
        }

    return collate


@torch.no_grad()
def _copy_merged(peer: Any, opened: OpenedModel) -> None:
    """Copy the weights of PEFT's model, merged, into ours for measuring."""
    weights = {}
    for name, tensor in peer.base_model.model.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if "lora_" not in name and plain != "lm_head.weight":
            weights[plain] = tensor.clone()
    for name, layer in peer.base_model.model.named_modules():
        if hasattr(layer, "get_delta_weight") and "default" in getattr(layer, "lora_A", {}):
            weights[f"{name}.weight"] += layer.get_delta_weight("default")
    opened.model.load_state_dict(weights, strict=True)


def race(source: str, options: argparse.Namespace) -> dict[str, Any]:
    """All runs on one data set."""
    limits = {"limit": 400, "limit_validation": 100, "limit_test": 200} if options.quick else {"limit_test": 500}
    if options.images is not None:
        limits["limit"] = options.images
    experiment = Experiment(name="race", data=DataSection(source=source, **limits))
    splits = load_splits(experiment.data, experiment.task, experiment.seed)
    assert splits.labels is not None
    experiment = defaults.apply(experiment, num_train=len(splits.train), num_labels=len(splits.labels))
    epochs = options.epochs or (3.0 if options.quick else 5.0)
    default = experiment.train.learning_rate
    assert default is not None
    progress(f"{source}: {len(splits.train)} images, {epochs:g} epochs")
    older_rates, factors = (OLDER_RATES[:2], OUR_FACTORS[:2]) if options.quick else (OLDER_RATES, OUR_FACTORS)
    older = [run_older(experiment, splits, rate, epochs) for rate in older_rates]
    kinder = [run_older(experiment, splits, rate, epochs, answers_only=True) for rate in older_rates]
    ours = [run_ours(experiment, splits, default * factor, epochs) for factor in factors]
    best_ours, best_older, best_kinder = (max(c, key=lambda curve: curve.validation) for c in (ours, older, kinder))
    same = best_older.samples[-1]
    ratios = {
        "speedup_to_same_accuracy": _speedup(best_ours, best_older),
        "speedup_to_accuracy_of_answers_only": _speedup(best_ours, best_kinder),
        "accuracy_gain_over_answers_only": best_ours.at(same) - best_kinder.at(same),
        "accuracy_gain_at_equal_samples": best_ours.at(same) - best_older.at(same),
    }
    return {
        "source": Path(source).name,
        "images": {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)},
        "epochs": epochs,
        "chosen": {curve.name: curve.learning_rate for curve in (best_ours, best_older, best_kinder)},
        "curves": [asdict(curve) for curve in (*ours, *older, *kinder)],
        "ratios": ratios,
    }


def _speedup(ours: Curve, theirs: Curve) -> float | None:
    """Their whole time over ours until we were first as good as they were at the end; None if we never were."""
    reached = ours.reached(theirs.accuracy[-1])
    return theirs.seconds[-1] / reached if reached else None


def draw(races: list[dict[str, Any]], path: Path, clock: str) -> None:
    """Accuracy against seconds (log) and against images seen; chosen runs strong, the other rates faint."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4 * len(races)), layout="constrained")
    axes = figure.subplots(len(races), 2, squeeze=False, sharey="row")
    for row, facts in zip(axes, races, strict=True):
        for curve in facts["curves"]:
            is_chosen = facts["chosen"][curve["name"]] == curve["learning_rate"]
            style = {"color": COLORS[curve["name"]], "alpha": 1.0 if is_chosen else 0.3}
            label = f"{NAMES[curve['name']]}, lr {curve['learning_rate']:g}"
            row[0].plot(curve["seconds"], curve["accuracy"], "o-", ms=3, label=label, **style)
            row[1].plot(curve["samples"], curve["accuracy"], "o-", ms=3, **style)
        row[0].set(xscale="log", xlabel=f"seconds of training ({clock})", ylabel="test accuracy", title=facts["source"])
        row[1].set(xlabel="images seen")
        row[0].legend(fontsize=7)
        for axis in row:
            axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--cifar", type=Path, help="a folder with train/ and test/, each a folder a class")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--images", type=int, help="at most so many training images")
    parser.add_argument("--chart", type=Path, help="a PNG file")
    options = parser.parse_args()
    device = apply_options(options)
    keep_freed_memory()
    sources = ["builtin:digits", *([str(options.cifar)] if options.cifar else [])]
    races = [race(source, options) for source in sources]
    ratios = {
        f"{name}{'' if i == 0 else '_' + found['source']}": None
        if value is None
        else {"value": value, "low": value, "high": value}
        for i, found in enumerate(races)
        for name, value in found["ratios"].items()
    }
    rows = [
        [
            f"{found['source']} {curve['name']} lr {curve['learning_rate']:g}"
            + (" *" if found["chosen"][curve["name"]] == curve["learning_rate"] else ""),
            f"{curve['seconds'][-1]:.1f}",
            str(curve["samples"][-1]),
            f"{curve['accuracy'][-1]:.3f}",
        ]
        for found in races
        for curve in found["curves"]
    ]
    print(table(["run (* chosen on validation)", "seconds", "images", "test accuracy"], rows))
    print()
    print(ratio_table(ratios))
    write_json(options.json, record("recipe_race", device, options.quick, races=races, ratios=ratios))
    if options.chart:
        draw(races, options.chart, Clock.kind)


if __name__ == "__main__":
    main()
