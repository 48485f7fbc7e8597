"""Files as the two older repos have them, written from their schema (not copied): one a kind, for small class lists.

Every text has the marks of its kind: misspelled keys, `5e-4` (text to PyYAML), a null checkpoint, class lists by hand.
"""

from __future__ import annotations

CIFAR_NAMES = ("apple", "aquarium_fish", "baby", "bear", "bee", "beetle")
MAKERS = ("AM", "Acura", "Aston", "Land")
PETS = ("cat", "dog")
ACTIONS = ("calling", "clapping", "listening_to_music")


def bullets(names: tuple[str, ...]) -> str:
    return "\n".join(f"  - {name}" for name in names)


def mapping(names: tuple[str, ...]) -> str:
    return "\n".join(f"  {index}: {name}" for index, name in enumerate(names))


def cifar_fine_tuning(names: tuple[str, ...] = CIFAR_NAMES) -> str:
    """Text 000's: labels mapped, the list in the system prompt, no LoRA list, W&B keys, a Modal name."""
    return f"""\
seed: 23
use_wandb: false
model_name: LiquidAI/LFM2-VL-3B
max_seq_length: 2048
checkpoint_path: null

dataset_name: someone/cifar100
dataset_samples: 50000  # all of them
dataset_image_column: img
dataset_label_colum: fine_label
dataset_splits: ["train"]
train_split_ratio: 0.9
label_mapping:
{mapping(names)}
preprocessing_workers: 4

system_prompt: |
  You classify small images. Answer with one of these classes:

{bullets(names)}

  Rules:
  1. Choose exactly one class.
  2. Spell it as in the list.

user_prompt: |
  Which object is this?

use_peft: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_bias: none
use_rslora: false

learning_rate: 2e-4
num_train_epochs: 3
batch_size: 4
gradient_accumulation_steps: 4
optim: adamw_8bit
warmup_ratio: 0.1
weight_decay: 0.01
logging_steps: 10
eval_steps: 1000

wandb_entity: someone
wandb_project_name: cifar100-classification
wandb_experiment_name: null
skip_eval: false
output_dir: outputs
modal_app_name: cifar100-finetune
"""


def cifar_evaluation(model: str, base: str | None, names: tuple[str, ...] = CIFAR_NAMES) -> str:
    """A checkpoint beside its base model, the list in the system prompt."""
    return f"""\
seed: 23
model: {model}
{f"base_model: {base}" if base else ""}
structured_generation: true
dataset: someone/cifar100
n_samples: 200
split: test
system_prompt: |
  You classify small images. Answer with one of these classes:

{bullets(names)}

user_prompt: |
  Which object is this?
image_column: img
label_column: fine_label
label_mapping:
{mapping(names)}
"""


def cars_fine_tuning() -> str:
    """Text 003's: no label_mapping, no dataset_splits, the list in the user prompt, the LoRA list written out."""
    return f"""\
seed: 23
model_name: LiquidAI/LFM2-VL-450M
max_seq_length: 2048
checkpoint_path: LFM2-VL-450M-someone--cars-20251024-130628/checkpoint-500
dataset_name:  someone/cars
dataset_samples: 6000
dataset_image_column: image
dataset_label_colum: maker
train_split_ratio: 0.9

system_prompt: |
  You know cars.

user_prompt: |
  Who made this car? Pick one:

{bullets(MAKERS)}

learning_rate: 5e-4
num_train_epochs: 3
batch_size: 1
gradient_accumulation_steps: 16
optim: adamw_8bit
warmup_ratio: 0.1
weight_decay: 0.01
logging_steps: 10
eval_steps: 100 # TODO: more

use_peft: true
lora_r: 8
lora_alpha: 16
lora_dropout: 0.05
lora_bias: none
use_rslora: true
lora_target_modules:
  - q_proj
  - k_proj
  - v_proj
  - o_proj
  - gate_proj
  - up_proj
  - down_proj
"""


def cars_evaluation(model: str = "/model_checkpoints/LFM2-VL-3B-someone--cars-20251024-130628/checkpoint-100") -> str:
    """A checkpoint in the older repo's volume, without its base model and without label_mapping."""
    return f"""\
seed: 23
model: {model}
structured_generation: true
dataset: someone/cars
n_samples: 50
split: test
system_prompt: |
  You know cars.
user_prompt: |
  Who made this car? Pick one:

{bullets(MAKERS)}

image_column: image
label_column: maker
"""


def pets_fine_tuning() -> str:
    """Cats and dogs: the shortest fine-tuning file, with most keys left out."""
    return f"""\
seed: 23
model_name: LiquidAI/LFM2-VL-450M
dataset_name: someone/cats_vs_dogs
dataset_samples: 20000
dataset_image_column: image
dataset_label_colum: labels
train_split_ratio: 0.9
label_mapping:
  0: "cat"
  1: "dog"
system_prompt: |
  You are a veterinarian.
user_prompt: |
  What animal is it?

{bullets(PETS)}

  Provide a single animal from the list.
learning_rate: 5e-4
num_train_epochs: 1
batch_size: 1
gradient_accumulation_steps: 16
warmup_ratio: 0.1
weight_decay: 0.01
logging_steps: 10
eval_steps: 100
use_peft: true
lora_r: 8
"""


def actions_evaluation(names: tuple[str, ...] = ACTIONS) -> str:
    """Human actions, zero-shot: a hub model on the train split, names of several words, quoted values."""
    return f"""\
seed: 23
model: "LiquidAI/LFM2-VL-450M"
structured_generation: false
dataset: "someone/actions"
n_samples: 100
split: train
system_prompt: |
  You recognize human actions.
user_prompt: |
  What action is it?

  Pick one from the following list:
{bullets(tuple(name.replace("_", " ") for name in names))}

image_column: "image"
label_column: "labels"
label_mapping:
{mapping(names)}
"""
