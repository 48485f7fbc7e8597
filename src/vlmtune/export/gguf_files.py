"""LFM2-VL as GGUF: the language model's file and the projector's ("mmproj"), and back to tensors.

In: a model with nothing adapted (adapters folded). Out: two files that llama.cpp runs together. The reader loads
them back, for the gate where llama.cpp is not installed and for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlmtune.errors import MissingExtraError, UserError
from vlmtune.export.gguf_names import (
    ALWAYS_FLOAT32,
    PATCH_EMBEDDING,
    TOKEN_EMBEDDING,
    Place,
    gguf_place,
    read_vocabulary,
)
from vlmtune.files import explain_write_errors
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor
from vlmtune.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import gguf

DTYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
"""What the `gguf` package can write, in llama.cpp's names."""
# A tied embedding is the output head as well, and the projector file is small and sensitive: 4 bits are for the rest.
_FINER = {"Q4_0": "Q8_0"}
# Types that share a scale among this many neighbors in a row.
_BLOCK_TYPES, _BLOCK = ("Q8_0", "Q4_0"), 32
_FLOAT16_MAX = 65504.0
_PROJECTOR_PREFIX = "mmproj-"


@dataclass(frozen=True)
class GgufFiles:
    """The two files, and how many matrices of each type they hold."""

    model: Path
    projector: Path
    num_by_type: dict[str, int]


def import_gguf() -> Any:
    """The `gguf` package. Raises MissingExtraError."""
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf", "gguf") from error
    return gguf


def write_gguf(
    folder: Path, name: str, model: Lfm2Vl, tokenizer: Tokenizer, processor: Lfm2VlImageProcessor, dtype: str
) -> GgufFiles:
    """Write NAME-DTYPE.gguf and mmproj-NAME-DTYPE.gguf.

    Args:
        folder: exists. name: of the run. dtype: one of `DTYPES`, for matrices; a matrix whose rows do not divide into
            the type's blocks of 32 becomes F16.

    Raises:
        UserError: weights beyond float16's range, a tokenizer that GGUF cannot hold, a full disk.
        MissingExtraError: the `gguf` package is not installed.
    """
    gguf = import_gguf()
    finer = _FINER.get(dtype, dtype)
    files = [folder / f"{name}-{dtype}.gguf", folder / f"{_PROJECTOR_PREFIX}{name}-{finer}.gguf"]
    writers = [gguf.GGUFWriter(files[0], "lfm2"), gguf.GGUFWriter(files[1], "clip")]
    _describe_model(writers[0], model, tokenizer)
    _describe_projector(writers[1], model, processor)
    counts: dict[str, int] = {}
    for writer, file_type in zip(writers, (dtype, finer), strict=True):
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if file_type == "F32" else f"MOSTLY_{file_type}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for parameter, tensor in _tensors(model):
        place = gguf_place(parameter)
        array = _arranged(place, tensor, model)
        kind = _kind(place, array, dtype, finer)
        counts[kind] = counts.get(kind, 0) + (array.ndim > 1)
        raw = gguf.GGMLQuantizationType[kind]
        writers[place.is_projector].add_tensor(place.name, _encoded(place, array, kind), raw_dtype=raw)
    with explain_write_errors(folder):
        for writer in writers:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    return GgufFiles(files[0], files[1], {kind: count for kind, count in counts.items() if count})


def find_gguf(folder: Path) -> tuple[Path, Path]:
    """The language model's file and the projector's in an exported folder."""
    (projector,) = folder.glob(f"{_PROJECTOR_PREFIX}*.gguf")
    (model,) = (path for path in folder.glob("*.gguf") if path != projector)
    return model, projector


def read_gguf(model_file: Path, projector_file: Path, model: Lfm2Vl) -> dict[str, Tensor]:
    """Every parameter of ``model`` (its names and shapes only) as the two files hold it, float32.

    Raises:
        UserError: a tensor that is missing, or has another shape.
    """
    gguf = import_gguf()
    held = [{tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (model_file, projector_file)]
    tensors: dict[str, Tensor] = {}
    for parameter, target in model.named_parameters():
        place = gguf_place(parameter)
        path = (model_file, projector_file)[place.is_projector]
        if place.name not in held[place.is_projector]:
            raise UserError(f"{path}: no tensor '{place.name}' (our {parameter}).")
        tensor = held[place.is_projector][place.name]
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = torch.from_numpy(array.reshape([int(side) for side in reversed(tensor.shape)]))
        if place.stem == PATCH_EMBEDDING and values.dim() > 1:
            values = values.permute(0, 2, 3, 1).reshape(target.shape)  # [D, 3, p, p] -> [D, p * p * 3]
        if values.numel() != target.numel():
            raise UserError(f"{path}: '{place.name}' is {list(values.shape)}, expected {list(target.shape)}.")
        tensors[parameter] = values.reshape(target.shape).contiguous()
    return tensors


def _tensors(model: Lfm2Vl) -> Iterator[tuple[str, Tensor]]:
    """Every parameter; and zeros for biases of the connector that llama.cpp requires and this model lacks."""
    yield from model.named_parameters()
    if not model.config.projector_bias:
        for layer in ("linear_1", "linear_2"):
            name = f"model.multi_modal_projector.{layer}"
            yield f"{name}.bias", torch.zeros(model.get_parameter(f"{name}.weight").shape[0])


def _arranged(place: Place, tensor: Tensor, model: Lfm2Vl) -> NDArray[np.float32]:
    """The values in llama.cpp's layout."""
    values = tensor.detach().to("cpu", torch.float32)
    if place.stem == PATCH_EMBEDDING and values.dim() > 1:
        side = model.config.vision_config.patch_size
        values = values.view(len(values), side, side, -1).permute(0, 3, 1, 2)  # channels last -> [D, 3, p, p]
    elif place.stem == "shortconv.conv":
        values = values[:, 0]  # [D, 1, K] -> [D, K]
    return np.ascontiguousarray(values.numpy())


def _kind(place: Place, array: NDArray[np.float32], dtype: str, finer: str) -> str:
    """The type in which a tensor is stored."""
    name = finer if place.is_projector or place.stem == TOKEN_EMBEDDING else dtype
    if array.ndim == 1 or place.stem in ALWAYS_FLOAT32:
        return "F32"
    if place.stem == PATCH_EMBEDDING:
        return "F32" if dtype in ("F32", "BF16") else "F16"
    return "F16" if name in _BLOCK_TYPES and array.shape[-1] % _BLOCK else name


def _encoded(place: Place, array: NDArray[np.float32], kind: str) -> NDArray[Any]:
    gguf = import_gguf()
    if kind == "F16" and (largest := float(np.abs(array).max(initial=0.0))) > _FLOAT16_MAX:
        raise UserError(f"{place.name}: holds {largest:.3g}, beyond float16's range. Export with --dtype BF16 or F32.")
    encoded: NDArray[Any] = gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind])
    return encoded


def _describe_model(writer: gguf.GGUFWriter, model: Lfm2Vl, tokenizer: Tokenizer) -> None:
    """The keys that llama.cpp's `lfm2` architecture and its tokenizer read."""
    text = model.config.text_config
    writer.add_type("model")
    writer.add_block_count(text.num_hidden_layers)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_feed_forward_length(text.feed_forward_size)
    writer.add_head_count(text.num_attention_heads)
    # Zero key heads mark a layer as a short convolution.
    writer.add_head_count_kv([text.num_key_value_heads if k == "full_attention" else 0 for k in text.layer_types])
    writer.add_layer_norm_rms_eps(text.norm_eps)
    writer.add_rope_freq_base(text.rope_theta)
    writer.add_vocab_size(text.vocab_size)
    writer.add_shortconv_l_cache(text.conv_L_cache)
    vocabulary = read_vocabulary(tokenizer, text.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.adds_bos)
    adders = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "eot": writer.add_eot_token_id,
        "pad": writer.add_pad_token_id,
    }
    for key, number in vocabulary.ids.items():
        adders[key](number)
    writer.add_chat_template(tokenizer.chat_template)


def _describe_projector(writer: gguf.GGUFWriter, model: Lfm2Vl, processor: Lfm2VlImageProcessor) -> None:
    """The keys that llama.cpp's multimodal library reads for the projector type `lfm2`."""
    vision, settings = model.config.vision_config, processor.settings
    writer.add_type("mmproj")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("lfm2")
    writer.add_vision_projection_dim(model.config.text_config.hidden_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_use_gelu(True)
    writer.add_vision_patch_size(vision.patch_size)
    # Required by the loader, unused by this projector, whose images have any size.
    writer.add_vision_image_size(round(vision.num_patches**0.5) * vision.patch_size)
    writer.add_vision_projector_scale_factor(model.config.downsample_factor)
    writer.add_vision_image_mean(list(settings.image_mean))
    writer.add_vision_image_std(list(settings.image_std))
