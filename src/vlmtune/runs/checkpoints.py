"""Checkpoints of a run: adapter, optimizer, random state and position, written whole or not at all.

`step-000100/` holds the adapter in PEFT's layout (`adapters.files`) beside `optimizer.safetensors` and `state.json`.
Nothing is pickled. A checkpoint is written under a temporary name and renamed; `best` is a link beside `checkpoints/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlmtune.adapters.peft_files import WEIGHTS_FILE, load_adapter, save_adapter
from vlmtune.adapters.plan import AdapterPlan
from vlmtune.config.schema import Experiment
from vlmtune.errors import RunFolderError
from vlmtune.files import new_file, new_folder, read_json, write_json
from vlmtune.runs.layout import RunLayout
from vlmtune.runs.record import Progress

_STATE_FILE = "state.json"
_OPTIMIZER_FILE = "optimizer.safetensors"


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
    target = RunLayout(run).checkpoint(progress.step)
    with new_folder(target, replace=True) as temporary:  # the same step is reached again after a resume
        save_adapter(temporary, model, plan, base)
        save_file(tensors, temporary / _OPTIMIZER_FILE)
        write_json(temporary / _STATE_FILE, {"progress": asdict(progress), "optimizer_steps": steps})
    return target


def load_checkpoint(
    folder: Path, model: nn.Module, plan: AdapterPlan, optimizer: torch.optim.Optimizer, names: list[str]
) -> Progress:
    """Restore adapter, optimizer and random state. Raises RunFolderError for an incomplete checkpoint."""
    for name in (_STATE_FILE, _OPTIMIZER_FILE):
        if not (folder / name).is_file():
            raise RunFolderError(f"{folder}: '{name}' is missing, so this checkpoint cannot be resumed from.")
    load_adapter(folder, model, plan)
    record = read_json(folder / _STATE_FILE)
    tensors = load_file(folder / _OPTIMIZER_FILE)
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
    return Progress.from_json(record["progress"])


def mark_best(run: Path, checkpoint: Path) -> None:
    """Point `best` at a checkpoint, atomically."""
    with new_file(RunLayout(run).best) as link:
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.relative_to(run))


def prune(run: Path, keep: int, best_steps: Sequence[int] = ()) -> None:
    """Remove all checkpoints but the newest ``keep``, those of ``best_steps`` and the one that `best` points to."""
    layout = RunLayout(run)
    staying = {path.resolve() for path in (*map(layout.checkpoint, best_steps), layout.best)}
    for path in layout.list_checkpoints()[:-keep]:
        if path.resolve() not in staying:
            shutil.rmtree(path)


def average_checkpoints(run: Path, checkpoints: Sequence[Path]) -> Path:
    """Write `checkpoints/average-of-K`: the mean of the weights of K checkpoints (arXiv 1803.05407).

    LoRA's two factors are averaged each by itself, as one averages any parameters: near the end of a run they hardly
    move apart, and the result stays a LoRA of the same rank. A folder like the others, without what resuming needs.
    """
    assert checkpoints
    total: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        for name, tensor in load_file(checkpoint / WEIGHTS_FILE).items():
            total[name] = total[name] + tensor.double() if name in total else tensor.double()
    last = load_file(checkpoints[-1] / WEIGHTS_FILE)
    mean = {name: (total[name] / len(checkpoints)).to(tensor.dtype) for name, tensor in last.items()}
    target = RunLayout(run).average(len(checkpoints))
    with new_folder(target, replace=True) as temporary:
        for path in checkpoints[-1].iterdir():
            if path.name not in (_OPTIMIZER_FILE, _STATE_FILE, WEIGHTS_FILE):
                shutil.copy2(path, temporary)
        save_file(mean, temporary / WEIGHTS_FILE, {"format": "pt"})
        write_json(temporary / "average.json", {"average_of": [checkpoint.name for checkpoint in checkpoints]})
    return target


class RunCheckpoints:
    """The checkpoints of a run in training: resumed from, written, pruned, averaged.

    Args:
        run: the run's folder.
        experiment: says how many to keep.
        model, plan, optimizer: what a checkpoint holds.
        names: the trainable parameters' names, in the optimizer's order.
    """

    def __init__(
        self,
        run: Path,
        experiment: Experiment,
        model: nn.Module,
        plan: AdapterPlan,
        optimizer: torch.optim.Optimizer,
        names: list[str],
    ) -> None:
        self.run, self.experiment = run, experiment
        self.model, self.plan, self.optimizer, self.names = model, plan, optimizer, names

    def resume(self) -> Progress:
        """Restore the newest checkpoint. A run that was cut off before its first one begins again."""
        checkpoints = RunLayout(self.run).list_checkpoints()
        if not checkpoints:
            return Progress()
        return load_checkpoint(checkpoints[-1], self.model, self.plan, self.optimizer, self.names)

    def save(self, progress: Progress, *, is_validated: bool | None) -> None:
        """Write a checkpoint of the current step, link it if it is the best, and remove those not kept.

        Args:
            progress: with the step's accuracy as the last of its history, if it was validated.
            is_validated: whether it was; None for a run that never validates, whose last step counts as best.
        """
        train = self.experiment.train
        is_best = is_validated is None or (is_validated and progress.best_steps(1) == [progress.step])
        if is_best and is_validated:
            progress.best_step, progress.best_accuracy = progress.history[-1]
        checkpoint = save_checkpoint(
            self.run,
            progress,
            self.model,
            self.plan,
            self.optimizer,
            self.names,
            self.experiment.model.base,
        )
        if is_best:
            mark_best(self.run, checkpoint)
        prune(self.run, max(train.keep_checkpoints, train.average_last), progress.best_steps(train.keep_best))

    def average(self) -> Path | None:
        """Write the mean of the last checkpoints; None if the experiment asks for none, or there is only one."""
        num = self.experiment.train.average_last
        last = RunLayout(self.run).list_checkpoints()[-num:]
        return average_checkpoints(self.run, last) if num > 1 and len(last) > 1 else None

    @contextmanager
    def loaded(self, checkpoint: Path) -> Iterator[None]:
        """The model with a checkpoint's weights; afterwards it has those of the newest again."""
        load_adapter(checkpoint, self.model, self.plan)
        yield
        load_adapter(RunLayout(self.run).list_checkpoints()[-1], self.model, self.plan)
