"""What is checked before the first step, and said loudly: what will be learned, from what, and at what cost.

In: a `Trainer` that has not begun. Out: findings, for `preflight.json` and for the terminal. `train` runs it first.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from vlmtune.data.augment.label_safety import colored_labels, has_colors, has_sides, sided_labels
from vlmtune.data.prefetch import read_ahead
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.records import Example, LabelSet
from vlmtune.tasks.targets import EXACT_LABELS, NUM_DRAWN
from vlmtune.train.loop import Trainer

_NUM_SHOWN = 3
_NUM_MEASURED = 32
# Decoding a large set takes minutes; `vlmtune data check` has no such limit.
_MAX_DIGESTS = 5_000

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it stands, and in words what was found."""

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
        """Raises DataError with every finding that forbids the run."""
        errors = [finding.message for finding in self.findings if finding.level == "error"]
        if errors:
            raise DataError("preflight found:\n" + "\n".join(f"  {message}" for message in errors))


def preflight(trainer: Trainer) -> Preflight:
    """Run every check. Nothing is learned: a trial step leaves weights and random state as they were."""
    findings = [
        *_adapter(trainer),
        *_targets(trainer),
        *_shown(trainer),
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
        Finding("learned", "ok", f"{plan.num_trainable:,} parameters learn, {share:.2f} % of {plan.num_total:,}")
    ]
    for match in plan.matches:
        towers = ", ".join(f"{count} in the {tower}" for tower, count in match.towers.items() if count)
        towers = towers or "none, this family has no such layers"
        what = "parameters" if match.kind == "part" else "layers"
        findings.append(Finding("learned", "ok", f"{match.kind} '{match.pattern}': {what} {towers}"))
    if (section := trainer.experiment.model.connector) is not None:
        start = "" if section.start is None else f", start: {section.start}"
        findings.append(Finding("connector", "ok", f"{trainer.model.connector.shape}{start}"))
    return findings


def _targets(trainer: Trainer) -> list[Finding]:
    """The supervised tokens of a few examples, decoded back to text."""
    findings = []
    tokenizer, prompt = trainer.opened.tokenizer, trainer.prompts.first.prompt
    for example in trainer.splits.train[:_NUM_SHOWN]:
        shown = trainer.reader.targets.of(example, 0, np.random.default_rng(trainer.experiment.seed))
        ids = prompt.answer_tokens(max(shown, key=shown.__getitem__))
        findings.append(Finding("target", "ok", f"{example.id}: learns {tokenizer.decode(ids)!r} ({len(ids)} tokens)"))
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


def _shown(trainer: Trainer) -> list[Finding]:
    """What is random about the images and the answers of training."""
    train, reader = trainer.experiment.train, trainer.reader
    findings = []
    if reader.augmentation.changes:
        findings.append(Finding("images shown", "ok", f"changed at random: {reader.augmentation.name}"))
    if reader.mixing.is_on:
        kinds = {"MixUp": reader.mixing.mixup, "CutMix": reader.mixing.cutmix}
        how = " or ".join(f"{kind} (α {alpha:g})" for kind, alpha in kinds.items() if alpha)
        share = f"{100 * reader.mixing.probability:g} % of the images are mixed with another by {how}"
        findings.append(Finding("images shown", "ok", f"{share}: two answers each, with the weights λ and 1 - λ"))
    labels = trainer.splits.labels
    if train.label_smoothing and labels is not None:
        others = "all" if len(labels) <= EXACT_LABELS else f"{NUM_DRAWN} drawn ones of the"
        spread = f"{train.label_smoothing:g} of every target is spread over {others} {len(labels)} labels"
        findings.append(Finding("target", "ok", f"{spread}, a branch each"))
    findings += _spared(trainer)
    return findings


def _spared(trainer: Trainer) -> list[Finding]:
    """Images that random changes treat with care, because their answers depend on what would change."""
    augmentation, labels, examples = trainer.reader.augmentation, trainer.splits.labels, trainer.splits.train
    rules: tuple[tuple[bool, Callable[[LabelSet], str | None], Callable[[Example], bool], str, str], ...] = (
        (augmentation.alters_sides, sided_labels, has_sides, "sides or writing", "not flipped, nor far turned"),
        (augmentation.alters_colors, colored_labels, has_colors, "colors", "changed in shape alone"),
    )
    findings = []
    for alters, of_labels, of_example, subject, consequence in rules:
        if not alters:
            continue
        reason = of_labels(labels) if labels is not None else None
        found = [example for example in examples if of_example(example)]
        if reason is None and found:
            reason = f"{len(found)} of {len(examples)} questions speak of {subject}, such as {found[0].question!r}"
        if reason is not None:
            findings.append(Finding("images shown", "ok", f"{reason}: their images are {consequence}"))
    return findings


def _tokens(trainer: Trainer) -> list[Finding]:
    """Image tokens, prompt lengths, how much of them is shared, and what two options would change."""
    counts, rests = [], []
    example = None
    for candidate, processed in _read_some(trainer):
        counts.append(processed.num_tokens)
        rests.append(len(trainer.prompts.first.rest_of_prompt(processed, candidate.question)))
        example = (candidate, processed)
    if example is None:
        return []
    prefix, mean_rest = len(trainer.prompts.first.prefix), sum(rests) / len(rests)
    shared = prefix / (prefix + mean_rest)
    findings = [
        Finding("image tokens", "ok", f"{min(counts)} to {max(counts)} an image (of {len(counts)} looked at)"),
        Finding(
            "prompt",
            "ok",
            f"{prefix} tokens shared by all images and {mean_rest:.0f} of an image's own: "
            f"{100 * shared:.0f} % of a prompt runs once a batch",
        ),
    ]
    task, batch_size = trainer.experiment.task, trainer.experiment.train.batch_size
    assert batch_size is not None
    now = prefix / batch_size + mean_rest
    options: dict[str, dict[str, str]] = {"task.list_labels: never": {"list_labels": "never"}}
    # Of a prefix-LM's prompts nothing is shared wherever the image stands.
    if task.image_position == "first" and not trainer.model.bidirectional_prompt:
        options["task.image_position: last"] = {"image_position": "last"}
    for option, change in options.items():
        other = Predictor(trainer.opened, task.model_copy(update=change), trainer.splits.labels)
        rest = len(other.rest_of_prompt(example[1], example[0].question))
        saved = 1 - (len(other.prefix) / batch_size + rest) / now
        if saved > 0.05:
            findings.append(Finding("prompt", "ok", f"{option} would save {100 * saved:.0f} % of the decoder's rows"))
    return findings


def _read_some(trainer: Trainer) -> Any:
    examples = trainer.splits.train[:: max(1, len(trainer.splits.train) // _NUM_MEASURED)]
    for example, result in read_ahead(lambda e: trainer.prompts.first.process(Query(e.image)), examples):
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
        findings.append(Finding("data", "warning", "no validation images: the last checkpoint will count as best"))
    return findings


def _questions(trainer: Trainer) -> list[Finding]:
    splits, labels = trainer.splits, trainer.splits.labels
    parts = []
    for role, examples in (("training", splits.train), ("validation", splits.validation), ("test", splits.test)):
        parts.append(f"{len(examples):,} {role} questions about {len({e.image_id for e in examples}):,} images")
    answers = "answers are open" if labels is None else f"answers are {len(labels):,} labels"
    findings = [Finding("data", "ok", f"{', '.join(parts)}; {answers}")]
    if not splits.validation:
        findings.append(Finding("data", "warning", "no validation questions: the last checkpoint will count as best"))
    if splits.test and not any(example.answers for example in splits.test):
        findings.append(Finding("data", "warning", "test answers are not known: evaluate writes a results file only"))
    findings += [
        Finding("data", "warning", f"{left['count']:,} {left['reason']} are left out")
        for left in splits.description.get("left_out", [])
        if left["reason"].startswith("questions")
    ]
    return findings


def _images(trainer: Trainer) -> list[Finding]:
    """Unreadable files, and images that are in training and in test (or validation) at once."""
    splits = trainer.splits
    parts = {"training": splits.train, "validation": splits.validation, "test": splits.test}
    # Several questions about one image need one look at it.
    first = {(part, e.image_id or e.id): (part, e) for part, members in parts.items() for e in reversed(members)}
    examples = list(first.values())
    looked_at = examples[:: max(1, -(-len(examples) // _MAX_DIGESTS))]

    def identify(item: tuple[str, Example]) -> str:
        item[1].image.open()  # decoded, not only found: a file that is cut off shows here, not in the middle of a run
        return item[1].image.digest()

    where: dict[str, tuple[str, str]] = {}
    unreadable: dict[str, list[str]] = {part: [] for part in parts}
    repeated = []
    for (part, example), digest in read_ahead(identify, looked_at, num_threads=4):
        if isinstance(digest, UnreadableImageError):
            unreadable[part].append(str(digest))
        elif digest in where and where[digest][0] != part:
            repeated.append((where[digest], (part, example.id)))
        else:
            where.setdefault(digest, (part, example.id))
    findings = []
    if len(looked_at) < len(examples):
        findings.append(
            Finding(
                "images", "ok", f"{len(looked_at)} of {len(examples)} files compared; `vlmtune data check` reads all"
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
    """Time and memory of the run, from one trial step that is thrown away."""
    state = torch.get_rng_state()
    seconds = trainer.trial_step()
    torch.set_rng_state(state)
    minutes = seconds * trainer.num_steps / 60
    if torch.cuda.is_available() and trainer.model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    estimate = f"{trainer.num_steps} steps of about {seconds:.2f} s, {minutes:.1f} minutes without validation"
    return [Finding("cost", "ok", f"{estimate}; {peak:.1f} GiB at the peak so far")]
