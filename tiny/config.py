"""A file such as `tiny.yaml` as typed values: the sizes of a tiny model, its images, and its training."""

from __future__ import annotations

from pydantic import Field

from vlmtune.config.schema import NonNegative, Positive, Section


class TowerSize(Section):
    """The vision tower."""

    hidden_size: int = Field(default=128, ge=8)
    num_layers: int = Field(default=5, ge=1)
    num_heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=384, ge=8)


class DecoderSize(Section):
    """The language model. `layers` has one letter per layer: c for a short convolution, a for attention."""

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
    """The images to draw. Kinds are those of `tiny.drawn`."""

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
    """Then the whole model on questions, with the naming heads kept at a small weight."""

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
