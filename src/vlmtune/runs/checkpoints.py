"""Checkpoints of a run: adapter, optimizer, random state and position, written whole or not at all.

`step-000100/` holds the adapter in PEFT's layout (`adapters.files`) beside `optimizer.safetensors` and `state.json`.
Nothing is pickled. A checkpoint is written under a temporary name and renamed; `best` is a link beside `checkpoints/`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlmtune.adapters.peft_files import WEIGHTS_FILE, load_adapter, save_adapter
from vlmtune.adapters.plan import AdapterPlan
from vlmtune.errors import RunFolderError

_FOLDER = "checkpoints"
_PREFIX = "step-"
_AVERAGE_PREFIX = "average-of-"


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps taken.
        micro_batch: micro-batches consumed.
        seconds: time spent training so far, over all sessions.
        best_accuracy: best validation accuracy of a step, and that step.
        history: (step, accuracy) of every validation.
        is_stopped: ended before its last step, for want of a gain.
        average_accuracy: of the averaged checkpoint, where there is one and it was validated.
    """

    step: int = 0
    micro_batch: int = 0
    seconds: float = 0.0
    best_accuracy: float = -1.0
    best_step: int = 0
    history: list[tuple[int, float]] = field(default_factory=list)
    is_stopped: bool = False
    average_accuracy: float | None = None

    def num_without_gain(self, min_gain: float) -> int:
        """Validations since the last that exceeded the best one before it by more than ``min_gain``."""
        best, since = -1.0, 0
        for _, accuracy in self.history:
            if accuracy > best + min_gain:
                best, since = accuracy, 0
            else:
                since += 1
        return since

    def best_steps(self, num: int) -> list[int]:
        """The steps of the best validations, best first; of equal ones the later, which has learned from more."""
        ranked = sorted(self.history, key=lambda item: (item[1], item[0]), reverse=True)
        return [step for step, _ in ranked[:num]]


def checkpoint_path(run: Path, step: int) -> Path:
    return run / _FOLDER / f"{_PREFIX}{step:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = (run / _FOLDER).glob(f"{_PREFIX}*") if (run / _FOLDER).is_dir() else []
    return sorted(path for path in found if path.name.removeprefix(_PREFIX).isdigit())


def list_averages(run: Path) -> list[Path]:
    """What `average_checkpoints` made of a run, fewest checkpoints first."""
    by_num = {path.name.removeprefix(_AVERAGE_PREFIX): path for path in (run / _FOLDER).glob(f"{_AVERAGE_PREFIX}*")}
    return [by_num[num] for num in sorted(filter(str.isdigit, by_num), key=int)]


def save_checkpoint(
    run: Path,
    progress: Progress,
    model: nn.Module,
    plan: AdapterPlan,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    base: str,
) -> Path:
    """Write a checkpoint of the current step; returns its folder.

    Args:
        names: the trainable parameters' names, in the optimizer's order.
        base: the base model's source, noted in the adapter's files.
    """
    target = checkpoint_path(run, progress.step)
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_adapter(temporary, model, plan, base)
    tensors: dict[str, torch.Tensor] = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()  # dropout draws on the device
    steps: dict[str, float] = {}
    states = list(optimizer.state_dict()["state"].items())
    for index, values in states:
        for key, value in values.items():
            if key == "step":
                steps[names[index]] = float(value)
            else:
                tensors[f"{key}.{names[index]}"] = value.contiguous().cpu()
    save_file(tensors, temporary / "optimizer.safetensors")
    record = {"progress": asdict(progress), "optimizer_steps": steps}
    (temporary / "state.json").write_text(json.dumps(record, indent=1) + "\n")
    if target.exists():  # the same step, reached again after a resume
        shutil.rmtree(target)
    temporary.replace(target)
    return target


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, names: list[str]) -> Progress:
    """Restore adapter, optimizer and random state. Raises RunFolderError for an incomplete checkpoint."""
    for name in ("state.json", "optimizer.safetensors"):
        if not (folder / name).is_file():
            raise RunFolderError(f"{folder}: '{name}' is missing, so this checkpoint cannot be resumed from.")
    load_adapter(folder, model)
    record = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "optimizer.safetensors")
    state: dict[int, dict[str, Any]] = {}
    for index, name in enumerate(names):
        if name not in record["optimizer_steps"]:
            continue
        values: dict[str, Any] = {"step": torch.tensor(record["optimizer_steps"][name])}
        for key in ("exp_avg", "exp_avg_sq"):
            values[key] = tensors[f"{key}.{name}"]
        state[index] = values
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.torch"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    progress = Progress(**record["progress"])
    progress.history = [(int(step), float(accuracy)) for step, accuracy in progress.history]
    return progress


def mark_best(run: Path, checkpoint: Path) -> None:
    """Point `best` at a checkpoint, atomically."""
    link = run / ".best.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.relative_to(run))
    link.replace(run / "best")


def prune(run: Path, keep: int, best_steps: Sequence[int] = ()) -> None:
    """Remove all checkpoints but the newest ``keep``, those of ``best_steps`` and the one that `best` points to."""
    kept = {checkpoint_path(run, step).resolve() for step in best_steps}
    if (run / "best").exists():
        kept.add((run / "best").resolve())
    for path in list_checkpoints(run)[:-keep]:
        if path.resolve() not in kept:
            shutil.rmtree(path)


def average_checkpoints(run: Path, checkpoints: Sequence[Path]) -> Path:
    """Write `checkpoints/average-of-K`: the mean of the weights of K checkpoints (arXiv 1803.05407).

    LoRA's two factors are averaged each by itself, as one averages any parameters: near the end of a run they hardly
    move apart, and the result stays a LoRA of the same rank. A folder like the others, but for what resuming needs.
    """
    assert checkpoints
    target = run / _FOLDER / f"{_AVERAGE_PREFIX}{len(checkpoints)}"
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for path in checkpoints[-1].iterdir():
        if path.name not in ("optimizer.safetensors", "state.json", WEIGHTS_FILE):
            shutil.copy2(path, temporary)
    total: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        for name, tensor in load_file(checkpoint / WEIGHTS_FILE).items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    last = load_file(checkpoints[-1] / WEIGHTS_FILE)
    mean = {name: (total[name] / len(checkpoints)).to(tensor.dtype) for name, tensor in last.items()}
    save_file(mean, temporary / WEIGHTS_FILE, {"format": "pt"})
    record = {"average_of": [checkpoint.name for checkpoint in checkpoints]}
    (temporary / "average.json").write_text(json.dumps(record) + "\n")
    if target.exists():
        shutil.rmtree(target)
    temporary.replace(target)
    return target
