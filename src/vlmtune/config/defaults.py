"""The defaults of keys that an experiment leaves out: one table, by base model and number of training images.

In: an `Experiment` with `None`s and the counts of its data. Out: the same experiment with every decision in place,
which is what a run folder's config.yaml records. A value that the file sets is never changed. Called by `train`,
`evaluate`, `preflight` and `config show`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from vlmtune.config.schema import ConnectorSection, Experiment, ResolvedExperiment

Kind = Literal["tiny", "lora"]
"""Of the base model: `tiny` learns in a few hundred steps at a high rate, the real ones (`lora`) need a low one."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """A value that depends on a count: that of the first step whose limit is not exceeded; the last has no limit."""

    count: Literal["num_train", "num_labels"]
    steps: tuple[tuple[int | None, Any], ...]

    def value(self, counts: dict[str, int]) -> Any:
        """The value for these counts."""
        return next(value for limit, value in self.steps if limit is None or counts[self.count] <= limit)


@dataclass(frozen=True, slots=True)
class Choice:
    """One row: the key, its value for either kind of base model, and why."""

    key: str
    tiny: Any
    lora: Any
    reason: str


ALL_LINEAR = ["attention", "mlp", "conv", "connector"]

LORA_SUFFICES = 1_500
"""Number of training images up to which the tiny base learns better by LoRA than in full."""

# fmt: off
WHAT_LEARNS: tuple[Choice, ...] = (
    Choice("adapter.targets",
           Ladder("num_train", ((LORA_SUFFICES, ALL_LINEAR), (None, []))), ALL_LINEAR,
           "every linear layer of the decoder, MLPs above all (LoRA Without Regret), and the connector"),
    Choice("adapter.parts",
           Ladder("num_train", ((LORA_SUFFICES, []), (None, ["everything"]))), [],
           "the tiny base has never seen a photograph: given enough of them, all of its 3 M weights should learn"),
)
TABLE: tuple[Choice, ...] = (
    Choice("adapter.rank", 16, 16,
           "16 to 32 loses nothing against full fine-tuning on sets of this size"),
    Choice("train.learning_rate", 2e-3, 2e-4,
           "about ten times that of full fine-tuning; small networks take a larger one"),
    Choice("train.batch_size", Ladder("num_train", ((LORA_SUFFICES, 16), (None, 32))), 16,
           "one prefix tree: the shared prompt is paid once a batch, and 16 answers are still a noisy enough gradient"),
    Choice("train.epochs",
           Ladder("num_train", ((200, 20), (1_000, 10), (LORA_SUFFICES, 5), (10_000, 8), (None, 3))),
           Ladder("num_train", ((200, 20), (1_000, 10), (5_000, 5), (None, 3))),
           "few images need more passes for the same number of steps"),
    Choice("train.augment", "none", "none",
           "LoRA on few images does without; which changes keep a label true depends on the images"),
    Choice("task.list_labels",
           Ladder("num_labels", ((0, "never"), (64, "prompt"), (None, "never"))),
           Ladder("num_labels", ((0, "never"), (256, "prompt"), (None, "never"))),
           "the list helps a base model choose; a long one fills the context, and the scorer is closed-set without it"),
    Choice("evaluate.batch_size", 64, 16,
           "no gradients are kept, so more fits than in training"),
)

# Without LoRA (adapter.parts alone), full weights are trained, which need smaller steps than LoRA's.
WHOLE_PARTS: tuple[Choice, ...] = (
    Choice("train.learning_rate", 1e-3, 2e-5,
           "whole weights at a tenth of LoRA's rate; the tiny base was itself pretrained at 1.5e-3"),
    Choice("train.augment", "crop", "crop",
           "whole weights learn images by heart; crops and light keep any label true, flips would not keep text"),
)

# Where each example has a question of its own (task.question_from: data), before the tables above.
QUESTIONS: tuple[Choice, ...] = (
    Choice("train.augment", "none", "none",
           "a crop may cut off what a question is about, and other light change the color it asks for"),
    Choice("train.batch_size", 96, 32,
           "counted in questions: several are about one image, which is encoded once for all of them"),
)
# fmt: on

ALIGNED_FACTOR = 0.1
"""Of the learning rate, for a connector that is trained in full beside LoRA and already fits the decoder (LLaVA's own
script: LoRA at 2e-4, projector at 2e-5; ten points in docs/LOG.md). One that starts at random has to move further."""
ALPHA_PER_RANK = 2
"""LoRA's alpha when only the rank is known: α = 2r scales the update by 2 at every rank."""
VALIDATIONS_PER_RUN = 10
"""Enough points for a curve; an epoch has at least one."""


def kind_of(base: str) -> Kind:
    """The table's column for a base model."""
    return "tiny" if base.startswith("builtin:") else "lora"


def apply(experiment: Experiment, *, num_train: int, num_labels: int, kind: Kind | None = None) -> ResolvedExperiment:
    """Decide every key that was left out.

    Args:
        experiment: as loaded; not changed.
        num_train: training images after `data.fraction` and `data.limit`.
        num_labels: size of the label set; 0 for open answers.
        kind: the column of the table. Default: from `model.base`; a fine-tuned tiny model's folder must set it.

    Returns a new experiment. Applying it again changes nothing.
    """
    counts = {"num_train": num_train, "num_labels": num_labels}
    column = kind or kind_of(experiment.model.base)
    decided = experiment.model_copy(deep=True)
    if decided.adapter.targets is None and decided.adapter.parts:
        decided.adapter.targets = []  # `parts: [connector]` means the connector alone
    if decided.adapter.parts is None and decided.adapter.targets is not None:
        # And `targets: [q_proj]` means LoRA alone, except for a connector that the base lacks, which must be trained.
        decided.adapter.parts = [] if decided.model.connector is None else ["connector"]
    is_open = decided.adapter.targets is None
    for choice in WHAT_LEARNS:
        _decide(decided, choice, column, counts)
    if decided.model.connector is not None and is_open:
        _let_connector_learn(decided)
    is_beside_lora = bool(decided.adapter.targets) and "connector" in (decided.adapter.parts or [])
    if is_beside_lora and _is_aligned(decided.model.connector):
        decided.adapter.learning_rate_factors.setdefault("connector", ALIGNED_FACTOR)
    questions = QUESTIONS if decided.task.asks_from_data else ()
    for choice in (*questions, *(() if decided.adapter.targets else WHOLE_PARTS), *TABLE):
        _decide(decided, choice, column, counts)
    assert decided.adapter.rank is not None
    _fill(decided, "adapter.alpha", float(ALPHA_PER_RANK * decided.adapter.rank))
    if experiment.train.epochs is None and decided.train.max_steps is not None:
        # Given in steps: as many passes as they take.
        decided.train.epochs = float(math.ceil(decided.train.max_steps / steps_per_epoch(decided, num_train)))
    every = min(max(1, num_steps(decided, num_train) // VALIDATIONS_PER_RUN), steps_per_epoch(decided, num_train))
    _fill(decided, "train.eval_every", every)
    _fill(decided, "train.save_every", decided.train.eval_every)
    decided.name = decided.name or "experiment"
    return ResolvedExperiment.model_validate(decided.model_dump())


def _let_connector_learn(decided: Experiment) -> None:
    """A connector that the base does not have is trained in full, and has no LoRA."""
    decided.adapter.targets = [target for target in decided.adapter.targets or [] if target != "connector"]
    if not {"connector", "everything"} & set(decided.adapter.parts or []):
        decided.adapter.parts = ["connector", *(decided.adapter.parts or [])]


def _is_aligned(connector: ConnectorSection | None) -> bool:
    """Whether a connector starts from weights that fit the decoder: the base's, or those of a run.

    `linear` and `mlp` without a given start count as random, which they are in a base of the other
    kind.
    """
    if connector is None:
        return True
    if connector.start is not None:
        return connector.start != "random"
    return connector.kind in ("own", "dense")


def steps_per_epoch(experiment: Experiment, num_train: int) -> int:
    """Optimizer steps in one pass; a last, smaller batch counts. `train.batch_size` must be decided."""
    assert experiment.train.batch_size is not None, "apply() first"
    return max(1, math.ceil(num_train / (experiment.train.batch_size * experiment.train.gradient_accumulation)))


def num_steps(experiment: Experiment, num_train: int) -> int:
    """Optimizer steps of the whole run: `train.epochs` passes, cut at `train.max_steps`. Both must be decided."""
    assert experiment.train.epochs is not None, "apply() first"
    # Rounded before the ceiling: 3 × 0.1 epochs must not be a step more than 0.3.
    steps = max(1, math.ceil(round(experiment.train.epochs * steps_per_epoch(experiment, num_train), 6)))
    return min(steps, experiment.train.max_steps or steps)


def _decide(experiment: Experiment, choice: Choice, column: Kind, counts: dict[str, int]) -> None:
    value = getattr(choice, column)
    _fill(experiment, choice.key, value.value(counts) if isinstance(value, Ladder) else value)


def _fill(experiment: Experiment, key: str, value: Any) -> None:
    section_name, name = key.split(".")
    section = getattr(experiment, section_name)
    if getattr(section, name) is None:
        setattr(section, name, list(value) if isinstance(value, list) else value)
