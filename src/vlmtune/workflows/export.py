"""A trained run as files to ship, judged by the export gate. Called by `vlmtune export` and `vlmtune.export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmtune.errors import UserError
from vlmtune.export.formats import choose_dtype, find_format
from vlmtune.export.gate import Bounds
from vlmtune.export.run import Export
from vlmtune.export.run import export as write_export
from vlmtune.export.trained_run import open_trained_run
from vlmtune.runs.layout import RunLayout
from vlmtune.workflows.progress import SILENT, Observer


def export_run(
    run: Path,
    format_name: str,
    *,
    output: Path | None = None,
    dtype: str | None = None,
    bounds: Bounds,
    num_images: int = 200,
    overrides: Sequence[str] = (),
    observer: Observer = SILENT,
) -> Export:
    """Write an export and have held-out images scored by it and by the trained model.

    Args:
        run: a run folder, or one of its checkpoints.
        format_name, dtype: see `export.formats`.
        output: default: RUN/export/FORMAT.
        bounds: what the gate accepts.
        num_images: held-out images that the gate asks about.
        overrides: KEY=VALUE for the run's configuration, such as another location of the data.

    A refused export is returned too: see `Verdict.is_accepted`. Raises UserError: see `export.run.export`.
    """
    format_ = find_format(format_name)
    chosen = choose_dtype(format_, dtype)
    trained = open_trained_run(run, num_images, overrides)
    suffix = "" if dtype is None else f"-{chosen}"
    target = output or RunLayout(trained.folder).export(f"{format_.name}{suffix}")
    with observer.progress(f"gate {format_.name}", len(trained.held_out), "images") as progress:
        return write_export(trained, format_, chosen, target, bounds, progress.advance)


def raise_if_refused(made: Export) -> None:
    """Raises UserError, which says by how much the gate's bounds are missed and what to do."""
    verdict = made.verdict
    if not verdict.is_accepted:
        raise UserError(
            f"The export gate refuses this export: {verdict.sentence()}; at least {100 * verdict.bounds.agreement:g} % "
            f"must agree, and no probability may differ by more than {verdict.bounds.difference:g}. The files are in "
            f"{made.folder} to look at. Choose a finer --dtype, or accept less with --agreement and --max-difference."
        )
