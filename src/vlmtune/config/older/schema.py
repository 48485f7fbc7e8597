"""The keys of the two older repos' YAML files, with the defaults they had there. Used by `load` and `convert`.

Keys without a default were required there; other missing keys are decided as in a file of our own.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from vlmtune.config.schema import BelowOne, NonNegative, Positive, Section, UnitInterval

OLDER_LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Share = Annotated[float, Field(gt=0, lt=1)]


class OlderFineTuning(Section):
    """A fine-tuning file: `make fine-tune CONFIG_FILE=finetune_….yaml` there."""

    seed: int = Field(default=23, ge=0)
    use_wandb: bool = True
    model_name: str = "LiquidAI/LFM2-VL-450M"
    max_seq_length: int = Field(default=2048, ge=1)
    checkpoint_path: str | None = None
    dataset_name: str | None = None
    dataset_samples: int | None = Field(default=None, ge=2)
    dataset_image_column: str | None = None
    dataset_label_colum: str | None = None  # as it is spelled there
    dataset_splits: list[str] = Field(default=["train"], min_length=1)
    label_mapping: dict[str, str] | None = None
    train_split_ratio: Share = 0.9
    preprocessing_workers: int = 2
    system_prompt: str | None = None
    user_prompt: str | None = None
    use_peft: bool = False
    lora_r: int = Field(default=16, ge=1)
    lora_alpha: Positive = 32
    lora_dropout: BelowOne = 0.0
    lora_bias: str = "none"
    use_rslora: bool = False
    lora_target_modules: list[str] = Field(default=OLDER_LORA_TARGETS, min_length=1)
    learning_rate: Positive | None = None
    num_train_epochs: Positive | None = None
    batch_size: int | None = Field(default=None, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    optim: str = "adamw_8bit"
    warmup_ratio: UnitInterval = 0.0
    weight_decay: NonNegative = 0.0
    logging_steps: int = Field(default=10, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)
    wandb_entity: str | None = None
    wandb_project_name: str | None = None
    wandb_experiment_name: str | None = None
    skip_eval: bool = False
    output_dir: str = "outputs"
    modal_app_name: str | None = None


class OlderEvaluation(Section):
    """An evaluation file: `make evaluate CONFIG_FILE=….yaml` there."""

    seed: int = Field(default=23, ge=0)
    model: str | None = None
    base_model: str | None = None
    structured_generation: bool = True
    dataset: str | None = None
    split: str = "test"
    n_samples: int | None = Field(default=None, ge=1)
    system_prompt: str | None = None
    user_prompt: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_mapping: dict[str, str] | None = None


OlderFile = OlderFineTuning | OlderEvaluation

REQUIRED = ("dataset_name", "dataset", "model")
"""Keys without a possible default."""


def kind_of(keys: set[str], own: type[Section]) -> type[OlderFineTuning] | type[OlderEvaluation] | None:
    """The older kind of file that has these top-level keys; None for a file of ours.

    A key that is nested here and was at the top there (`batch_size`) does not make a file an older one: it may
    also be one of ours without its section, which is an error.
    """
    ours = set(own.model_fields)
    if keys & (ours - set(OlderFineTuning.model_fields) - set(OlderEvaluation.model_fields)):
        return None
    marks: dict[Any, set[str]] = {
        OlderFineTuning: {"dataset_name", "model_name", "num_train_epochs", "dataset_label_colum", "use_peft"},
        OlderEvaluation: {"dataset", "n_samples", "structured_generation", "label_column", "base_model"},
    }
    best = max(marks, key=lambda kind: len(keys & marks[kind]))
    return best if keys & marks[best] else None
