"""`vlmtune export`: a trained run as PEFT adapter, merged folder or GGUF files, judged before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_json, print_table
from vlmtune.cli.options import JsonOption, SetOption


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a checkpoint's folder in it.")],
    format_: Annotated[str, typer.Option("--format", metavar="peft|merged|gguf", help="What to write.")],
    output: Annotated[Path | None, typer.Option(help="Folder to make. Default: RUN/export/FORMAT.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="merged: float32 or bfloat16 (default: as trained). gguf: F16 (default), F32, BF16, Q8_0, Q4_0."
        ),
    ] = None,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share of held-out images on which the export must agree.")
    ] = 0.995,
    max_difference: Annotated[
        float, typer.Option(min=0, max=1, help="Largest difference in probability that any image may show.")
    ] = 0.3,
    images: Annotated[int, typer.Option(min=1, help="Held-out images that the gate asks about.")] = 200,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Export a run; refuse it (exit 1) if it answers otherwise than the trained model.

    After writing, held-out images are scored by the exported files in their own runtime (transformers, PEFT,
    llama.cpp; by vlmtune itself where that is not installed, and the card says so) and by the trained model.
    """
    from vlmtune.export.gate import Bounds
    from vlmtune.workflows.export import export_run, raise_if_refused

    made = export_run(
        run,
        format_,
        output=output,
        dtype=dtype,
        bounds=Bounds(agreement, max_difference),
        num_images=images,
        overrides=set_ or (),
        observer=ConsoleObserver(),
    )
    verdict = made.verdict
    if json_:
        print_json({"folder": str(made.folder), "bytes": made.num_bytes, "notes": made.sentences, **verdict.as_dict()})
    else:
        rows: list[list[object]] = [
            ["opened by", verdict.runtime],
            [
                f"same {verdict.judged}",
                f"{verdict.num_agree} of {verdict.num_images} ({100 * verdict.agreement:.2f} %)",
            ],
            ["largest probability difference", f"{verdict.max_probability_difference:.2g}"],
        ]
        if verdict.num_unreadable:
            rows.append(["images that cannot be opened", verdict.num_unreadable])
        rows += [["note", note] for note in (*verdict.notes, *made.sentences)]
        rows.append(["size", f"{made.num_bytes / 1e6:,.1f} MB"])
        print_table(["", f"export {format_}"], rows)
        if verdict.is_accepted:
            print(f"written to {made.folder}")
    raise_if_refused(made)
