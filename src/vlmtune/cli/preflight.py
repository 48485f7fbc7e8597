"""`vlmtune preflight`: everything `train` checks before its first step, without training."""

from __future__ import annotations

from vlmtune.cli.console import print_finding, print_json, stdout_console
from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment


def preflight(
    config: ConfigArgument, set_: SetOption = None, faithful: FaithfulOption = False, json_: JsonOption = False
) -> None:
    """Check an experiment: what LoRA reaches, what is learned, tokens, labels, images, time and memory."""
    from vlmtune.workflows.train import check

    findings = check(open_experiment(config, set_, faithful=faithful))
    if json_:
        print_json(findings.to_dict())
    else:
        for finding in findings.findings:
            print_finding(stdout_console(), finding.level, finding.name, finding.message)
    findings.raise_errors()
