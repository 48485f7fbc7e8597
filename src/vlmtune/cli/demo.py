"""`vlmtune demo`: baseline, fine-tuning on 10 % and on 100 %, comparison and report, on built-in model and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_json, print_table
from vlmtune.cli.options import JsonOption


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of splits, order and LoRA's start.")] = 0,
    json_: JsonOption = False,
) -> None:
    """The whole story in minutes, on a CPU and without a network.

    The built-in model, which has never seen a handwritten digit, reads scikit-learn's digits; then it is fine-tuned
    with LoRA on 10 % and on 100 % of the training images, and all three are measured on the same held-out test.
    """
    from vlmtune.workflows.demo import run_demo

    result = run_demo(output, seed, ConsoleObserver())
    if json_:
        print_json({**result.accuracies, "report": str(result.report), "seconds": result.seconds})
        return
    rows = [
        [name.replace("_", " ") + (" %" if "_" in name else ""), f"{100 * accuracy:.1f} %"]
        for name, accuracy in result.accuracies.items()
    ]
    print_table(["model", f"accuracy on {result.num_test} held-out digits"], rows)
    print(f"{result.seconds / 60:.1f} minutes. Report: {result.report}")
