"""`vlmtune baselines`: without the image, and from the frozen vision features alone."""

from __future__ import annotations

from vlmtune.cli.console import ConsoleObserver, print_figures, print_json
from vlmtune.cli.options import ConfigArgument, JsonOption, SetOption, open_experiment


def baselines(config: ConfigArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Measure baselines on the test split: the most frequent answer, images replaced by gray, the base model
    zero-shot, and, where every image is asked the same, k-NN and a linear probe on the frozen vision features
    (settings chosen on validation).

    Writes baselines.json and an evaluation folder each into the run's folder; a trained run's report shows them.
    """
    from vlmtune.report.baselines import against, baselines_table
    from vlmtune.report.render import render
    from vlmtune.report.sources import is_baseline, read_evaluations
    from vlmtune.runs.layout import RunLayout
    from vlmtune.runs.prepare import load_data, run_path
    from vlmtune.workflows.evaluate import measure_baselines

    experiment, splits = load_data(open_experiment(config, set_))
    run = config if config.is_dir() else run_path(experiment)
    result = measure_baselines(experiment, splits, run, observer=ConsoleObserver())
    if RunLayout(run).is_run:
        render(run)
    if json_:
        print_json({"folder": str(run), **result})
        return
    tuned = [evaluation for evaluation in read_evaluations(run)[0] if not is_baseline(evaluation)]
    comparison = against(result, run, tuned[-1] if tuned else None)
    rows = baselines_table(comparison)
    print_figures(rows.head(), rows.texts())
    print("\n".join(comparison["summary"]))
    print(f"written to {run}: baselines.json, baselines/")
