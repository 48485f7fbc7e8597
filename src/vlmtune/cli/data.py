"""`vlmtune data check CONFIG`: every image and label looked at. `vlmtune data show CONFIG`: what training shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption, open_experiment

if TYPE_CHECKING:
    from vlmtune.data.check import CheckReport, Copy

app = typer.Typer(no_args_is_help=True)

MOST_LABELS = 60
"""Level of the table of labels; with more, the most frequent and the rarest are shown."""
MOST_ROWS = 20
"""Level of the tables of unreadable images and duplicates; `--json` lists more."""


@app.callback()
def data() -> None:
    """Look at an experiment's images and labels."""


@app.command()
def check(config: ConfigArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Read every image and label: counts, sizes, unreadable files, duplicates within and across splits, imbalance.

    Exits 1, after the report, if an image cannot be read.
    """
    from vlmtune.cli.console import ProgressBar, print_json
    from vlmtune.data.check import check_data
    from vlmtune.errors import DataError

    experiment = open_experiment(config, set_)
    bar: list[ProgressBar] = []

    def start(total: int) -> None:
        bar.append(ProgressBar("Reading images", total, unit="images").__enter__())

    try:
        report = check_data(
            experiment.data,
            experiment.task,
            experiment.seed,
            on_total=start,
            on_advance=lambda num: bar[0].advance(num),
        )
    finally:
        if bar:
            bar[0].__exit__(None, None, None)
    if json_:
        print_json(report)
    else:
        _print_report(report)
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
    from vlmtune.errors import DataError
    from vlmtune.models.registry import open_processor
    from vlmtune.runs.prepare import image_overrides, load_data
    from vlmtune.train.contact_sheet import draw_sheet, exhibits
    from vlmtune.train.samples import SampleReader

    experiment, splits = load_data(open_experiment(config, set_))
    model = experiment.model
    processor = open_processor(model.base, model.revision, image_overrides(model))
    reader = SampleReader(experiment, processor, splits.train, splits.labels)
    shown = exhibits(reader, images, epoch)
    if not shown:
        raise DataError("There is no training image to show that can be read. See `vlmtune data check`.")
    title = f"{experiment.name}: {len(shown)} images of epoch {epoch}, seed {experiment.seed}"
    file = output or Path(f"{experiment.name}-shown.png")
    try:
        draw_sheet(shown, f"{title}; augment: {reader.augmentation.name}").save(file, "PNG")
    except OSError as error:
        raise DataError(f"{file}: cannot be written ({error.strerror or error}). Choose another --output.") from error
    for name, reason in reader.unreadable.items():
        stderr_console().print(f"left out, not readable: {name} ({reason})", markup=False)
    if json_:
        print_json({"file": file, "shown": [exhibit for exhibit, _ in shown], "unreadable": reader.unreadable})
        return
    rows = [
        (
            exhibit.id,
            ", ".join(f"{text} {weight:.2f}" for text, weight in exhibit.answers.items()),
            "" if exhibit.mixed_with is None else f"{exhibit.mixed_with} (λ {exhibit.share:.2f})",
        )
        for exhibit, _ in shown[:MOST_ROWS]
    ]
    print_table(["image", "answers and weights", "mixed with"], rows, title=_cut(title, len(shown)))
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
    from vlmtune.data.read import stanford_cars
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
        (split, found.images, _counts_text(found.formats), found.left_out, len(found.unreadable))
        for split, found in prepared.splits.items()
    ]
    title = f"{prepared.folder}: {len(prepared.makes)} makes, {len(prepared.classes)} cars"
    print_table(["split", "written", "formats found", "left out by --jpeg-only", "unreadable"], rows, title=title)
    for row in [row for found in prepared.splits.values() for row in found.unreadable][:MOST_ROWS]:
        console.print(f"left out, not readable: {row}", markup=False)


def _print_report(report: CheckReport) -> None:
    from vlmtune.cli.console import print_table

    title = f"{report.source}: {report.kind}" + (f", revision {report.revision}" if report.revision else "")
    rows = [
        (
            split,
            count,
            "–" if report.num_questions else _imbalance_text(report.imbalance[split], count),
            report.origins[split],
        )
        for split, count in report.counts.items()
    ]
    print_table(["split", "images", "most / fewest a label", "from"], rows, title=title)
    _print_labels(report)
    facts = [
        ("width", _spread_text(report.width)),
        ("height", _spread_text(report.height)),
        ("formats", _counts_text(report.formats)),
        ("modes", _counts_text(report.modes)),
        *((name, f"{count:,}") for name, count in report.peculiarities.items()),
    ]
    print_table(["images", ""], facts)
    _print_duplicates(report)
    if report.unreadable:
        shown = [(item.file, item.split, item.label, item.reason) for item in report.unreadable[:MOST_ROWS]]
        print_table(["file", "split", "label", "reason"], shown, title=_cut("Unreadable", len(report.unreadable)))
    left_out = [(item["reason"], item["count"], ", ".join(item["examples"])) for item in report.left_out]
    if left_out:
        print_table(["left out", "count", "such as"], left_out)
    notes = [*report.notes]
    if report.limits:
        limits = ", ".join(f"{name} {value:g}" for name, value in report.limits.items())
        notes.append(f"the experiment uses less than is counted here: {limits}")
    for note in notes:
        print(f"Note: {note}.")


def _print_labels(report: CheckReport) -> None:
    from vlmtune.cli.console import print_table

    splits = list(report.counts)
    labels = list(report.counts_per_label.items())
    title = f"{len(labels)} labels, from {report.labels_from}"
    if report.num_questions:
        title = f"{report.num_questions:,} questions by type of answer; {report.labels_from}"
    if len(labels) > MOST_LABELS:
        by_count = sorted(labels, key=lambda item: -sum(item[1].values()))
        labels = by_count[: MOST_LABELS // 2] + by_count[-MOST_LABELS // 2 :]
        title += f"; the {MOST_LABELS // 2} most frequent and the {MOST_LABELS // 2} rarest (all with --json)"
    name = "answers" if report.num_questions else "label"
    print_table(
        [name, *splits], [(label or "no type", *(n[split] for split in splits)) for label, n in labels], title=title
    )


def _print_duplicates(report: CheckReport) -> None:
    from vlmtune.cli.console import print_table

    counts = report.duplicate_counts
    rows = [
        (
            f"same pixels (groups; {counts.images:,} images)",
            counts.groups,
            counts.groups_across_splits,
            counts.groups_with_different_labels,
        ),
        (
            "nearly the same (pairs)",
            counts.near_pairs,
            counts.near_pairs_across_splits,
            counts.near_pairs_with_different_labels,
        ),
    ]
    print_table(["duplicates", "all", "across splits", "labels differ"], rows)
    print(f"Nearly the same: {counts.method}.")
    if not counts.is_complete:
        print("The search for nearly equal images gave up: too many are alike (blank images?). Counts are a part.")
    if report.duplicates:
        shown = [
            (_copies_text(group.copies), _yes(group.across_splits), _yes(group.labels_differ))
            for group in report.duplicates[:MOST_ROWS]
        ]
        print_table(["images", "across splits", "labels differ"], shown, title=_cut("Same pixels", counts.groups))
    pairs = [
        (_copies_text((p.first, p.second)), _yes(p.across_splits), _yes(p.labels_differ), f"{p.distance_bits} bits")
        for p in report.near_duplicates[:MOST_ROWS]
    ]
    if pairs:
        title = _cut("Nearly the same", counts.near_pairs)
        print_table(["images", "across splits", "labels differ", "distance"], pairs, title=title)


def _cut(title: str, num: int) -> str:
    return f"{title} (first {MOST_ROWS} of {num:,}; more with --json)" if num > MOST_ROWS else title


def _copies_text(copies: tuple[Copy, ...]) -> str:
    more = f"\n… {len(copies) - 4} more" if len(copies) > 4 else ""
    told = (f"{copy.id} [{copy.split}{f', {copy.label}' if copy.label else ''}]" for copy in copies[:4])
    return "\n".join(told) + more


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _imbalance_text(ratio: float | None, count: int) -> str:
    if not count:
        return ""
    return "a label has none" if ratio is None else f"{ratio:g}"


def _spread_text(spread: object) -> str:
    from vlmtune.data.check import Spread

    if not isinstance(spread, Spread):
        return "none could be read"
    if spread.min == spread.max:
        return f"{spread.min:g} px"
    return f"{spread.min:g} to {spread.max:g} px, median {spread.median:g}"


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
