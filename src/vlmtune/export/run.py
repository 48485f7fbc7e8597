"""An export from beginning to end: write, reopen, judge, describe, and only then rename into place.

Called by `vlmtune export`. A refused export keeps its files, for inspection, in a folder named
NAME.rejected with a file REJECTED in it, which `push` will not touch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vlmtune.errors import UserError
from vlmtune.export.card import CardFacts, write_card
from vlmtune.export.formats import AS_TRAINED, Format
from vlmtune.export.gate import Bounds, Verdict, judge
from vlmtune.export.runtime import OwnRuntime
from vlmtune.export.trained_run import TrainedRun
from vlmtune.export.transformers_runtime import LOAD_OPTIONS
from vlmtune.files import replace_folder, temporary_folder, write_text
from vlmtune.runs.environment import environment, now
from vlmtune.runs.manifest import Manifest, write_manifest
from vlmtune.runs.open import AdaptedModel
from vlmtune.runs.prepare import image_overrides
from vlmtune.text.prompt import PromptBuilder

REJECTED_FILE = "REJECTED"
_REJECTED_SUFFIX = ".rejected"


@dataclass(frozen=True)
class Export:
    """The outcome of an export: its folder, the gate's verdict, and notes for users."""

    folder: Path
    verdict: Verdict
    sentences: tuple[str, ...]
    num_bytes: int


def export(
    run: TrainedRun,
    form: Format,
    dtype: str,
    output: Path,
    bounds: Bounds,
    on_image: Callable[[], None] = lambda: None,
) -> Export:
    """Export a run.

    Args:
        run: the trained run. form, dtype: see `formats`.
        output: the folder to make.
        bounds: what the gate accepts.
        on_image: called after each image that the gate judges.

    Returns:
        The export, also a refused one; see `Verdict.is_accepted`.

    Raises:
        UserError: the folder is taken, the format cannot hold the model, a full disk.
    """
    _refuse_taken(output)
    trained = run.open()
    with temporary_folder(output) as partial:
        sentences = form.write(run, trained, partial, dtype)
        verdict = _judge(run, trained, form, partial, bounds, on_image)
        manifest = Manifest(
            format=form.name,
            task=run.task,
            labels=None if run.labels is None else run.labels.stored,
            image=image_overrides(run.experiment.model) if form.name == "peft" else {},
            origin=_origin(run, trained, dtype),
            gate=verdict.as_dict(),
            files={path.name: sha256(path) for path in sorted(partial.iterdir())},
        )
        write_manifest(partial, manifest)
        write_card(partial, _card_facts(run, trained, manifest, verdict, sentences))
        target = output
        if not verdict.is_accepted:
            write_text(partial / REJECTED_FILE, f"Refused by the export gate: {verdict.sentence()}.\n")
            target = output.with_name(output.name + _REJECTED_SUFFIX)
            if not (target / REJECTED_FILE).is_file():  # an earlier attempt that was refused too is replaced
                _refuse_taken(target)
        num_bytes = sum(path.stat().st_size for path in partial.iterdir())
        replace_folder(partial, target)
    return Export(target, verdict, tuple(sentences), num_bytes)


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _judge(
    run: TrainedRun,
    trained: AdaptedModel,
    form: Format,
    folder: Path,
    bounds: Bounds,
    on_image: Callable[[], None],
) -> Verdict:
    runtime = form.runtime(run, trained, folder)
    try:
        with torch.inference_mode():
            reference = OwnRuntime(trained, "the trained model")
            return judge(run, reference, runtime, trained, bounds, on_image)
    finally:
        runtime.close()


def _card_facts(
    run: TrainedRun, trained: AdaptedModel, manifest: Manifest, verdict: Verdict, sentences: list[str]
) -> CardFacts:
    prompt = PromptBuilder(trained.tokenizer, run.task, run.labels)
    question = "{question}" if prompt.asks_question else None
    return CardFacts(
        manifest=manifest,
        verdict=verdict,
        prompt=prompt.text(question, "<image>"),
        system=prompt.system,
        user=prompt.user,
        evaluations=run.evaluations,
        sentences=sentences,
        load_options=LOAD_OPTIONS.get(trained.family.name, {}),
    )


def _origin(run: TrainedRun, trained: AdaptedModel, dtype: str) -> dict[str, object]:
    model = run.experiment.model
    spelled = str(next(trained.model.parameters()).dtype).removeprefix("torch.") if dtype == AS_TRAINED else dtype
    return {
        "run": run.name,
        "checkpoint": run.checkpoint.name,
        "base": _public_name(model.base),
        "revision": model.revision,
        "dtype": spelled,
        "held_out": f"{run.split} split of {_public_name(run.experiment.data.source)}",
        "created": now(),
        "versions": environment()["versions"],
    }


def _public_name(source: str) -> str:
    """The name of a folder or file without its path, which is private."""
    return Path(source).name if Path(source).exists() else source


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists. Choose another folder with --output, or remove this one.")
