"""Checkpoint files to parameters and back: strict in both directions, one tensor in memory at a time.

In: a folder in the hub's layout (one safetensors file, or shards with an index). Out: a model whose every parameter
came from exactly one tensor. Called by `registry.py`, and by `adapters` and `export` to save.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmtune.errors import WeightsError
from vlmtune.files import new_folder, read_json, write_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5_000_000_000

# Other files of a checkpoint besides configuration, weights and tokenizer; copied unchanged when a model is saved.
_COPIED_FILES = ("generation_config.json", "LICENSE")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Saveable(Protocol):
    """Anything that writes its own files into a model's folder: the tokenizer, the image processor."""

    def save(self, folder: Path) -> object: ...


@dataclass(frozen=True)
class NameTable:
    """How a family's files spell what our modules call by `transformers`' current names.

    Attributes:
        renames: (regular expression, replacement), each applied once, in order, to a name in the file.
        dropped: expressions that fully match names (after renaming) that we know and do not use.
        tied: a name that may be in the file -> the parameter that it must equal.
    """

    renames: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)

    def ours(self, name: str) -> str:
        """The name as our modules have it."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name, count=1)
        return name

    def is_dropped(self, name: str) -> bool:
        """Whether a name (after renaming) is known and unused."""
        return any(re.fullmatch(pattern, name) for pattern in self.dropped)


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint by the names in its files; each tensor is read on access."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            for name, shape in _read_shapes(file).items():
                if name in self.file_of:
                    raise WeightsError(f"{file}: tensor '{name}' is also in {self.file_of[name].name}; expected once.")
                self.file_of[name], self.shapes[name] = file, shape

    def __getitem__(self, name: str) -> Tensor:
        try:
            with safe_open(self.file_of[name], framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.file_of[name]}: cannot read tensor '{name}' ({error}).") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.file_of)

    def __len__(self) -> int:
        return len(self.file_of)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open the weights of a folder, reading the files' headers only.

    Raises:
        WeightsError: no weights, a missing shard, a truncated or damaged file.
    """
    index_path = folder / INDEX_FILE
    if (folder / SINGLE_FILE).exists():
        return Checkpoint([folder / SINGLE_FILE])
    if index_path.exists():
        return _read_sharded(index_path)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    hint = f" {', '.join(pickled)}: pickled weights are never loaded; convert them to safetensors." if pickled else ""
    raise WeightsError(
        f"{folder}: no weights. Expected {SINGLE_FILE} or {INDEX_FILE}; found {', '.join(names) or 'nothing'}.{hint}"
    )


def load_strict(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    names: NameTable,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    origin: str = "checkpoint",
) -> None:
    """Give every parameter of ``model`` its tensor; build the model on the meta device to avoid holding weights twice.

    Args:
        model: its parameters are replaced (not copied into), so it may be on the meta device.
        tensors: by name in the file; a `Checkpoint` reads them one by one.
        names: the family's spelling.
        dtype: what to cast to; None keeps the file's.
        device: where the parameters go.
        origin: the folder or file, for messages.

    Raises:
        WeightsError: every missing, extra and misshapen tensor, with shapes; a tied tensor that differs.
    """
    shapes = tensors.shapes if isinstance(tensors, Checkpoint) else {n: tuple(t.shape) for n, t in tensors.items()}
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    sources: dict[str, str] = {}
    tied: dict[str, str] = {}
    problems: list[str] = []
    for name, shape in shapes.items():
        target = names.ours(name)
        if names.is_dropped(target):
            continue
        if target in names.tied and target not in expected:
            tied[name] = names.tied[target]
        elif target not in expected:
            problems.append(f"extra: {name} {list(shape)}")
        elif target in sources:
            problems.append(f"twice: {name} and {sources[target]} are both {target}")
        else:
            sources[target] = name
            if shape != expected[target]:
                problems.append(f"wrong shape: {name} is {list(shape)}, expected {list(expected[target])}")
    missing = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in sources]
    if problems or missing:
        listed = "\n  ".join(sorted(missing) + sorted(problems))
        raise WeightsError(
            f"{origin}: {len(missing) + len(problems)} tensors do not fit the configuration "
            f"({len(sources)} of {len(expected)} parameters found). Is config.json that of these weights?\n  {listed}"
        )
    for name, target in tied.items():
        if not torch.equal(tensors[name], tensors[sources[target]]):
            raise WeightsError(
                f"{origin}: {name} differs from {target}, to which it should be tied. A separate output head is "
                "not supported for this family; was the file made with tie_word_embeddings: false?"
            )
    for target, name in sources.items():
        _assign(model, target, tensors[name], dtype, torch.device(device))
    unfilled = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not unfilled, f"buffers without values: {unfilled}"


def save_hf(
    folder: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    *,
    tensors: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: Saveable | None = None,
    processor: Saveable | None = None,
    copy_from: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model in the hub's layout, so that `transformers` loads it. All or nothing: renamed into place.

    Args:
        folder: must not exist, or be empty.
        model: whose parameters are saved, under their own names.
        config: for config.json, as `VisionLanguageModel.config_dict` gives it.
        tensors: instead of the model's own parameters (a merged state).
        dtype: to cast to; None keeps each tensor's.
        tokenizer, processor: write their files; without one, its files are copied from ``copy_from``.
        copy_from: the folder the model came from: generation settings and license are taken from there too.
        max_shard_bytes: a larger model is split into shards with an index.

    Raises:
        UserError: the folder is taken, or cannot be written (full disk, permissions).
    """
    if tensors is None:
        tensors = dict(model.named_parameters())
    stored = dtype or next(iter(tensors.values())).dtype
    with new_folder(folder) as partial:
        _write_tensors(partial, tensors, dtype, max_shard_bytes)
        write_json(partial / "config.json", {**config, "dtype": str(stored).removeprefix("torch.")}, indent=2)
        copied: tuple[str, ...] = _COPIED_FILES
        for owner, files in ((tokenizer, _TOKENIZER_FILES), (processor, _PROCESSOR_FILES)):
            if owner is None:
                copied += files
            else:
                owner.save(partial)
        for name in copied:
            if copy_from is not None and (copy_from / name).is_file() and not (partial / name).exists():
                shutil.copyfile(copy_from / name, partial / name)
        if not (partial / "generation_config.json").exists():
            text = config.get("text_config", config)
            ids = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in text}
            write_json(partial / "generation_config.json", ids, indent=2)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """All tensors of one small file (an adapter). Raises WeightsError if it is missing, truncated or damaged."""
    return dict(Checkpoint([file]))


def _read_sharded(index_path: Path) -> Checkpoint:
    placed = read_json(index_path, WeightsError, "Download the model again.").get("weight_map")
    if not isinstance(placed, dict):
        raise WeightsError(f"{index_path}: not a safetensors index; expected a 'weight_map'.")
    shards = sorted(set(placed.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise WeightsError(f"{index_path}: shards must be files beside the index; found {', '.join(outside)}.")
    absent = [shard for shard in shards if not (index_path.parent / shard).is_file()]
    if absent:
        raise WeightsError(
            f"{index_path.parent}: {len(absent)} of {len(shards)} shards are missing: {', '.join(absent)}. "
            "Download the model again; what is there is kept."
        )
    checkpoint = Checkpoint([index_path.parent / shard for shard in shards])
    lost = [f"{name} (in {shard})" for name, shard in placed.items() if name not in checkpoint]
    if lost:
        raise WeightsError(f"{index_path}: names {len(lost)} tensors that the shards lack:\n  " + "\n  ".join(lost))
    return checkpoint


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one file; safetensors checks everything but the values."""
    try:
        with file.open("rb") as stream:
            if stream.read(8) == b"version ":
                raise WeightsError(f"{file}: a Git LFS pointer, not the weights themselves. Run `git lfs pull`.")
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  no mapping
    except OSError as error:
        raise WeightsError(f"{file}: cannot read it ({error.strerror or error}).") from error
    except SafetensorError as error:
        raise WeightsError(
            f"{file}: truncated or damaged, {file.stat().st_size:,} bytes found ({error}). Delete it and download or "
            "copy it again."
        ) from error


def _assign(model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    old = module._parameters[leaf]
    assert old is not None
    moved = tensor.to(device=device, dtype=dtype or tensor.dtype)
    # A tensor as read is a view of the mapped file, and would change or vanish with it.
    moved = moved.clone() if moved.data_ptr() == tensor.data_ptr() else moved
    module._parameters[leaf] = nn.Parameter(moved.contiguous(), requires_grad=old.requires_grad)


def _write_tensors(
    folder: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    def num_bytes(tensor: Tensor) -> int:
        return tensor.numel() * (dtype or tensor.dtype).itemsize

    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + num_bytes(tensor) > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes(tensor)
    placed: dict[str, str] = {}
    for number, members in enumerate(shards, start=1):
        file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        cast = {name: tensors[name].detach().to("cpu", dtype or tensors[name].dtype) for name in members}
        save_file({name: tensor.contiguous() for name, tensor in cast.items()}, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)
        placed.update(dict.fromkeys(members, file))
    if len(shards) > 1:
        total = sum(num_bytes(tensor) for tensor in tensors.values())
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": placed}, indent=2)
