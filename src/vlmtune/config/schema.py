"""The experiment file as typed values. One YAML file is one `Experiment`; every key is documented here once.

`None` means "decided from the base model and the data" (see `defaults.py`); the resolved file in a run folder has no
`None` left where a decision was made.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vlmtune.config.augmentation import AugmentSteps


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

ListLabels = Literal["prompt", "never", "drop-after-first-epoch"]
ImagePosition = Literal["first", "last"]
TaskType = Literal["choice", "bool", "score", "text"]

BOOL_LABELS = ("no", "yes")
"""The stored labels of a bool, in this order."""

ROLES = ("attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp")
"""What LoRA targets may name besides raw layer names; a role covers the right layers in every model family."""
PARTS = ("connector", "vision_tower", "embeddings", "language_model", "everything")
"""What may be trained fully."""


class Section(BaseModel):
    """A part of the file. An unknown key is an error, never ignored."""

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ConnectorSection(Section):
    """The connector between vision tower and decoder. A plain string in YAML stands for `kind`."""

    kind: Literal["own", "linear", "mlp", "dense"] = "own"
    """`linear` (PaliGemma's own), `mlp` with pixel-unshuffle (LFM2-VL's own), or `dense`: the base's own, which also
    reads layers inside the tower (arXiv 2405.13800). `own` is the base's, for another `start`."""
    variant: Literal["dci", "sci", "sti"] | None = None
    """Of a dense connector; default dci. dci and sci add channels, sti adds image tokens."""
    groups: list[Annotated[str, Field(pattern=r"^\d+(-\d+)?$")]] | None = None
    """Layers that a dense connector reads besides the last: `7`, or `0-12` for a mean; 0 is the embeddings' output.
    Default: for dci two halves of the tower, for sci and sti two single layers."""
    start: str | None = None
    """`pretrained` (new channels at zero, so that nothing changes yet), `random` (nothing pretrained is kept), or a run
    folder whose connector is taken. Default: pretrained where the base has such weights."""


class ModelSection(Section):
    """The base model. A plain string in YAML stands for `base`."""

    base: str = "builtin:tiny"
    """A hub id, a local folder in the hub's layout, or `builtin:tiny`."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    min_image_tokens: int | None = Field(default=None, ge=1)
    max_image_tokens: int | None = Field(default=None, ge=1)
    do_image_splitting: bool | None = None
    connector: ConnectorSection | None = None
    """Default: the base's own."""


class DataSection(Section):
    """The source of the images. A plain string in YAML stands for `source`."""

    source: str = "builtin:digits"
    """A folder of class folders, a CSV/JSONL/parquet file, a `datasets` folder, a hub id, or `builtin:digits`.

    For an image with a question of its own (`task.question_from: data`) a table or data set with questions and answers,
    a folder with VQA's official JSON files, or `builtin:drawn-vqa`.
    """
    revision: str | None = None
    subset: str | None = None
    """The hub data set's configuration name."""
    image_column: str | None = None
    label_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    """For questions: one answer, or a list of the annotators' answers."""
    conversation_column: str | None = None
    """For conversations: a list of turns, LLaVA's or chat messages. A table without questions or conversations is read
    as captions."""
    turns: Literal["all", "first"] = "all"
    """For conversations, the answers to learn: each one with all turns before it, or only the first."""
    caption_column: str | None = None
    caption_question: str = "Describe the picture."
    """The question that captions answer."""
    image_folder: str | None = None
    """Folder of the images of VQA's official JSON files and of tables of questions. Default: beside the file."""
    train_split: str | None = None
    """A split's name, a slice of it, or several: `train+validation[:-10240]`; the same for the next two."""
    validation_split: str | None = None
    test_split: str | None = None
    validation_fraction: Fraction = 0.1
    """Share of the training images held out, stratified, when the source has no validation split."""
    test_fraction: Fraction = 0.2
    """Share held out for the test when the source has no test split."""
    fraction: Fraction = 1.0
    """Share of the training images to learn from, stratified by label."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many training images, stratified by label."""
    limit_validation: int | None = Field(default=None, ge=1)
    limit_test: int | None = Field(default=None, ge=1)


class TaskSection(Section):
    """The question about an image."""

    type: TaskType = "choice"
    """The answer space: `choice` among a closed set of labels, `bool` (no or yes), `score` (ordered levels), or `text`
    (any words)."""
    question_from: Literal["prompt", "data"] | None = None
    """`prompt`: every image is asked the same words, those of the prompt. `data`: each example has words of its own (a
    question column, VQA's official files, conversations, captions). Default: data for text, prompt for the others."""
    labels: list[str] | None = None
    """For a choice: the stored labels, in the order they are listed. Default: from the data."""
    levels: list[str] | None = None
    """For a score: the stored labels from low to high. Default: as declared by the data, or numbers in their order."""
    label_names: dict[str, str | list[str]] | None = None
    """Stored label -> the name the model is shown (or several surface forms, the first of which is trained on)."""
    system_prompt: str | None = None
    """May hold `{labels}`, replaced by the list of shown names."""
    user_prompt: str | None = None
    """May hold `{labels}`."""
    list_labels: ListLabels | None = None
    image_position: ImagePosition = "first"
    max_answer_tokens: int = Field(default=32, ge=1)
    """Maximum length of an open answer."""

    @property
    def is_closed(self) -> bool:
        """Whether the answer is one of a known set, so that every answer has a probability."""
        return self.type != "text"

    @property
    def is_ordered(self) -> bool:
        """Whether the answers lie on a scale, so that a near miss is better than a far one."""
        return self.type == "score"

    @property
    def is_bool(self) -> bool:
        """Whether the answers are no and yes."""
        return self.type == "bool"

    @property
    def asks_from_data(self) -> bool:
        """Whether each example has a question of its own."""
        return (self.question_from or ("prompt" if self.is_closed else "data")) == "data"

    @property
    def fixed_labels(self) -> list[str] | None:
        """The stored labels if the task sets them; None if the data does, or answers are open."""
        if self.is_bool:
            return list(BOOL_LABELS)
        return self.levels if self.is_ordered else self.labels

    def after_first_epoch(self) -> TaskSection:
        """The task in every epoch after the first, and after training."""
        is_dropped = self.list_labels == "drop-after-first-epoch"
        return self.model_copy(update={"list_labels": "never"}) if is_dropped else self


class AdapterSection(Section):
    """What is trained. LoRA on `targets`, and whole `parts` trained fully; either may be empty."""

    targets: list[str] | None = None
    """Roles (attention, mlp, conv, connector, vision_attention, vision_mlp) or raw layer names (q_proj, w1…)."""
    parts: list[str] | None = None
    """Trained fully: connector, vision_tower, embeddings, language_model, everything."""
    rank: int | None = Field(default=None, ge=1)
    alpha: Positive | None = None
    dropout: BelowOne = 0.0
    rslora: bool = False
    learning_rate_factors: dict[str, NonNegative] = Field(default_factory=dict)
    """Role or part -> factor on the learning rate."""


class TrainSection(Section):
    """How it is trained."""

    epochs: Positive | None = None
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    """Images in one micro-batch, which is one prefix tree."""
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: Positive | None = None
    warmup_ratio: UnitInterval = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: NonNegative = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: Positive = 1.0
    answer: Literal["sample", "majority"] = "sample"
    """If a question has several answers: one drawn without replacement over epochs, or always the most frequent."""
    loss: Literal["answer", "all"] = "answer"
    """`all` also learns the prompt, as the older repos did; for comparison."""
    eval_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between validations. Default: ten per run, at least one per epoch."""
    save_every: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    keep_best: int = Field(default=1, ge=1)
    """Number of best checkpoints on validation to keep, besides the newest `keep_checkpoints`."""
    average_last: int = Field(default=0, ge=0)
    """At the end, average the weights of this many of the last checkpoints, and validate the average. 0 is off."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many consecutive validations without a gain. Default: never."""
    min_gain: NonNegative = 0.0
    """Validation accuracy above the best so far that counts as a gain."""
    augment: AugmentSteps | None = None
    """Random changes of training images, in order: a name, or a list of names and `{name: {setting: value}}`."""
    mixup: NonNegative = 0.0
    """α of MixUp's Beta(α, α): an image is blended with another, and learns both answers. 0 is off."""
    cutmix: NonNegative = 0.0
    """α of CutMix's: a rectangle of another image. With both, each image draws one of the two."""
    mix_probability: UnitInterval = 1.0
    """Probability that an image is mixed, where `mixup` or `cutmix` is on."""
    label_smoothing: BelowOne = 0.0
    """Share of the target that is spread evenly over all labels."""
    sampling: Literal["natural", "balanced"] = "natural"
    """`balanced` shows every label equally often in an epoch, which keeps its length."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weights an answer's loss by the inverse of its label's frequency."""
    feature_cache: Literal["auto", "on", "off"] = "auto"
    checkpoint_activations: Literal["auto", "on", "off"] = "auto"


class ScoringSection(Section):
    """How the scores of labels become probabilities. A plain string in YAML stands for `reduce`."""

    reduce: Literal["sum", "mean", "auto"] = "sum"
    """Sum or mean of a label's token log-probabilities. `auto`: the better one on validation, prior included."""
    prior: Literal["none", "content-free", "training", "auto"] | None = None
    """Subtracted from the scores: those of images without content (gray, black, noise; contextual calibration), or
    the mean over training images (batch calibration). Default: none, and with `reduce: auto` auto."""


class EvaluateSection(Section):
    """How it is evaluated."""

    split: Literal["train", "validation", "test"] = "test"
    checkpoint: str | None = None
    """A checkpoint or run folder, or `base`. Default: the best of the experiment's own run, or the base without one."""
    mode: Literal["full", "argmax"] = "full"
    """`full` scores every label; `argmax` proves the winner only, and is faster."""
    batch_size: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """At most this many images, stratified; every table then says so."""
    scoring: ScoringSection = Field(default_factory=ScoringSection)
    calibrate: bool = False
    """Also fit temperature, label sets and an abstention threshold on validation, and measure them on `split`."""
    wanted_coverage: Fraction = 0.9
    """How often a calibrated label set should hold the true label."""
    wanted_precision: Fraction = 0.95
    """How often an answer should be right, where the model may abstain."""


class TrackingSection(Section):
    """Where metrics go besides the run folder. A plain text or list in YAML stands for `to`."""

    to: Annotated[list[Literal["wandb", "tensorboard"]], BeforeValidator(_as_list)] = Field(min_length=1)
    """`tensorboard` writes RUN/tensorboard. `wandb` is Weights & Biases, configured by the keys below."""
    project: str = "vlmtune"
    entity: str | None = None
    """Default: the account's own."""
    group: str | None = None
    tags: list[str] = Field(default_factory=list)
    mode: Literal["online", "offline"] | None = None
    """`offline` keeps everything in RUN/wandb, for `wandb sync`. Default: WANDB_MODE of the environment, or online."""


class ModalSection(Section):
    """Where `modal run -m vlmtune.scale.modal_app::train` rents a GPU, with which volumes and secrets."""

    gpu: str = "L40S"
    """Modal's name of a GPU, as H100 or A100-80GB."""
    timeout_hours: Annotated[float, Field(gt=0, le=24)] = 10
    """Limit of one container. A run that is cut off, by this or by preemption, is resumed from its last checkpoint."""
    retries: int = Field(default=3, ge=0, le=10)
    models_volume: str = "vlmtune-models"
    """Volume that caches downloads from the hub."""
    runs_volume: str = "vlmtune-runs"
    """Volume of the run folders."""
    secrets: list[str] = Field(default_factory=list)
    """Modal secrets put into the environment: HF_TOKEN for gated models, WANDB_API_KEY for tracking."""


class RangeSection(Section):
    """Numbers from `low` to `high`, both included; integers where the key holds an integer."""

    low: float
    high: float
    log: bool = False
    """Equal ratios are equally likely, as for a learning rate."""


class SearchSection(Section):
    """The search space of `vlmtune search`, and how it is searched."""

    space: dict[str, RangeSection | list[Any] | None] = Field(default_factory=dict)
    """Key of adapter, train or task -> a list of values, or a range; an empty value leaves the key unchanged.
    Laid over the default space (`search_space.default_space`). `adapter.alpha_per_rank` sets alpha by the rank."""
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Ends a trial whose validations fall behind: those of the median trial, or by successive halving."""


class Experiment(Section):
    """One experiment: the whole YAML file."""

    name: str | None = None
    """The run folder's name. Default: the file's name."""
    seed: int = Field(default=0, ge=0)
    output_dir: str = "runs"
    model: ModelSection = Field(default_factory=ModelSection)
    data: DataSection = Field(default_factory=DataSection)
    task: TaskSection = Field(default_factory=TaskSection)
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    train: TrainSection = Field(default_factory=TrainSection)
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)
    modal: ModalSection | None = None
    tracking: TrackingSection | None = None
    """Default: the run folder alone."""
    search: SearchSection | None = None


class ResolvedAdapter(AdapterSection):
    """`adapter` with every decision made."""

    targets: list[str]
    parts: list[str]
    rank: int = Field(ge=1)
    alpha: Positive


class ResolvedTask(TaskSection):
    """`task` with every decision made."""

    list_labels: ListLabels


class ResolvedTrain(TrainSection):
    """`train` with every decision made."""

    epochs: Positive
    batch_size: int = Field(ge=1)
    learning_rate: Positive
    eval_every: int = Field(ge=1)
    save_every: int = Field(ge=1)
    augment: AugmentSteps


class ResolvedEvaluate(EvaluateSection):
    """`evaluate` with every decision made."""

    batch_size: int = Field(ge=1)


class ResolvedExperiment(Experiment):
    """An experiment in which nothing is left to decide: what `defaults.apply` returns and a run folder records."""

    name: str
    task: ResolvedTask
    adapter: ResolvedAdapter
    train: ResolvedTrain
    evaluate: ResolvedEvaluate
