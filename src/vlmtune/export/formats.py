"""The three formats: how each is written, and the runtime in which the gate opens it.

`export.run` picks one by name from `FORMATS`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from vlmtune.adapters.connector_swap import connector_is_exportable
from vlmtune.adapters.peft_files import CONFIG_FILE, WEIGHTS_FILE
from vlmtune.errors import UserError, unknown_name
from vlmtune.export import llama_runtime, transformers_runtime
from vlmtune.export.gguf_files import DTYPES, find_gguf, read_gguf, write_gguf
from vlmtune.export.llama_runtime import ImageRules, unsupported
from vlmtune.export.runtime import OwnRuntime, Runtime
from vlmtune.export.trained_run import TrainedRun
from vlmtune.export.transformers_runtime import PIXELS, TransformersRuntime
from vlmtune.files import explain_write_errors
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor
from vlmtune.models.registry import OpenedModel, read_config
from vlmtune.models.source import locate
from vlmtune.models.weights import load_strict, save_hf
from vlmtune.runs.open import AdaptedModel, open_adapted

AS_TRAINED = "as trained"
_TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Format(Protocol):
    """One way to ship. `dtypes` are the names for `--dtype`; the first is the default."""

    name: str
    dtypes: tuple[str, ...]

    def write(self, run: TrainedRun, trained: AdaptedModel, folder: Path, dtype: str) -> list[str]:
        """Fill an empty folder; returns notes for users of the export.

        Raises UserError for a model that the format cannot hold.
        """
        ...

    def runtime(self, run: TrainedRun, trained: AdaptedModel, folder: Path) -> Runtime:
        """The runtime that opens the folder."""
        ...


class Peft:
    """The adapter in PEFT's layout, to be used with the public base model."""

    name = "peft"
    dtypes: tuple[str, ...] = (AS_TRAINED,)

    def write(self, run: TrainedRun, trained: AdaptedModel, folder: Path, dtype: str) -> list[str]:
        with explain_write_errors(folder):
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(run.checkpoint / name, folder / name)
        if not Path(run.experiment.model.base).exists():
            return []
        return [
            f"{CONFIG_FILE} names the base by a folder of this machine: others must set base_model_name_or_path to "
            "where they have it"
        ]

    def runtime(self, run: TrainedRun, trained: AdaptedModel, folder: Path) -> Runtime:
        model = run.experiment.model
        if reason := _why_not_transformers(trained, with_peft=True):
            return _own(open_adapted(str(folder), dtype=model.dtype, device=model.device), reason)
        base, dtype = locate(model.base, model.revision), _dtype_of(trained)
        return TransformersRuntime.open(base, trained.family.name, dtype, trained.model.device, adapter=folder)


class Merged:
    """The whole model in the hub's layout, the adapter merged into its weights."""

    name = "merged"
    dtypes: tuple[str, ...] = (AS_TRAINED, *_TORCH_DTYPES)

    def write(self, run: TrainedRun, trained: AdaptedModel, folder: Path, dtype: str) -> list[str]:
        _refuse_connector(trained, self.name)
        # Merged in float32 and rounded once: base weight and update do not each lose digits to bfloat16.
        merged = run.open(dtype="float32")
        save_hf(
            folder,
            merged.model,
            merged.model.config_dict(),
            dtype=_TORCH_DTYPES.get(dtype, _dtype_of(trained)),
            tokenizer=merged.tokenizer,
            processor=merged.processor,
            copy_from=merged.folder,
        )
        return []

    def runtime(self, run: TrainedRun, trained: AdaptedModel, folder: Path) -> Runtime:
        if reason := _why_not_transformers(trained, with_peft=False):
            return _own(open_adapted(str(folder), device=run.experiment.model.device), reason)
        stored = _TORCH_DTYPES[read_config(folder)["dtype"]]
        return TransformersRuntime.open(folder, trained.family.name, stored, trained.model.device)


class Gguf:
    """LFM2-VL for llama.cpp: the language model's file and the projector's."""

    name = "gguf"
    dtypes = ("F16", *(dtype for dtype in DTYPES if dtype != "F16"))

    def write(self, run: TrainedRun, trained: AdaptedModel, folder: Path, dtype: str) -> list[str]:
        if trained.family.name != "lfm2_vl":
            raise UserError(f"GGUF is for LFM2-VL; this run's base is {trained.family.name}. Use --format merged.")
        _refuse_connector(trained, self.name)
        merged = run.open(dtype="float32")
        model, processor = lfm2_vl_parts(merged)
        if reasons := unsupported(model, processor):
            raise UserError(
                "llama.cpp cannot run this model as it was trained:\n  " + "\n  ".join(reasons) + "\nUse --format "
                "merged, or train with settings that llama.cpp has."
            )
        files = write_gguf(folder, run.name, model, merged.tokenizer, processor, dtype)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(files.num_by_type.items()))
        return [*ImageRules(processor.settings).sentences(), f"matrices: {counts}"]

    def runtime(self, run: TrainedRun, trained: AdaptedModel, folder: Path) -> Runtime:
        model_file, projector_file = find_gguf(folder)
        if llama_runtime.is_installed():
            rules = ImageRules(lfm2_vl_parts(trained)[1].settings)
            image_token_id = trained.tokenizer.image_token_id
            return llama_runtime.LlamaCppRuntime(model_file, projector_file, rules, image_token_id)
        opened = run.open(dtype="float32")
        tensors = read_gguf(model_file, projector_file, lfm2_vl_parts(opened)[0])
        load_strict(opened.model, tensors, trained.family.names, device=trained.model.device, origin=str(folder))
        return _own(opened, "llama-cpp-python is not installed, so only what the files hold was judged")


FORMATS: Mapping[str, Format] = {"peft": Peft(), "merged": Merged(), "gguf": Gguf()}


def find_format(name: str) -> Format:
    """A format by name. Raises UserError listing the known ones."""
    if name not in FORMATS:
        raise UserError(unknown_name("export format", name, FORMATS))
    return FORMATS[name]


def choose_dtype(form: Format, dtype: str | None) -> str:
    """The format's default, or the requested one in its own spelling. Raises UserError listing the known ones."""
    if dtype is None:
        return form.dtypes[0]
    spelled = {known.lower(): known for known in form.dtypes}
    if dtype.lower() not in spelled:
        raise UserError(f"--format {form.name}: {unknown_name('--dtype', dtype, form.dtypes)}")
    return spelled[dtype.lower()]


def _refuse_connector(trained: AdaptedModel, form: str) -> None:
    """Raise UserError if the model has one of our connectors, which other programs do not implement."""
    if reason := connector_is_exportable(trained.model):
        raise UserError(f"--format {form}: {reason} (--format peft holds it, for vlmtune.)")


def lfm2_vl_parts(opened: OpenedModel) -> tuple[Lfm2Vl, Lfm2VlImageProcessor]:
    """Network and processor, cast to LFM2-VL's types."""
    assert isinstance(opened.model, Lfm2Vl) and isinstance(opened.processor, Lfm2VlImageProcessor)
    return opened.model, opened.processor


def _dtype_of(trained: AdaptedModel) -> torch.dtype:
    return next(trained.model.parameters()).dtype


def _why_not_transformers(trained: AdaptedModel, *, with_peft: bool) -> str | None:
    """Why the gate cannot use transformers and uses our runtime; None if it can."""
    if connector_is_exportable(trained.model):
        return "transformers has no code for this model's connector"
    if trained.family.name not in PIXELS:
        return f"vlmtune does not know how transformers takes images of {trained.family.name}"
    if not transformers_runtime.is_installed(with_peft):
        return f"{'transformers and PEFT are' if with_peft else 'transformers is'} not installed"
    return None


def _own(opened: AdaptedModel, reason: str) -> OwnRuntime:
    runtime = OwnRuntime(opened, "the exported folder")
    runtime.notes.append(reason)
    return runtime
