"""What an experiment would cost, before any weights are loaded: parameters, memory, operations, time and money.

In: an experiment and the shape of one sample. Out: an `Estimate`. Sizes come from config.json alone; a slice
of the model (a few layers at real width, random weights) is stepped briefly to measure this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from vlmtune.config.defaults import num_steps
from vlmtune.config.schema import Experiment
from vlmtune.estimate.costs import Costs, Part, SampleShape, adapted
from vlmtune.estimate.throughput import measure_throughput

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
UTILIZATION = 0.4
"""Share of a GPU's peak that a step is assumed to reach. `bench/train_step.py --device cuda` measures it."""
_SHORTEST_STEP_S = 0.05  # minimum for a micro-batch on a GPU: launching the kernels


@dataclass(frozen=True)
class Gpu:
    """A card that can be rented.

    Attributes:
        tflops: peak of dense matrix products in the type we train in (bfloat16, float32 where there is none).
        memory_gib: of the card. dollars_per_hour: about what one costs to rent by the second (2025; changes).
    """

    name: str
    tflops: float
    memory_gib: float
    dollars_per_hour: float
    has_bfloat16: bool = True


GPUS = (
    Gpu("T4", 8.1, 15, 0.59, has_bfloat16=False),
    Gpu("L4", 121, 22, 0.80),
    Gpu("A10G", 70, 22, 1.10),
    Gpu("RTX 4090", 165, 24, 0.60),
    Gpu("L40S", 362, 44, 1.95),
    Gpu("A100 40GB", 312, 40, 2.10),
    Gpu("A100 80GB", 312, 80, 2.50),
    Gpu("H100", 989, 80, 3.95),
    Gpu("H200", 989, 141, 4.54),
)


@dataclass(frozen=True)
class MachineEstimate:
    """Time and cost of the whole training on one kind of machine."""

    name: str
    micro_batch: int | None
    """The largest that fits, up to `train.batch_size`; None if not even one sample does."""
    memory_gib: float | None
    hours: float | None
    dollars: float | None
    note: str = ""


@dataclass(frozen=True)
class Estimate:
    """What an experiment would cost.

    Attributes:
        parts: parameters, by tower.
        memory_gib: micro-batch -> peak.
        flops_per_sample: for training, at the micro-batch of the experiment.
    """

    base: str
    parts: list[Part]
    num_samples: int
    num_steps: int
    samples_per_step: int
    shape: SampleShape
    memory_gib: dict[int, float]
    flops_per_sample: float
    machines: list[MachineEstimate]
    assumptions: list[str] = field(default_factory=list)

    @property
    def num_total(self) -> int:
        return sum(part.total for part in self.parts)

    @property
    def num_trainable(self) -> int:
        return sum(part.trainable for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"total_parameters": self.num_total, "trainable_parameters": self.num_trainable}


def estimate(
    experiment: Experiment, config: Mapping[str, Any], shape: SampleShape, num_samples: int, *, measure: bool = True
) -> Estimate:
    """Estimate a run.

    Args:
        experiment: resolved.
        config: config.json of the base.
        shape: of one sample.
        num_samples: training examples of an epoch.
        measure: time a slice of the model here for a few seconds; otherwise this machine is left out.

    Raises as `apply_adapter` does for an adapter that reaches nothing.
    """
    train = experiment.train
    assert train.batch_size is not None
    model, plan = adapted(dict(config), experiment)
    costs = Costs(model, plan, shape, checkpointed=train.checkpoint_activations == "on")
    steps = num_steps(experiment, num_samples)
    per_step = train.batch_size * train.gradient_accumulation
    seen = steps * per_step
    memory = {batch: costs.memory(batch) / 2**30 for batch in sorted({*MICRO_BATCHES, train.batch_size})}
    machines = []
    if measure:
        rate, device = measure_throughput(experiment, config, shape)
        hours = costs.flops(train.batch_size) * seen / rate / 3600
        note = f"{rate / 1e9:,.0f} GFLOP/s measured on a slice of the model"
        machines.append(
            MachineEstimate(f"this machine ({device})", train.batch_size, memory[train.batch_size], hours, None, note)
        )
    for gpu in GPUS:
        needed = {b: costs.memory(b, is_float32=not gpu.has_bfloat16) / 2**30 for b in memory if b <= train.batch_size}
        note = "" if gpu.has_bfloat16 else "has no bfloat16: float32"
        fitting = [batch for batch, need in needed.items() if need < gpu.memory_gib]
        if not fitting:
            note = f"needs {needed[1]:.0f} GiB" + (f" ({note})" if note else "")
            machines.append(MachineEstimate(gpu.name, None, None, None, None, note))
            continue
        batch = max(fitting)
        working = costs.flops(batch) * seen / (UTILIZATION * gpu.tflops * 1e12)
        hours = max(working, seen / batch * _SHORTEST_STEP_S) / 3600
        machines.append(MachineEstimate(gpu.name, batch, needed[batch], hours, hours * gpu.dollars_per_hour, note))
    return Estimate(
        base=experiment.model.base,
        parts=costs.parts,
        num_samples=num_samples,
        num_steps=steps,
        samples_per_step=per_step,
        shape=shape,
        memory_gib=memory,
        flops_per_sample=costs.flops(train.batch_size),
        machines=machines,
        assumptions=[
            shape.known_from,
            f"GPUs reach {100 * UTILIZATION:.0f} % of their peak, take {1000 * _SHORTEST_STEP_S:.0f} ms a micro-batch "
            "at least, and cost what they did in 2025; validation, reading and starting are not counted.",
            "Memory: weights, AdamW in float32 for what learns, the decoder's activations, logits of the answers; "
            "give or take a quarter.",
            "The shared prompt runs once a micro-batch; the vision tower runs in every epoch (train.feature_cache "
            "may save that).",
        ],
    )
