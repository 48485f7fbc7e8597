"""The optimizer of a run: AdamW over the plan's trainable parameters, each role at its rate, on the run's schedule."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from vlmtune.adapters.plan import AdapterPlan
from vlmtune.config.schema import TrainSection


class ScheduledOptimizer:
    """AdamW and its schedule.

    Args:
        model: adapted by ``plan``.
        train: rates, schedule, decay, clipping; resolved.
        num_steps: of the whole run.

    Attributes:
        adamw: the optimizer.
        names: the names of its parameters, in its order (which its state is saved under).
    """

    def __init__(self, model: nn.Module, plan: AdapterPlan, train: TrainSection, num_steps: int) -> None:
        assert train.learning_rate is not None
        self.train, self.num_steps = train, num_steps
        groups = plan.parameter_groups(train.learning_rate)
        self.adamw = torch.optim.AdamW(groups, betas=train.betas, weight_decay=train.weight_decay)
        plan.attach(self.adamw)
        for group in self.adamw.param_groups:
            group["initial_lr"] = group["lr"]
        name_of = {parameter: name for name, parameter in plan.parameters.items()}
        self._parameters = [p for group in self.adamw.param_groups for p in group["params"]]
        self.names = [name_of[p] for p in self._parameters]

    @property
    def learning_rate(self) -> float:
        """The first group's rate, at the latest step."""
        return float(self.adamw.param_groups[0]["lr"])

    def step(self, step: int, *, learn: bool = True) -> float:
        """Take optimizer step number ``step`` (from 0) along the accumulated gradients, and clear them.

        Args:
            learn: False leaves the weights as they are (a trial).

        Returns:
            The gradients' norm before clipping.
        """
        factor = learning_rate_factor(step, self.num_steps, self.train.warmup_ratio, self.train.schedule)
        for group in self.adamw.param_groups:
            group["lr"] = group["initial_lr"] * factor
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self.train.max_grad_norm))
        if learn:
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm


def learning_rate_factor(
    step: int, num_steps: int, warmup_ratio: float, schedule: Literal["cosine", "linear", "constant"]
) -> float:
    """Factor on the learning rate of optimizer step ``step`` (from 0): linear warm-up, then the schedule to zero."""
    warmup = math.ceil(warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
