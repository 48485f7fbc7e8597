"""`vlmtune report`: a run folder as one page to show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import print_json
from vlmtune.cli.options import JsonOption


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    baseline: Annotated[
        Path | None, typer.Option(help="An evaluation elsewhere to compare with, of the same images.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Write report.html, report.md, report.json and charts/ into the run folder; loads no model.

    To put several runs on one page: vlmtune compare RUN... --output FOLDER
    """
    from vlmtune.report.render import render

    page = render(run, baseline)
    if json_:
        print_json({"report": page, "markdown": page.with_suffix(".md"), "json": page.with_suffix(".json")})
        return
    print(page)
