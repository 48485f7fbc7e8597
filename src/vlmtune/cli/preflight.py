"""`vlmtune preflight`: everything `train` checks before its first step, without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from vlmtune.cli.console import print_json, stdout_console
from vlmtune.cli.options import ConfigArgument, FaithfulOption, JsonOption, SetOption, open_experiment

if TYPE_CHECKING:
    from vlmtune.train.preflight import Preflight

_STYLE = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def preflight(
    config: ConfigArgument, set_: SetOption = None, faithful: FaithfulOption = False, json_: JsonOption = False
) -> None:
    """Check an experiment: what LoRA reaches, what is learned, tokens, labels, images, time and memory."""
    from vlmtune.runs.prepare import load_data, open_base
    from vlmtune.train.loop import Trainer
    from vlmtune.train.preflight import preflight as check

    resolved, splits = load_data(open_experiment(config, set_, faithful=faithful))
    findings = check(Trainer(resolved, open_base(resolved.model), splits))
    if json_:
        print_json(findings.to_dict())
    else:
        print_findings(findings, stdout_console())
    findings.raise_errors()


def print_findings(findings: Preflight, console: Console) -> None:
    """One line a finding, marked by how it stands."""
    for finding in findings.findings:
        mark, color = _STYLE[finding.level]
        console.print(Text.assemble((f"{mark} ", color), (f"{finding.name}: ", "bold"), finding.message))
