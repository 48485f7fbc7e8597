"""An export from beginning to end: write, open again, judge, describe, and only then give it its name.

Called by `vlmtune export`. What the gate refuses keeps its files, for a person to look at, in a folder named
NAME.rejected with a file REJECTED in it, which `push` will not touch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vlmtune.errors import UserError
from vlmtune.export.card import CardFacts, write_card
from vlmtune.export.formats import AS_TRAINED, Format
from vlmtune.export.gate import Bounds, Verdict, judge
from vlmtune.export.runtime import OwnRuntime
from vlmtune.export.subject import Subject
from vlmtune.export.transformers_runtime import LOAD_OPTIONS
from vlmtune.files import explain_write_errors, temporary_folder, write_text
from vlmtune.runs.environment import environment, now
from vlmtune.runs.manifest import Manifest, write_manifest
from vlmtune.runs.open import AdaptedModel
from vlmtune.runs.prepare import image_overrides
from vlmtune.text.prompt import PromptBuilder

REJECTED_FILE = "REJECTED"
_REJECTED_SUFFIX = ".rejected"


@dataclass(frozen=True)
class Export:
    """What became of an export: where it is, what the gate found, what its reader must know."""

    folder: Path
    verdict: Verdict
    sentences: tuple[str, ...]
    num_bytes: int


def export(
    subject: Subject,
    form: Format,
    dtype: str,
    output: Path,
    bounds: Bounds,
    on_image: Callable[[], None] = lambda: None,
) -> Export:
    """Export a run.

    Args:
        subject: the trained run. form, dtype: see `formats`.
        output: the folder to make.
        bounds: what the gate accepts.
        on_image: called as the gate goes on.

    Returns:
        Also what was refused; see `Verdict.is_accepted`.

    Raises:
        UserError: the folder is taken, the format cannot hold the model, a full disk.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists. Choose another folder with --output, or remove this one.")
    trained = subject.open()
    with temporary_folder(output) as partial:
        sentences = form.write(subject, trained, partial, dtype)
        verdict = _judge(subject, trained, form, partial, bounds, on_image)
        manifest = Manifest(
            format=form.name,
            task=subject.task,
            labels=None if subject.labels is None else subject.labels.stored,
            image=image_overrides(subject.experiment.model) if form.name == "peft" else {},
            origin=_origin(subject, trained, dtype),
            gate=verdict.as_dict(),
            files={path.name: sha256(path) for path in sorted(partial.iterdir())},
        )
        write_manifest(partial, manifest)
        write_card(partial, _card_facts(subject, trained, manifest, verdict, sentences))
        target = output
        if not verdict.is_accepted:
            write_text(partial / REJECTED_FILE, f"Refused by the export gate: {verdict.sentence()}.\n")
            target = output.with_name(output.name + _REJECTED_SUFFIX)
            if (target / REJECTED_FILE).is_file():
                shutil.rmtree(target)  # an earlier attempt that was refused too
        num_bytes = sum(path.stat().st_size for path in partial.iterdir())
        with explain_write_errors(target):
            partial.replace(target)
    return Export(target, verdict, tuple(sentences), num_bytes)


def sha256(path: Path) -> str:
    """Of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _judge(
    subject: Subject,
    trained: AdaptedModel,
    form: Format,
    folder: Path,
    bounds: Bounds,
    on_image: Callable[[], None],
) -> Verdict:
    runtime = form.runtime(subject, trained, folder)
    try:
        with torch.inference_mode():
            reference = OwnRuntime(trained, "the trained model")
            return judge(subject, reference, runtime, trained, bounds, on_image)
    finally:
        runtime.close()


def _card_facts(
    subject: Subject, trained: AdaptedModel, manifest: Manifest, verdict: Verdict, sentences: list[str]
) -> CardFacts:
    prompt = PromptBuilder(trained.tokenizer, subject.task, subject.labels)
    question = "{question}" if prompt.asks_question else None
    return CardFacts(
        manifest=manifest,
        verdict=verdict,
        prompt=prompt.text(question, "<image>"),
        system=prompt.system,
        user=prompt.user,
        evaluations=subject.evaluations,
        sentences=sentences,
        load_options=LOAD_OPTIONS.get(trained.family.name, {}),
    )


def _origin(subject: Subject, trained: AdaptedModel, dtype: str) -> dict[str, object]:
    model = subject.experiment.model
    spelled = str(next(trained.model.parameters()).dtype).removeprefix("torch.") if dtype == AS_TRAINED else dtype
    return {
        "run": subject.name,
        "checkpoint": subject.checkpoint.name,
        "base": _public_name(model.base),
        "revision": model.revision,
        "dtype": spelled,
        "held_out": f"{subject.split} split of {_public_name(subject.experiment.data.source)}",
        "created": now(),
        "versions": environment()["versions"],
    }


def _public_name(source: str) -> str:
    """Of a folder or file its own name: where it lies on this machine concerns nobody who reads the card."""
    return Path(source).name if Path(source).exists() else source
