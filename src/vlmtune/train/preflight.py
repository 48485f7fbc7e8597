"""Checks before the first step: what will be learned, from what, and at what cost.

In: a `Trainer` that has not begun. Out: findings, for `preflight.json` and for the terminal. `train` runs it first.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from vlmtune.data.augment.label_safety import colored_labels, has_colors, has_sides, sided_labels
from vlmtune.data.prefetch import read_ahead
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.models.images import ProcessedImage
from vlmtune.records import Example, LabelSet
from vlmtune.tasks.targets import EXACT_LABELS, NUM_DRAWN
from vlmtune.text.prompt import PromptBuilder
from vlmtune.train.loop import Trainer

_NUM_TARGETS = 3
_NUM_MEASURED = 32
# Decoding a large set takes minutes; `vlmtune data check` has no such limit.
_MAX_DIGESTS = 5_000

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Outcome of one check, in words for the user."""

    name: str
    level: Level
    message: str


@dataclass(frozen=True)
class Preflight:
    """All findings of a run."""

    findings: list[Finding]

    def to_dict(self) -> dict[str, Any]:
        return {"findings": [asdict(finding) for finding in self.findings]}

    def raise_errors(self) -> None:
        """Raise DataError with every finding that forbids the run."""
        errors = [finding.message for finding in self.findings if finding.level == "error"]
        if errors:
            raise DataError("preflight found:\n" + "\n".join(f"  {message}" for message in errors))


def preflight(trainer: Trainer) -> Preflight:
    """Run every check. Nothing is learned: a trial step leaves weights and random state as they were."""
    findings = [
        *_adapter(trainer),
        *_targets(trainer),
        *_random_changes(trainer),
        *_tokens(trainer),
        *_labels(trainer),
        *_images(trainer),
        *_cost(trainer),
    ]
    return Preflight(findings)


def _adapter(trainer: Trainer) -> list[Finding]:
    plan = trainer.plan
    share = 100 * plan.num_trainable / plan.num_total
    findings = [
        Finding("learned", "ok", f"{plan.num_trainable:,} of {plan.num_total:,} parameters are trained ({share:.2f} %)")
    ]
    for match in plan.matches:
        unit = "parameters" if match.kind == "part" else "layers"
        towers = " and ".join(f"{count} {unit} of the {tower}" for tower, count in match.towers.items() if count)
        towers = towers or "nothing, since this family has no such layers"
        key = "adapter.parts" if match.kind == "part" else "adapter.targets"
        findings.append(Finding("learned", "ok", f"{key} '{match.pattern}' trains {towers}"))
    if (section := trainer.experiment.model.connector) is not None:
        start = "" if section.start is None else f", start: {section.start}"
        findings.append(Finding("connector", "ok", f"{trainer.model.connector.shape}{start}"))
    return findings


def _targets(trainer: Trainer) -> list[Finding]:
    """The supervised tokens of a few examples, decoded back to text."""
    findings = []
    tokenizer, prompt = trainer.opened.tokenizer, trainer.prompts.first
    for example in trainer.splits.train[:_NUM_TARGETS]:
        weights = trainer.reader.targets.of(example, 0, np.random.default_rng(trainer.experiment.seed))
        ids = prompt.answer_tokens(max(weights, key=weights.__getitem__))
        text = f"{example.id} teaches {tokenizer.decode(ids)!r} ({len(ids)} tokens)"
        findings.append(Finding("target", "ok", text))
    labels = trainer.splits.labels
    names = [forms[0] for forms in labels.shown] if labels else []
    merged = [w for name in names if (w := prompt.check_answer_boundary(name))]
    if merged:
        findings.append(Finding("target", "warning", merged[0] + f" ({len(merged)} labels)"))
    unknown = [name for name in names if tokenizer.decode(tokenizer.encode(name)).strip() != name.strip()]
    if unknown:
        findings.append(
            Finding("target", "warning", f"the tokenizer cannot write these labels exactly: {', '.join(unknown[:5])}")
        )
    return findings


def _random_changes(trainer: Trainer) -> list[Finding]:
    """What training changes at random about images and answers."""
    train, reader = trainer.experiment.train, trainer.reader
    findings = []
    if reader.augmentation.changes:
        findings.append(Finding("augmentation", "ok", f"images are changed at random: {reader.augmentation.name}"))
    if reader.mixing.is_on:
        kinds = {"MixUp": reader.mixing.mixup, "CutMix": reader.mixing.cutmix}
        how = " or ".join(f"{kind} (α {alpha:g})" for kind, alpha in kinds.items() if alpha)
        share = f"{100 * reader.mixing.probability:g} % of the images are mixed with another by {how}"
        findings.append(Finding("augmentation", "ok", f"{share}: two answers each, with the weights λ and 1 - λ"))
    labels = trainer.splits.labels
    if train.label_smoothing and labels is not None:
        others = f"all {len(labels)} labels"
        if len(labels) > EXACT_LABELS:
            others = f"{NUM_DRAWN} other labels, drawn anew for each image"
        text = f"label smoothing spreads {train.label_smoothing:g} of every target over {others}"
        findings.append(Finding("target", "ok", text))
    findings += _protected(trainer)
    return findings


def _protected(trainer: Trainer) -> list[Finding]:
    """Images that some changes skip, because their answers depend on what would change."""
    augmentation, labels, examples = trainer.reader.augmentation, trainer.splits.labels, trainer.splits.train
    rules: tuple[tuple[bool, Callable[[LabelSet], str | None], Callable[[Example], bool], str, str], ...] = (
        (augmentation.alters_sides, sided_labels, has_sides, "sides or writing", "not flipped or turned far"),
        (augmentation.alters_colors, colored_labels, has_colors, "colors", "not recolored"),
    )
    findings = []
    for alters, of_labels, of_example, topic, consequence in rules:
        if not alters:
            continue
        reason = of_labels(labels) if labels is not None else None
        affected = [example for example in examples if of_example(example)]
        if reason is None and affected:
            reason = f"{len(affected)} of {len(examples)} questions mention {topic}, such as {affected[0].question!r}"
        if reason is not None:
            findings.append(Finding("augmentation", "ok", f"{reason}: their images are {consequence}"))
    return findings


def _tokens(trainer: Trainer) -> list[Finding]:
    """Image tokens, prompt lengths, the part that all images share, and what two options would save."""
    prompt, counts, rests = trainer.prompts.first, [], []
    sample = None
    for example, image in _read_some(trainer):
        counts.append(image.num_tokens)
        rests.append(len(prompt.rest(example.question, image.text)))
        sample = (example.question, image.text)
    if sample is None:
        return []
    num_prefix, mean_rest = len(prompt.prefix), sum(rests) / len(rests)
    span = str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    findings = [
        Finding("image tokens", "ok", f"{span} tokens per image ({len(counts)} images read)"),
        Finding(
            "prompt",
            "ok",
            f"about {num_prefix + mean_rest:.0f} tokens, of which {num_prefix} are the same for every image and are "
            "computed once per batch",
        ),
    ]
    task, batch_size = trainer.experiment.task, trainer.experiment.train.batch_size
    assert batch_size is not None
    per_example = num_prefix / batch_size + mean_rest
    options = [({"list_labels": "never"}, "task.list_labels: never", "the model then no longer reads the class list")]
    # A prefix-LM's prompts share nothing, wherever the image is.
    if task.image_position == "first" and not trainer.model.bidirectional_prompt:
        caution = "compare the accuracy: the base may expect the image first"
        options.append(({"image_position": "last"}, "task.image_position: last", caution))
    for change, key, caution in options:
        other = PromptBuilder(trainer.opened.tokenizer, task.model_copy(update=change), trainer.splits.labels)
        saved = 1 - (len(other.prefix) / batch_size + len(other.rest(*sample))) / per_example
        if saved > 0.05:
            message = f"optional, to train faster: {key} runs {100 * saved:.0f} % fewer tokens ({caution})"
            findings.append(Finding("prompt", "ok", message))
    return findings


def _read_some(trainer: Trainer) -> Iterator[tuple[Example, ProcessedImage]]:
    examples = trainer.splits.train[:: max(1, len(trainer.splits.train) // _NUM_MEASURED)]
    for example, result in read_ahead(lambda e: trainer.opened.processor.process(e.image.open()), examples):
        if not isinstance(result, UnreadableImageError):
            yield example, result


def _labels(trainer: Trainer) -> list[Finding]:
    splits, labels = trainer.splits, trainer.splits.labels
    sizes = f"{len(splits.train)} training, {len(splits.validation)} validation and {len(splits.test)} test images"
    if labels is None or trainer.experiment.task.asks_from_data:
        return _questions(trainer)
    assert labels is not None
    counts = Counter(example.label for example in splits.train)
    findings = [
        Finding(
            "data",
            "ok",
            f"{sizes}; {len(labels)} labels, {min(counts.values())} to {max(counts.values())} training images each",
        )
    ]
    absent = [label for label in labels.stored if not counts[label]]
    if absent:
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        findings.append(Finding("data", "warning", f"no training image has the label {', '.join(absent[:8])}{more}"))
    if max(counts.values()) > 10 * min(counts.values()):
        findings.append(Finding("data", "warning", "the largest class has over ten times the images of the smallest"))
    if not splits.validation:
        findings.append(Finding("data", "warning", "no validation images: the last checkpoint counts as the best"))
    return findings


def _questions(trainer: Trainer) -> list[Finding]:
    splits, labels = trainer.splits, trainer.splits.labels
    parts = []
    for role, examples in (("training", splits.train), ("validation", splits.validation), ("test", splits.test)):
        parts.append(f"{len(examples):,} {role} questions about {len({e.image_id for e in examples}):,} images")
    answers = "answers are open" if labels is None else f"answers are {len(labels):,} labels"
    findings = [Finding("data", "ok", f"{', '.join(parts)}; {answers}")]
    if not splits.validation:
        findings.append(Finding("data", "warning", "no validation questions: the last checkpoint counts as the best"))
    if splits.test and not any(example.answers for example in splits.test):
        findings.append(
            Finding("data", "warning", "the test answers are unknown: evaluate will only write a results file")
        )
    findings += [
        Finding("data", "warning", f"{left['count']:,} {left['reason']} are left out")
        for left in splits.description.get("left_out", [])
        if left["reason"].startswith("questions")
    ]
    return findings


def _images(trainer: Trainer) -> list[Finding]:
    """Unreadable files, and images that are in both training and test (or validation)."""
    splits = trainer.splits
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    # Several questions about one image need to read it once.
    first = {(part, e.image_id or e.id): (part, e) for part, members in parts.items() for e in reversed(members)}
    examples = list(first.values())
    checked = examples[:: max(1, -(-len(examples) // _MAX_DIGESTS))]

    def identify(item: tuple[str, Example]) -> str:
        item[1].image.open()  # decoded, not only found: a file that is cut off shows here, not in the middle of a run
        return item[1].image.digest()

    where: dict[str, tuple[str, str]] = {}
    unreadable: dict[str, list[str]] = {part: [] for part in parts}
    repeated = []
    for (part, example), digest in read_ahead(identify, checked, num_threads=4):
        if isinstance(digest, UnreadableImageError):
            unreadable[part].append(str(digest))
        elif digest in where and where[digest][0] != part:
            repeated.append((where[digest], (part, example.id)))
        else:
            where.setdefault(digest, (part, example.id))
    findings = []
    if len(checked) < len(examples):
        findings.append(
            Finding(
                "images", "ok", f"{len(checked)} of {len(examples)} files were compared; `vlmtune data check` reads all"
            )
        )
    for part, reasons in unreadable.items():
        if reasons:
            more = f" ({len(reasons)} such images; `vlmtune data check` lists all)" if len(reasons) > 1 else ""
            # A test image that cannot be read counts as wrong; what is learned from must be readable.
            findings.append(Finding("images", "warning" if part == "test" else "error", f"{part}: {reasons[0]}{more}"))
    if repeated:
        (part, name), (other, twin) = repeated[0]
        findings.append(
            Finding(
                "images",
                "warning",
                f"{len(repeated)} images are in two splits at once (byte for byte), such as {name} ({part}) and "
                f"{twin} ({other}): the test would flatter the model",
            )
        )
    return findings or [Finding("images", "ok", "no file is in two splits")]


def _cost(trainer: Trainer) -> list[Finding]:
    """Time and memory of the run, from one trial step whose result is thrown away."""
    state = torch.get_rng_state()
    seconds = _trial_step(trainer)
    torch.set_rng_state(state)
    minutes = seconds * trainer.num_steps / 60
    duration = f"{60 * minutes:.0f} seconds" if minutes < 2 else f"{minutes:.0f} minutes"
    peak = _peak_memory(trainer.model.device)
    memory = "" if peak is None else f"; {peak / 2**30:.1f} GiB of memory so far at most"
    message = f"{trainer.num_steps} steps of about {seconds:.2f} s: {duration}, validation not counted{memory}"
    return [Finding("cost", "ok", message)]


def _trial_step(trainer: Trainer) -> float:
    """Seconds of one step's work, without its effect.

    Reading is excluded, since a run reads ahead on other threads; short steps are timed twice: the first allocates.
    """
    micro_batches = next(trainer.steps())
    for _ in range(2):
        start = time.perf_counter()
        trainer.step(micro_batches, learn=False)
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return seconds


def _peak_memory(device: torch.device) -> int | None:
    """Peak memory of the process in bytes; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    # ru_maxrss is in KiB on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
