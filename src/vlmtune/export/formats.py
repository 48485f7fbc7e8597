"""The three formats: how each is written, and in which runtime the gate opens it again.

`export.run` picks one by name from `FORMATS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from vlmtune.adapters.connectors import connector_is_exportable
from vlmtune.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from vlmtune.adapters.open import AdaptedModel, open_adapted
from vlmtune.errors import UserError, unknown_name
from vlmtune.export import gguf_files, gguf_limits, llama_runtime, transformers_runtime
from vlmtune.export.runtime import OwnRuntime, Runtime
from vlmtune.export.subject import Subject
from vlmtune.export.transformers_runtime import PIXELS, TransformersRuntime
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl_images import Lfm2VlImageProcessor
from vlmtune.models.registry import OpenedModel, read_config
from vlmtune.models.source import locate
from vlmtune.models.weights import explain_write_errors, load_strict, save_hf

_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Format(Protocol):
    """One way to ship.

    Attributes:
        dtypes: names for `--dtype`; the first is the default.
        sentences: what whoever runs the export must know, found while writing.
    """

    name: str
    dtypes: tuple[str, ...]
    sentences: list[str]

    def write(self, subject: Subject, trained: AdaptedModel, folder: Path, dtype: str) -> None:
        """Fill an empty folder. Raises UserError for a model that the format cannot hold."""
        ...

    def runtime(self, subject: Subject, trained: AdaptedModel, folder: Path) -> Runtime:
        """What opens the folder again."""
        ...


class Peft:
    """The adapter in PEFT's layout, beside the base model that everybody has."""

    name = "peft"
    dtypes: tuple[str, ...] = ("as trained",)

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def write(self, subject: Subject, trained: AdaptedModel, folder: Path, dtype: str) -> None:
        with explain_write_errors(folder):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(subject.checkpoint / name, folder / name)
        if Path(subject.experiment.model.base).exists():
            self.sentences = [
                f"{CONFIG_FILE} names the base by a folder of this machine: before you give the adapter away, set "
                "base_model_name_or_path to where others have it, and export again"
            ]

    def runtime(self, subject: Subject, trained: AdaptedModel, folder: Path) -> Runtime:
        model = subject.experiment.model
        if reason := _why_not_transformers(trained, with_peft=True):
            return _own(open_adapted(str(folder), dtype=model.dtype, device=model.device), reason)
        base = locate(model.base, model.revision)
        return TransformersRuntime.open(base, trained.family.name, *_place(trained), adapter=folder)


class Merged:
    """The whole model as the hub holds it, the adapter in its weights."""

    name = "merged"
    dtypes: tuple[str, ...] = ("as trained", *_TORCH_DTYPES)

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def write(self, subject: Subject, trained: AdaptedModel, folder: Path, dtype: str) -> None:
        refuse_connector(trained, self.name)
        stored = _TORCH_DTYPES.get(dtype) or next(trained.model.parameters()).dtype
        # Merged in float32 and rounded once: base weight and update do not each lose digits to bfloat16.
        merged = subject.open(dtype="float32")
        save_hf(
            folder,
            merged.model,
            merged.model.config_dict(),
            dtype=stored,
            tokenizer=merged.tokenizer,
            processor=merged.processor,
            copy_from=merged.folder,
        )

    def runtime(self, subject: Subject, trained: AdaptedModel, folder: Path) -> Runtime:
        if reason := _why_not_transformers(trained, with_peft=False):
            return _own(open_adapted(str(folder), device=subject.experiment.model.device), reason)
        stored = _TORCH_DTYPES[read_config(folder)["dtype"]]
        return TransformersRuntime.open(folder, trained.family.name, stored, trained.model.device)


class Gguf:
    """LFM2-VL for llama.cpp: the language model's file and the projector's."""

    name = "gguf"
    dtypes = ("F16", *(dtype for dtype in gguf_files.DTYPES if dtype != "F16"))

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._files: gguf_files.GgufFiles | None = None

    def write(self, subject: Subject, trained: AdaptedModel, folder: Path, dtype: str) -> None:
        if trained.family.name != "lfm2_vl":
            raise UserError(f"GGUF is for LFM2-VL; this run's base is {trained.family.name}. Use --format merged.")
        refuse_connector(trained, self.name)
        merged = subject.open(dtype="float32")
        model, processor = lfm2_vl_parts(merged)
        if reasons := gguf_limits.unsupported(model, processor):
            raise UserError(
                "llama.cpp cannot run this model as it was trained:\n  " + "\n  ".join(reasons) + "\nUse --format "
                "merged, or train with settings that llama.cpp has."
            )
        self._files = gguf_files.write_gguf(folder, subject.name, model, merged.tokenizer, processor, dtype)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self._files.num_by_type.items()))
        self.sentences = [*gguf_limits.PictureRules(processor.settings).sentences(), f"matrices: {counts}"]

    def runtime(self, subject: Subject, trained: AdaptedModel, folder: Path) -> Runtime:
        assert self._files is not None
        _, processor = lfm2_vl_parts(trained)
        files = [folder / self._files.model.name, folder / self._files.projector.name]
        if llama_runtime.is_installed():
            rules = gguf_limits.PictureRules(processor.settings)
            return llama_runtime.LlamaCppRuntime(files[0], files[1], rules, trained.tokenizer.image_token_id)
        opened = subject.open(dtype="float32")
        model, _ = lfm2_vl_parts(opened)
        tensors = gguf_files.read_gguf(files[0], files[1], model)
        load_strict(model, tensors, trained.family.names, device=trained.model.device, origin=str(folder))
        return _own(opened, "llama-cpp-python is not installed, so only what the files hold was judged")


FORMATS: Mapping[str, type[Peft] | type[Merged] | type[Gguf]] = {"peft": Peft, "merged": Merged, "gguf": Gguf}


def make_format(name: str) -> Format:
    """A format by name. Raises UserError listing the known ones."""
    if name not in FORMATS:
        raise UserError(unknown_name("export format", name, FORMATS))
    return FORMATS[name]()


def choose_dtype(form: Format, dtype: str | None) -> str:
    """The format's default, or what was asked for in its own spelling. Raises UserError listing the known ones."""
    if dtype is None:
        return form.dtypes[0]
    spelled = {known.lower(): known for known in form.dtypes}
    if dtype.lower() not in spelled:
        raise UserError(f"--format {form.name}: {unknown_name('--dtype', dtype, form.dtypes)}")
    return spelled[dtype.lower()]


def refuse_connector(trained: AdaptedModel, form: str) -> None:
    """Raise UserError if a connector of our own stands in the model, which no other program's code has."""
    if reason := connector_is_exportable(trained.model):
        raise UserError(f"--format {form}: {reason} (--format peft holds it, for vlmtune.)")


def lfm2_vl_parts(opened: OpenedModel) -> tuple[Lfm2Vl, Lfm2VlImageProcessor]:
    """Network and processor under their own types."""
    assert isinstance(opened.model, Lfm2Vl) and isinstance(opened.processor, Lfm2VlImageProcessor)
    return opened.model, opened.processor


def _place(trained: AdaptedModel) -> tuple[torch.dtype, torch.device]:
    return next(trained.model.parameters()).dtype, trained.model.device


def _why_not_transformers(trained: AdaptedModel, *, with_peft: bool) -> str | None:
    """Why the gate must open the export by itself; None if it need not."""
    if connector_is_exportable(trained.model):
        return "transformers has no code for this model's connector"
    if trained.family.name not in PIXELS:
        return f"vlmtune does not know how transformers takes pictures of {trained.family.name}"
    if not transformers_runtime.is_installed(with_peft):
        return f"{'transformers and PEFT are' if with_peft else 'transformers is'} not installed"
    return None


def _own(opened: AdaptedModel, reason: str) -> OwnRuntime:
    runtime = OwnRuntime(opened, "the exported folder")
    runtime.notes.append(reason)
    return runtime
