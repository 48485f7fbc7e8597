"""The two kinds of pretraining file as typed values (`vlmtune pretrain`).

`Pretraining`: a tiny model from scratch. `Stages`: a connector, first alone on captions, then with LoRA on
instructions; either stage is an ordinary experiment.
"""

from __future__ import annotations

import os

from pydantic import Field

from vlmtune.config.schema import (
    AdapterSection,
    ConnectorSection,
    DataSection,
    EvaluateSection,
    Experiment,
    ModelSection,
    NonNegative,
    Positive,
    Section,
    TaskSection,
    TrainSection,
)


class TowerSize(Section):
    """The vision tower."""

    hidden_size: int = Field(default=128, ge=8)
    num_layers: int = Field(default=5, ge=1)
    num_heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=384, ge=8)


class DecoderSize(Section):
    """The language model. `layers` is one letter a layer: c for a short convolution, a for attention."""

    hidden_size: int = Field(default=160, ge=8)
    layers: str = Field(default="cacaca", pattern="^[ca]*a[ca]*$")
    num_heads: int = Field(default=4, ge=1)
    num_key_value_heads: int = Field(default=2, ge=1)
    intermediate_size: int = Field(default=448, ge=8)


class ModelSize(Section):
    """The network that is trained from scratch."""

    image_size: int = Field(default=32, ge=8)
    """Side of the images in pixels."""
    patch_size: int = Field(default=4, ge=1)
    vocabulary: int = Field(default=1280, ge=300)
    projector_hidden_size: int = Field(default=384, ge=8)
    tower: TowerSize = Field(default_factory=TowerSize)
    decoder: DecoderSize = Field(default_factory=DecoderSize)


class Images(Section):
    """What is drawn. Kinds are those of `vlmtune.data.drawn`."""

    num: int = Field(default=120_000, ge=100)
    num_validation: int = Field(default=1_000, ge=10)
    mixture: dict[str, Positive] = Field(
        default_factory=lambda: {
            "digit": 0.32,
            "letter": 0.15,
            "shapes": 0.15,
            "thing": 0.2,
            "texture": 0.05,
            "invented": 0.13,
        }
    )
    """Kind -> relative frequency."""


class TowerStage(Section):
    """First the tower and the connector alone, with heads that name the image from the flattened image tokens."""

    steps: int = Field(default=1_600, ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: Positive = 1.5e-3


class WholeStage(Section):
    """Then the whole model on questions, the naming heads still there with a small weight."""

    steps: int = Field(default=1_300, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: Positive = 1.5e-3
    tower_learning_rate_factor: NonNegative = 0.4
    """The tower has learned already: a lower rate keeps it."""
    num_questions: int = Field(default=3, ge=1)
    """Questions about an image in one step, besides its classification. They share its encoding."""
    naming_weight: NonNegative = 0.3


class Pretraining(Section):
    """The whole YAML file."""

    name: str = "tiny"
    seed: int = Field(default=0, ge=0)
    output_dir: str = "runs"
    model: ModelSize = Field(default_factory=ModelSize)
    images: Images = Field(default_factory=Images)
    tower: TowerStage = Field(default_factory=TowerStage)
    whole: WholeStage = Field(default_factory=WholeStage)
    weight_decay: NonNegative = 0.05
    average: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the running average of the weights; the average is what is saved."""
    max_grad_norm: Positive = 1.0
    evaluate_every: int = Field(default=200, ge=1)
    save_every: int = Field(default=200, ge=1)


ALIGN_LEARNING_RATE = 1e-3
"""Of the connector alone (LLaVA, arXiv 2304.08485; Dense Connector, arXiv 2405.13800)."""
INSTRUCT_TARGETS = ("attention", "mlp", "conv")
"""Every linear layer of the decoder. The connector learns beside them as a whole."""


class Stage(Section):
    """What one stage learns from, and how. Keys left out are decided as for `vlmtune train`."""

    data: DataSection = Field(default_factory=DataSection)
    task: TaskSection = Field(default_factory=lambda: TaskSection(type="text"))
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    train: TrainSection = Field(default_factory=TrainSection)


class Stages(Section):
    """A connector in two stages: the whole YAML file. One of them may be left out."""

    name: str | None = None
    """The second stage's run folder; the first one's is NAME-align. Default: the file's name."""
    seed: int = Field(default=0, ge=0)
    output_dir: str = "runs"
    model: ModelSection = Field(default_factory=ModelSection)
    align: Stage | None = None
    """First, by default: the connector alone (`adapter.parts: [connector]`) at 1e-3, without augmentation."""
    instruct: Stage | None = None
    """Then, by default: LoRA on the decoder, and the first stage's connector whole (`defaults` decides its rate)."""
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)

    def experiments(self) -> dict[str, Experiment]:
        """Stage -> the experiment it stands for, in their order. The file's name must be decided."""
        found = {}
        if self.align is not None:
            found["align"] = self._experiment(self._aligning(self.align), self.model, f"{self.name}-align")
        if self.instruct is not None:
            model = self.model.model_copy(deep=True)
            if self.align is not None:
                model.connector = model.connector or ConnectorSection()
                # Absolute: the run's file is read again from elsewhere.
                model.connector.start = os.path.join(os.path.abspath(self.output_dir), f"{self.name}-align")  # noqa: PTH100, PTH118
            found["instruct"] = self._experiment(self._instructing(self.instruct), model, str(self.name))
        return found

    @staticmethod
    def _aligning(stage: Stage) -> Stage:
        stage = stage.model_copy(deep=True)
        if stage.adapter.parts is None and stage.adapter.targets is None:
            stage.adapter.parts, stage.adapter.targets = ["connector"], []
        if stage.train.learning_rate is None:
            stage.train.learning_rate = ALIGN_LEARNING_RATE
        if stage.train.augment is None:
            stage.train.augment = []  # a caption says where things are, and the tower's features can be kept
        return stage

    @staticmethod
    def _instructing(stage: Stage) -> Stage:
        stage = stage.model_copy(deep=True)
        adapter = stage.adapter
        if adapter.parts is None and adapter.targets is None:
            adapter.parts, adapter.targets = ["connector"], list(INSTRUCT_TARGETS)
        return stage

    def _experiment(self, stage: Stage, model: ModelSection, name: str) -> Experiment:
        task = stage.task
        if "type" not in task.model_fields_set:
            task = task.model_copy(update={"type": "text"})
        return Experiment(
            name=name,
            seed=self.seed,
            output_dir=self.output_dir,
            model=model,
            data=stage.data,
            task=task,
            adapter=stage.adapter,
            train=stage.train,
            evaluate=self.evaluate,
        )
