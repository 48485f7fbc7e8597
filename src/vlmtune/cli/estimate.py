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
    from vlmtune.estimate.sample_cost import describe

    described = describe(open_experiment(config, set_, faithful=faithful), samples, _size(image_size))
    found = run(described.experiment, described.config, described.shape, described.num_samples, measure=measure)
    if json_:
        print_json(found.to_dict())
    else:
        _print(found)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise UserError(f"--image-size {text}: expected WIDTHxHEIGHT in pixels, such as 640x480.")
    return int(width), int(height)


def _print(found: Estimate) -> None:
    rows = [
        [part.name, f"{part.total:,}", f"{part.trainable:,}", f"{100 * part.trainable / part.total:.2f} %"]
        for part in found.parts
    ]
    share = f"{100 * found.num_trainable / found.num_total:.2f} %"
    rows.append(["together", f"{found.num_total:,}", f"{found.num_trainable:,}", share])
    print_table([found.base, "parameters", "learn", "share"], rows)
    print(
        f"\n{found.num_samples:,} samples, {found.num_steps:,} steps of {found.samples_per_step}; "
        f"{found.flops_per_sample / 1e12:.3g} TFLOP a sample\n"
    )
    print_table(["micro-batch", "GiB at the peak"], [[str(b), f"{gib:.1f}"] for b, gib in found.memory_gib.items()])
    print()
    places = [
        [
            place.name,
            "—" if place.micro_batch is None else str(place.micro_batch),
            "—" if place.memory_gib is None else f"{place.memory_gib:.1f}",
            "—" if place.hours is None else _time(place.hours),
            "" if place.dollars is None else f"${place.dollars:.2f}",
            place.note,
        ]
        for place in found.places
    ]
    print_table(["machine", "micro-batch", "GiB", "training", "price", ""], places)
    print("\nAssumed:")
    for assumption in found.assumptions:
        print(f"- {assumption}")


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours / 24:.0f} days"
