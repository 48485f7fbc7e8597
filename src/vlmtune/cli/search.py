"""`vlmtune search`: many short trainings of one experiment to find the settings that validate best."""

from __future__ import annotations

from typing import Annotated

import typer

from vlmtune.cli.console import ConsoleObserver, print_json, print_table
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption
from vlmtune.config.load import load_experiment


def search(
    config: ConfigArgument,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier sessions included.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, each in a process of its own.")] = 1,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Look for the best rank, alpha, learning rate, LoRA targets, dropout and augmentation.

    The first trial is CONFIG as it is; the others are proposed by Optuna, and one that falls behind is ended. What is
    varied can be set in the file (search.space). Every trial is a run folder in OUTPUT_DIR/NAME-search/trials; beside
    them stand best.yaml, search.html, search.md, search.json and charts. Validation decides, the test split is not
    looked at. The same command again resumes a search that was stopped, and a larger --trials continues a finished one.
    """
    from vlmtune.report.search import findings, trial_table
    from vlmtune.workflows.search import run_search, trial_name

    experiment = load_experiment(config, set_ or ())
    figures, folder = run_search(experiment, num_trials=trials, num_jobs=jobs, observer=ConsoleObserver())
    if json_:
        print_json({**figures, "findings": findings(figures), "folder": folder})
        return
    table = trial_table(figures)
    print_table(table.head(), table.texts())
    print("\n".join(findings(figures)))
    if figures["best"] is not None:
        print(f"best: {folder / 'best.yaml'}, trained in {folder / trial_name(figures['best'])}")
    print(f"page: {folder / 'search.html'}")
