"""`vlmtune estimate`: parameters, memory, operations, time and money of an experiment, without loading weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.console import print_json, print_table
from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment
from vlmtune.errors import UserError

if TYPE_CHECKING:
    from vlmtune.estimate.estimate import Estimate


def estimate(
    config: ConfigArgument,
    samples: Annotated[int | None, typer.Option(min=1, help="Training examples, if the data are not at hand.")] = None,
    image_size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT, if the data are not at hand.")] = None,
    measure: Annotated[bool, typer.Option(help="Step a slice of the model here for a moment.")] = True,
    set_: SetOption = None,
    faithful: FaithfulOption = False,
    json_: JsonOption = False,
) -> None:
    """Estimate a run: what learns, memory at each micro-batch, time and price on this machine and on named GPUs."""
    from vlmtune.estimate.estimate import estimate as run
    from vlmtune.estimate.sample_cost import estimate_inputs

    inputs = estimate_inputs(open_experiment(config, set_, faithful=faithful), samples, _size(image_size))
    estimated = run(inputs.experiment, inputs.config, inputs.shape, inputs.num_samples, measure=measure)
    if json_:
        print_json(estimated.to_dict())
    else:
        _print(estimated)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--image-size {text}: expected WIDTHxHEIGHT in pixels, such as 640x480.")
    return int(width), int(height)


def _print(estimated: Estimate) -> None:
    rows = [
        [part.name, f"{part.total:,}", f"{part.trainable:,}", f"{100 * part.trainable / part.total:.2f} %"]
        for part in estimated.parts
    ]
    share = f"{100 * estimated.num_trainable / estimated.num_total:.2f} %"
    rows.append(["together", f"{estimated.num_total:,}", f"{estimated.num_trainable:,}", share])
    print_table([estimated.base, "parameters", "learn", "share"], rows)
    print(
        f"\n{estimated.num_samples:,} samples, {estimated.num_steps:,} steps of {estimated.samples_per_step}; "
        f"{estimated.flops_per_sample / 1e12:.3g} TFLOP a sample\n"
    )
    print_table(["micro-batch", "GiB at the peak"], [[str(b), f"{gib:.1f}"] for b, gib in estimated.memory_gib.items()])
    print()
    machines = [
        [
            machine.name,
            "—" if machine.micro_batch is None else str(machine.micro_batch),
            "—" if machine.memory_gib is None else f"{machine.memory_gib:.1f}",
            "—" if machine.hours is None else _time(machine.hours),
            "" if machine.dollars is None else f"${machine.dollars:.2f}",
            machine.note,
        ]
        for machine in estimated.machines
    ]
    print_table(["machine", "micro-batch", "GiB", "training", "price", ""], machines)
    print("\nAssumed:")
    for assumption in estimated.assumptions:
        print(f"- {assumption}")


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"
