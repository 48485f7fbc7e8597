"""What a report is made of: the files of run folders, lenient with an unfinished run, strict with damage."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmtune.errors import RunFolderError
from vlmtune.evaluate.compare import same_examples
from vlmtune.evaluate.files import Evaluation, is_evaluation, read_evaluation
from vlmtune.report.checkpoint_curve import read_checkpoint_curve
from vlmtune.report.files import read_json

BASELINES_FILE = "baselines.json"
BASELINE_NAMES = ("baseline", "base", "zero-shot", "zero_shot")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run folder without its evaluations. Files that are not there yet are empty."""

    name: str
    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    config: str = ""
    baselines: dict[str, Any] = field(default_factory=dict)
    checkpoint_curve: dict[str, Any] = field(default_factory=dict)


def read_run(folder: Path | str) -> RunRecord:
    """Read run.json, metrics.jsonl, preflight.json, config.yaml, baselines.json and the checkpoint curve.

    Raises RunFolderError for a folder with none of them, and for a damaged file, with its line.
    """
    folder = Path(folder)
    files = ("run.json", "metrics.jsonl", "config.yaml", "evaluation")
    if not any((folder / name).exists() for name in files):
        raise RunFolderError(
            f"{folder} is not a run folder: it has none of {', '.join(files)}. "
            "Give a folder that `vlmtune train` wrote."
        )
    facts = read_json(folder / "run.json")
    lines = _read_lines(folder / "metrics.jsonl")
    config = folder / "config.yaml"
    return RunRecord(
        name=str(facts.get("name") or folder.resolve().name),
        folder=folder,
        facts=facts,
        train=_latest(line for line in lines if line.get("kind") == "train"),
        validation=_latest(line for line in lines if line.get("kind") == "validation"),
        warnings=_warnings(read_json(folder / "preflight.json")),
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        baselines=read_json(folder / BASELINES_FILE),
        checkpoint_curve=read_checkpoint_curve(folder),
    )


def read_evaluations(run_folder: Path) -> tuple[list[Evaluation], list[str]]:
    """The evaluations of a run that may stand side by side, baseline first, then by time; and the names left out.

    The newest test evaluation decides which images the report is about; those of other images are left out.
    """
    paths = sorted(path for path in (run_folder / "evaluation").glob("*") if is_evaluation(path))
    found = [read_evaluation(path) for path in paths]
    if not found:
        return [], []
    found.sort(key=lambda e: str(e.facts.get("created", "")))
    tuned = [e for e in found if not is_baseline(e)] or found
    on_test = [e for e in tuned if (e.facts.get("data") or {}).get("split") == "test"] or tuned
    subject = on_test[-1]
    kept = [e for e in found if e is not subject and _may_stand_beside(subject, e)]
    left_out = [e.folder.name if e.folder else e.name for e in found if e is not subject and e not in kept]
    return sorted([*kept, subject], key=lambda e: (not is_baseline(e), e is subject)), left_out


def _may_stand_beside(subject: Evaluation, other: Evaluation) -> bool:
    known = subject.predictions.known.any()
    return same_examples(subject, other) if known else subject.predictions.ids == other.predictions.ids


def evaluation_folder(path: Path | str) -> Path:
    """An evaluation folder as given, or the newest test evaluation of a run. Raises RunFolderError for neither."""
    path = Path(path)
    if is_evaluation(path) or not (path / "evaluation").is_dir():
        return path  # reading it explains what is wrong with a folder that is neither
    evaluations = read_evaluations(path)[0]
    if evaluations and evaluations[-1].folder is not None:
        return evaluations[-1].folder
    raise RunFolderError(f"{path} has no evaluation yet. Run `vlmtune evaluate` first.")


def is_baseline(evaluation: Evaluation) -> bool:
    """Whether this is the base model as it was before fine-tuning."""
    facts = evaluation.facts
    is_untouched = facts.get("checkpoint") is None and facts.get("base") is not None
    return evaluation.name.lower() in BASELINE_NAMES or (is_untouched and facts.get("model") == facts["base"])


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl; an unfinished last line (a run killed while writing) is passed over."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    result = []
    for index, line in enumerate(lines):
        try:
            result.append(json.loads(line))
        except ValueError as error:
            if index == len(lines) - 1 and not line.endswith("\n"):
                break
            raise RunFolderError(f"{path}:{index + 1}: not readable as JSON ({error}). Remove this line.") from error
    return result


def _latest(lines: Any) -> list[dict[str, Any]]:
    """One line a step, the last written: a resumed run repeats the steps after its checkpoint."""
    by_step = {line["step"]: line for line in lines if "step" in line}
    return [by_step[step] for step in sorted(by_step)]


def _warnings(preflight: dict[str, Any]) -> list[str]:
    """What preflight found to be doubtful: findings of level warning."""
    findings = preflight.get("findings") or []
    return [str(finding["message"]) for finding in findings if finding.get("level") == "warning"]
