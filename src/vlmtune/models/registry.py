"""The families of models, and the one function that opens any of them.

In: a name as `source.locate` takes it. Out: model, tokenizer and image processor, ready. Called by `runs.open`, which
also opens adapters and run folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vlmtune.errors import UserError, WeightsError, unknown_name
from vlmtune.files import read_json
from vlmtune.models import lfm2_vl, paligemma
from vlmtune.models.config import ModelConfig
from vlmtune.models.images import Grid, ProcessedImage
from vlmtune.models.lfm2_vl.config import PUBLISHED as LFM2_VL_PUBLISHED
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor
from vlmtune.models.paligemma.config import PUBLISHED as PALIGEMMA_PUBLISHED
from vlmtune.models.paligemma.config import PaliGemmaConfig
from vlmtune.models.paligemma.images import PaliGemmaImageProcessor
from vlmtune.models.source import locate
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.models.weights import NameTable, load_strict, read_checkpoint
from vlmtune.text import formats
from vlmtune.text.tokenizer import Tokenizer

# Below this many parameters a CPU gains nothing from bfloat16, and float32 avoids rounding.
_SMALL_MODEL = 100_000_000


class ImageProcessor(Protocol):
    """Turns an image into the network's input."""

    def process(self, image: Image.Image) -> ProcessedImage: ...

    def restore(self, patches: Tensor, grid: Grid) -> Image.Image: ...

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class Family:
    """What a family of checkpoints needs: an entry here, and a folder with its config, layer, tower and images."""

    name: str
    read_config: Callable[[dict[str, Any]], ModelConfig]
    build: Callable[[Any], VisionLanguageModel]
    open_processor: Callable[..., ImageProcessor]
    names: NameTable
    prompt_format: formats.PromptFormat = formats.CHAT


@dataclass
class OpenedModel:
    """A model with its tokenizer and image processor.

    Attributes:
        source: the name it was opened by; folder: where its files are.
        config: the content of `config.json`.
    """

    model: VisionLanguageModel
    tokenizer: Tokenizer
    processor: ImageProcessor
    family: Family
    source: str
    folder: Path
    config: dict[str, Any]


# All families call their parts alike, in our files and in those of each age.
_NAMES = NameTable(
    renames=(
        # Saved as a decoder with its own head inside: `language_model.model.layers…`, `language_model.lm_head`. So
        # are the hub's files of PaliGemma, and what transformers writes of it to this day.
        (r"^(?:model\.)?language_model\.lm_head\.", "lm_head."),
        (r"^(?:model\.)?language_model\.model\.", "model.language_model."),
        # Saved without the outer module's prefix.
        (r"^(?=(?:vision_tower|multi_modal_projector|language_model)\.)", "model."),
        # Saved when the tower was wrapped in one more module.
        (r"^model\.vision_tower\.vision_model\.", "model.vision_tower."),
    ),
    dropped=(
        r"model\.vision_tower\.head\..*",  # a pooling head that neither reads
        r"model\.vision_tower\.embeddings\.position_ids",  # 0, 1, 2, … in older files
    ),
    tied={"lm_head.weight": "model.language_model.embed_tokens.weight"},
)

LFM2_VL = Family(
    name="lfm2_vl",
    read_config=Lfm2VlConfig.from_dict,
    build=lfm2_vl.Lfm2Vl,
    open_processor=Lfm2VlImageProcessor.from_folder,
    names=_NAMES,
)

PALIGEMMA = Family(
    name="paligemma",
    read_config=PaliGemmaConfig.from_dict,
    build=paligemma.PaliGemma,
    open_processor=PaliGemmaImageProcessor.from_folder,
    # Also dropped: what the first files hold and every decoder computes.
    names=replace(_NAMES, dropped=(*_NAMES.dropped, r"model\.language_model\..*\.rotary_emb\.inv_freq")),
    prompt_format=formats.PALIGEMMA,
)

FAMILIES: Mapping[str, Family] = {"lfm2_vl": LFM2_VL, "lfm2-vl": LFM2_VL, "paligemma": PALIGEMMA}
"""`model_type` of a config.json -> family; the spelling with a hyphen is that of older checkpoints."""

KNOWN_CONFIGS: Mapping[str, dict[str, Any]] = {**LFM2_VL_PUBLISHED, **PALIGEMMA_PUBLISHED}
"""Hub id -> the size entries of its config.json.

`estimate` reads them where a checkpoint is not at hand, and the benchmarks and tests build models of real size from
them. Opening a model never does: its own file decides.
"""


def open_model(
    source: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    image_overrides: Mapping[str, Any] | None = None,
) -> OpenedModel:
    """Open a plain model (a folder or hub id with config.json and weights, or `builtin:tiny`), in evaluation mode.

    Args:
        source, revision: see `source.locate`.
        dtype: ``auto``, ``float32`` or ``bfloat16``; see `choose_dtype`.
        device: ``auto`` (a CUDA device if there is one) or a torch device.
        image_overrides: settings of the image processor that are not None: min_image_tokens, max_image_tokens,
            do_image_splitting.

    Raises:
        UserError: source not found, unknown family or device. WeightsError: files that do not fit.
    """
    folder = locate(source, revision)
    config = read_config(folder)
    family = family_of(config, str(folder))
    chosen = choose_device(device)
    model = build_on_meta(config, str(folder))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    load_strict(
        model,
        read_checkpoint(folder),
        family.names,
        dtype=choose_dtype(dtype, chosen, num_parameters),
        device=chosen,
        origin=str(folder),
    )
    overrides = {key: value for key, value in (image_overrides or {}).items() if value is not None}
    return OpenedModel(
        model=model.eval(),
        tokenizer=Tokenizer.from_folder(folder, family.prompt_format),
        processor=family.open_processor(folder, **overrides),
        family=family,
        source=source,
        folder=folder,
        config=config,
    )


def open_processor(
    source: str, revision: str | None = None, image_overrides: Mapping[str, Any] | None = None
) -> ImageProcessor:
    """The image processor of a plain model alone, without its weights. Arguments and errors as in `open_model`."""
    folder = locate(source, revision, with_weights=False)
    family = family_of(read_config(folder), str(folder))
    overrides = {key: value for key, value in (image_overrides or {}).items() if value is not None}
    return family.open_processor(folder, **overrides)


def build_on_meta(config: dict[str, Any], origin: str = "config.json") -> VisionLanguageModel:
    """The network of a config.json without memory for its parameters: to count and to name them."""
    family = family_of(config, origin)
    with torch.device("meta"), _NoRandomStart():
        return family.build(family.read_config(config))


class _NoRandomStart(TorchFunctionMode):
    """Skips the initialization of parameters that a checkpoint will fill.

    Drawing numbers on the meta device draws nothing, yet makes torch import its compiler: seconds at every start.
    """

    _STARTS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self._STARTS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json. Raises UserError if there is none, WeightsError if it cannot be parsed."""
    path = folder / "config.json"
    if not path.is_file():
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        raise UserError(f"{folder}: not a model's folder: expected config.json, found {names}.")
    return read_json(path, WeightsError, "Download or copy it again.")


def family_of(config: Mapping[str, Any], origin: str) -> Family:
    """The family a config.json names. Raises UserError listing the known ones."""
    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(f"{origin}: config.json has no 'model_type'. Known families: {', '.join(sorted(FAMILIES))}.")
    if model_type not in FAMILIES:
        raise UserError(f"{origin}: {unknown_name('model family', str(model_type), FAMILIES)}")
    return FAMILIES[model_type]


def choose_device(device: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises UserError for a device that is unknown to torch or missing."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device '{device}' is not available here ({reason}). Use auto, cpu or cuda.") from error
    return chosen


def choose_dtype(dtype: str, device: torch.device, num_parameters: int) -> torch.dtype:
    """``auto`` is bfloat16 where the hardware multiplies it fast and the model is large enough to gain."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    if num_parameters < _SMALL_MODEL:
        return torch.float32
    return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capability: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(capability.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return False
