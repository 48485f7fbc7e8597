"""The two older repos' YAML as experiments of ours: every key of theirs, and sentences about each change.

In: an older file's typed values. Out: keys of ours with values, each with the older key that it came from, so that
`load` can name the line of an error. Faults of the older repos are corrected, unless `faithful` keeps them: the
loss on the whole prompt, LoRA that reaches no MLP, the class list by hand, the measurement on a few images.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmtune.config.older.class_lists import FoundList, find_list
from vlmtune.config.older.schema import OlderEvaluation, OlderFile, OlderFineTuning
from vlmtune.errors import UserError
from vlmtune.files import read_json

LFM2_VL_LAYERS = frozenset(
    ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3", "linear_1", "linear_2", "fc1", "fc2"]
)
"""Names of LFM2-VL's linear layers: the only family that the older repos trained."""
ALL_LINEAR = ["attention", "mlp", "conv", "connector"]

_ATTENTION_LAYERS = {"450M": (6, 12), "1.6B": (6, 27), "3B": (8, 27)}
"""Size -> attention layers in LFM2-VL's decoder and in its vision tower."""
_MICRO_BATCH = 16
"""Accumulated micro-batches are run as one up to this many images."""
_VOLUME = "/model_checkpoints/"
_RUN_NAME = re.compile(r"(LFM2-VL-(?:450M|1\.6B|3B))-")


@dataclass
class Translated:
    """An older file in our keys.

    Attributes:
        entries: (dotted key of ours, value, older key or None for a default).
        notes: sentences for the user.
    """

    entries: list[tuple[str, Any, str | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def put(self, key: str, value: Any, older_key: str | None) -> None:
        """Set a key of ours, if there is a value."""
        if value is not None:
            self.entries.append((key, value, older_key))


def translate(older: OlderFile, *, faithful: bool) -> Translated:
    """What an older file means in our keys.

    Args:
        older: its values.
        faithful: keep faults of the older repos, for comparison.
    """
    out = Translated()
    out.put("seed", older.seed, "seed")
    if isinstance(older, OlderFineTuning):
        _fine_tuning(older, faithful, out)
    else:
        _evaluation(older, faithful, out)
    return out


def _fine_tuning(older: OlderFineTuning, faithful: bool, out: Translated) -> None:
    out.put("output_dir", older.output_dir, "output_dir")
    out.put("model.base", older.model_name, "model_name")
    if older.wandb_experiment_name is not None:
        # A run's name is a folder name; the older repos replaced slashes in the same way.
        out.put("name", re.sub(r"[/\\]", "--", older.wandb_experiment_name), "wandb_experiment_name")
    _data(older, out)
    _task(older, "dataset_label_colum", faithful, out)
    _adapter(older, faithful, out)
    _train(older, faithful, out)
    _tracking(older, out)
    if older.checkpoint_path is not None:
        out.notes.append(
            f"checkpoint_path: {older.checkpoint_path} is a state of the older repo's trainer, which cannot be gone on "
            "from: training starts from the base model. (Runs of vlmtune go on with --resume.)"
        )
    unused = ["max_seq_length", "preprocessing_workers", "logging_steps", "skip_eval", "modal_app_name"]
    written = [key for key in unused if key in older.model_fields_set]
    if written:
        out.notes.append(f"without effect here: {', '.join(written)} (nothing is cut off, and every step is logged).")


def _data(older: OlderFineTuning, out: Translated) -> None:
    """The older repos drew samples, then trained on a share; here validation is held out first, then limited."""
    out.put("data.source", older.dataset_name, "dataset_name")
    out.put("data.image_column", older.dataset_image_column, "dataset_image_column")
    out.put("data.label_column", older.dataset_label_colum, "dataset_label_colum")
    out.put("data.train_split", "+".join(older.dataset_splits), "dataset_splits")
    held_out = round(1 - older.train_split_ratio, 9)
    out.put("data.validation_fraction", held_out, "train_split_ratio")
    if older.dataset_samples is not None:
        num_held_out = math.ceil(older.dataset_samples * held_out)
        out.put("data.limit", max(1, older.dataset_samples - num_held_out), "dataset_samples")
        out.put("data.limit_validation", num_held_out, "dataset_samples")


def _adapter(older: OlderFineTuning, faithful: bool, out: Translated) -> None:
    if not older.use_peft:
        out.put("adapter.targets", [], "use_peft")
        out.put("adapter.parts", ["everything"], "use_peft")
        said = "says so" if "use_peft" in older.model_fields_set else "is left out, which means so"
        out.notes.append(f"use_peft: false {said}: the whole model learns, not LoRA. --set use_peft=true adapts.")
        return
    key = "lora_target_modules"
    reached = [name for name in older.lora_target_modules if name in LFM2_VL_LAYERS]
    lost = [name for name in older.lora_target_modules if name not in LFM2_VL_LAYERS]
    targets = reached if faithful or not lost else ALL_LINEAR
    out.put("adapter.targets", targets, key)
    out.put("adapter.parts", [], key)
    if lost:
        taken = (
            f"Kept as it was: {', '.join(targets) or 'nothing'}."
            if faithful
            else f"Adapted here: every linear layer of the decoder and the connector ({', '.join(targets)})."
        )
        out.notes.append(
            f"{key}: {', '.join(lost)} match nothing in LFM2-VL, so LoRA reached {_reach(reached, older.model_name)} "
            f"only: no MLP and no conv layer. {taken}"
        )
    out.put("adapter.rank", older.lora_r, "lora_r")
    out.put("adapter.alpha", older.lora_alpha, "lora_alpha")
    out.put("adapter.dropout", older.lora_dropout, "lora_dropout")
    if older.use_rslora:
        out.put("adapter.rslora", not faithful, "use_rslora")
        out.notes.append(
            "use_rslora: was read there and never used; it is " + ("off too." if faithful else "used here.")
        )
    if older.lora_bias != "none":
        out.notes.append(f"lora_bias: {older.lora_bias} was read there and never used; biases stay frozen here too.")


def _reach(reached: list[str], model: str) -> str:
    if reached != ["q_proj", "k_proj", "v_proj"]:
        return ", ".join(reached) or "no layer"
    size = next((size for size in _ATTENTION_LAYERS if model.endswith(f"LFM2-VL-{size}")), None)
    where = "the attention layers of the decoder and the vision tower"
    if size is not None:
        where = "the {} attention layers of the decoder and the {} of the vision tower".format(*_ATTENTION_LAYERS[size])
    return f"q_proj, k_proj, v_proj of {where}"


def _train(older: OlderFineTuning, faithful: bool, out: Translated) -> None:
    out.put("train.learning_rate", older.learning_rate, "learning_rate")
    out.put("train.epochs", older.num_train_epochs, "num_train_epochs")
    out.put("train.warmup_ratio", older.warmup_ratio, "warmup_ratio")
    out.put("train.schedule", "linear", None)
    out.put("train.weight_decay", older.weight_decay, "weight_decay")
    out.put("train.eval_every", older.eval_steps, "eval_steps")
    out.put("train.save_every", older.eval_steps, "eval_steps")
    batch, accumulated = older.batch_size, older.gradient_accumulation_steps
    if batch is not None and not faithful and accumulated > 1 and batch * accumulated <= _MICRO_BATCH:
        out.notes.append(
            f"batch_size {batch} × gradient_accumulation_steps {accumulated} is run as one micro-batch of "
            f"{batch * accumulated}: the same gradient, and the prompt is computed once in it, not once an image."
        )
        batch, accumulated = batch * accumulated, 1
    out.put("train.batch_size", batch, "batch_size")
    out.put("train.gradient_accumulation", accumulated, "gradient_accumulation_steps")
    if older.optim != "adamw_torch":
        out.notes.append(f"optim: {older.optim} is AdamW with a float32 state here.")
    if faithful:
        out.put("train.loss", "all", None)
        out.put("train.augment", "none", None)
        out.notes.append("loss: on the whole prompt too, as there (train.loss: all).")
    else:
        out.notes.append("loss: on the answer only; there it was on the prompt and the class list too.")
    out.notes.append(
        "checkpoints: the best on validation accuracy and the newest two stay; there all did, and the lowest loss was "
        "best. --set train.keep_checkpoints=100 keeps them for `vlmtune checkpoints`."
    )


def _tracking(older: OlderFineTuning, out: Translated) -> None:
    if not older.use_wandb:
        return
    out.put("tracking.to", ["wandb"], "use_wandb")
    out.put("tracking.project", older.wandb_project_name, "wandb_project_name")
    out.put("tracking.entity", older.wandb_entity, "wandb_entity")
    if "use_wandb" not in older.model_fields_set:
        out.notes.append(
            "use_wandb: is left out, which means true: figures go to Weights & Biases. --set use_wandb=false"
        )


def _evaluation(older: OlderEvaluation, faithful: bool, out: Translated) -> None:
    assert older.model is not None
    base, checkpoint = _base_and_checkpoint(older, older.model, out)
    out.put("model.base", base, "base_model" if older.base_model is not None and checkpoint else "model")
    out.put("evaluate.checkpoint", checkpoint or "base", "model")
    out.put("data.source", older.dataset, "dataset")
    out.put("data.image_column", older.image_column, "image_column")
    out.put("data.label_column", older.label_column, "label_column")
    out.put("data.test_split", older.split, "split")
    _task(older, "label_column", faithful, out)
    if older.split.lower().startswith("train"):
        out.notes.append(f"split: {older.split} holds images that a fine-tuned model may have learned from.")
    if older.n_samples is not None and faithful:
        out.put("evaluate.limit", older.n_samples, "n_samples")
    elif older.n_samples is not None:
        half = 100 * 1.96 * math.sqrt(0.25 / older.n_samples)
        out.notes.append(
            f"n_samples: {older.n_samples} leaves an accuracy uncertain by up to ±{half:.0f} points, so the whole "
            f"split is measured. --limit {older.n_samples} (or --faithful) measures on so many."
        )
    if "structured_generation" in older.model_fields_set:
        out.notes.append(
            f"structured_generation: {str(older.structured_generation).lower()} is without effect: labels are scored, "
            "so every answer is one of them and none leaves the denominator."
        )


def _base_and_checkpoint(older: OlderEvaluation, model: str, out: Translated) -> tuple[str, str | None]:
    """The base model, and the checkpoint if `model` is a path to one."""
    is_path = model.startswith(("/", "./", "../", "~")) or Path(model).expanduser().is_dir()
    if not is_path:
        if older.base_model is None or older.base_model == model:
            return model, None
        return older.base_model, older.model  # an adapter on the hub
    folder = Path(model).expanduser()
    if older.base_model is not None:
        return older.base_model, older.model
    if (folder / "adapter_config.json").is_file():
        try:
            said = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        except UserError:
            said = None
        if isinstance(said, str) and said:
            return said, older.model
    if (folder / "config.json").is_file():
        return model, None  # a whole model
    named = _RUN_NAME.match(model.removeprefix(_VOLUME))
    if named is not None:
        out.notes.append(f"base_model: is left out; by the checkpoint's name it is LiquidAI/{named[1]}.")
        return f"LiquidAI/{named[1]}", older.model
    return model, older.model  # neither exists; `load` reports it at this line


def _task(older: OlderFile, label_key: str, faithful: bool, out: Translated) -> None:
    """Prompts and labels: those of the mapping, else the column's text or class names."""
    mapping = older.label_mapping
    names = None if mapping is None else list(dict.fromkeys(mapping.values()))
    prompts = {"system_prompt": older.system_prompt, "user_prompt": older.user_prompt}
    if any(text is not None for text in prompts.values()):
        prompts = {key: text or "" for key, text in prompts.items()}
    matches = {key: find_list(text, names) for key, text in prompts.items() if text and not faithful}
    lists = {key: entry for key, entry in matches.items() if entry is not None}
    if mapping is not None:
        forms = {label: _forms(name, lists) for label, name in mapping.items()}
        out.put("task.labels", list(mapping), "label_mapping")
        out.put("task.label_names", forms, "label_mapping")
    elif label_key in older.model_fields_set:
        column = getattr(older, label_key)
        out.notes.append(f"label_mapping: is not there, so labels are what the column '{column}' holds.")
    for key, text in prompts.items():
        out.put(f"task.{key}", lists[key].prompt if key in lists else text, key)
    for key, entry in lists.items():
        out.notes.append(_about_list(key, entry))


def _forms(name: str, lists: dict[str, FoundList]) -> str | list[str]:
    """The name used as the answer, and other spellings in a prompt, which count as the same label."""
    forms = dict.fromkeys([name, *(entry.spellings[name] for entry in lists.values() if name in entry.spellings)])
    return name if len(forms) == 1 else list(forms)


def _about_list(key: str, entry: FoundList) -> str:
    text = f"{key}: its list of {entry.num} classes became {{labels}}, which lists what can be answered."
    if entry.spellings:
        name, spelled = next(iter(entry.spellings.items()))
        others = f", and {len(entry.spellings) - 1} more" if len(entry.spellings) > 1 else ""
        text += f" It spelled '{name}' as '{spelled}'{others}: both spellings count as the answer."
    if entry.missing:
        text += f" It lacked {', '.join(entry.missing[:5])}{' …' if len(entry.missing) > 5 else ''}."
    if entry.unknown:
        text += f" It named {', '.join(entry.unknown[:5])}{' …' if len(entry.unknown) > 5 else ''}, which is no label."
    return text
