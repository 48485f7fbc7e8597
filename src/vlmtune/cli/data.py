"""`vlmtune data check CONFIG`: checks every image and label. `vlmtune data show CONFIG`: what training shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption, open_experiment

app = typer.Typer(no_args_is_help=True)


@app.callback()
def data() -> None:
    """Look at an experiment's images and labels."""


@app.command()
def check(config: ConfigArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Read every image and label: counts, sizes, unreadable files, duplicates within and across splits, imbalance.

    Exits 1, after the report, if an image cannot be read.
    """
    from vlmtune.cli.console import ProgressBar, print_json, print_table
    from vlmtune.data.check import check_data
    from vlmtune.data.check_report import tables
    from vlmtune.errors import DataError

    experiment = open_experiment(config, set_)
    report = check_data(
        experiment.data,
        experiment.task,
        experiment.seed,
        progress=lambda total: ProgressBar("Reading images", total, unit="images"),
    )
    if json_:
        print_json(report)
    else:
        for item in tables(report):
            if isinstance(item, str):
                print(item)
            else:
                print_table(item.columns, item.rows, title=item.title)
    if report.unreadable:
        first = report.unreadable[0]
        raise DataError(
            f"{len(report.unreadable)} of {report.num_images} images cannot be read, the first is {first.file} "
            f"({first.reason}). Replace or remove these files."
        )


@app.command()
def show(
    config: ConfigArgument,
    output: Annotated[Path | None, typer.Option(help="The PNG file. Default: NAME-shown.png.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many.")] = 24,
    epoch: Annotated[int, typer.Option(min=0, help="Of which pass: random changes differ from pass to pass.")] = 0,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Draw what the model is shown in training: images after every random change and the processor, with answers.

    Mixed images say with which other one, the weights of both answers, and λ.
    """
    from vlmtune.cli.console import print_json, print_table, stderr_console
    from vlmtune.data.check_report import MAX_ROWS, first_rows
    from vlmtune.errors import DataError
    from vlmtune.models.registry import open_processor
    from vlmtune.runs.prepare import image_overrides, load_data
    from vlmtune.train.contact_sheet import draw_sheet, sheet_entries
    from vlmtune.train.items import ItemReader

    experiment, splits = load_data(open_experiment(config, set_))
    model = experiment.model
    processor = open_processor(model.base, model.revision, image_overrides(model))
    reader = ItemReader(experiment, processor, splits.train, splits.labels)
    drawn = sheet_entries(reader, images, epoch)
    if not drawn:
        raise DataError("There is no training image to show that can be read. See `vlmtune data check`.")
    title = f"{experiment.name}: {len(drawn)} images of epoch {epoch}, seed {experiment.seed}"
    file = output or Path(f"{experiment.name}-shown.png")
    try:
        draw_sheet(drawn, f"{title}; augment: {reader.augmentation.name}").save(file, "PNG")
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror or error}). Choose another --output.") from error
    for name, reason in reader.unreadable.items():
        stderr_console().print(f"left out, not readable: {name} ({reason})", markup=False)
    if json_:
        print_json({"file": file, "shown": [entry for entry, _ in drawn], "unreadable": reader.unreadable})
        return
    rows = [
        (
            entry.id,
            ", ".join(f"{text} {weight:.2f}" for text, weight in entry.answers.items()),
            "" if entry.mixed_with is None else f"{entry.mixed_with} (λ {entry.share:.2f})",
        )
        for entry, _ in drawn[:MAX_ROWS]
    ]
    print_table(["image", "answers and weights", "mixed with"], rows, title=first_rows(title, len(drawn)))
    print(f"written to {file}")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="stanford-cars.")],
    output: Annotated[Path | None, typer.Option(help="The folder to write. Default: data/RECIPE.")] = None,
    source: Annotated[str | None, typer.Option(help="A hub id or local copy. Default: the recipe's own.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of the source on the hub.")] = None,
    jpeg_only: Annotated[
        bool, typer.Option("--jpeg-only", help="Leave images of other formats out, as the older repo did.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Make a data set ready that is not so on the hub.

    stanford-cars: columns make ("Aston Martin"), model, year and car from the 196 full names of the hub's copy.
    """
    from vlmtune.cli.console import print_json, print_table, stderr_console
    from vlmtune.data import stanford_cars
    from vlmtune.data.check_report import MAX_ROWS, counts_text
    from vlmtune.errors import UserError, unknown_name

    if name != "stanford-cars":
        raise UserError(unknown_name("recipe", name, ["stanford-cars"]))
    console = stderr_console()
    prepared = stanford_cars.prepare(
        output or Path("data") / name,
        source or stanford_cars.HUB_SOURCE,
        revision,
        jpeg_only=jpeg_only,
        on_split=lambda split, total: console.print(f"{split}: {total:,} images", markup=False),
    )
    if json_:
        print_json(prepared)
        return
    rows = [
        (split, result.images, counts_text(result.formats), result.left_out, len(result.unreadable))
        for split, result in prepared.splits.items()
    ]
    title = f"{prepared.folder}: {len(prepared.makes)} makes, {len(prepared.classes)} cars"
    print_table(["split", "written", "formats found", "left out by --jpeg-only", "unreadable"], rows, title=title)
    for row in [row for result in prepared.splits.values() for row in result.unreadable][:MAX_ROWS]:
        console.print(f"left out, not readable: {row}", markup=False)
