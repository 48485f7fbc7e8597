"""llama.cpp as a runtime of the export gate, through `llama-cpp-python`: its tokenizer, its images, its arithmetic.

The image goes in as pixels and the prompt as text; nothing that we computed is used. All answers about an image share
one copy of its prompt's state, which is how llama.cpp itself forks a conversation.

llama.cpp reads the network from the files, but its image preparation is code with LiquidAI's settings in it
(`tools/mtmd/mtmd-image.h`, `clip.cpp`): tiles of 512 in grids of 2 to 10, a thumbnail, a tolerance of 2, bilinear.
Only the minimum and maximum number of image tokens can be set, by the user.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmtune.errors import UserError
from vlmtune.export.runtime import GateItem
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings, smart_resize

# Answers in one batch, each a sequence of its own.
_SEQUENCES = 16
_BATCH = 2048
_CONTEXT = 8192

_SCALED = "images were scaled to one tile's size first"
_OTHER_SIZE = "images have another number of image tokens in llama.cpp"
_OTHER_TOKENS = "prompts are other tokens in llama.cpp"
_LETTERBOXED = "images are cut into tiles with black bars, where the model was trained on them stretched"
_DIFFERENCES = (_SCALED, _OTHER_SIZE, _OTHER_TOKENS, _LETTERBOXED)


def is_installed() -> bool:
    """Whether llama-cpp-python can be imported here."""
    return find_spec("llama_cpp") is not None


class LlamaCppRuntime:
    """The two GGUF files in llama.cpp, with its defaults (float16 key-value cache, flash attention where it has it).

    Args:
        model_file, projector_file: as `gguf_files.write_gguf` made them.
        rules: how images must be given.
        image_token_id: of our prompts, which the runtime's own are compared with.

    Raises:
        UserError: llama.cpp refuses a file.
    """

    def __init__(self, model_file: Path, projector_file: Path, rules: ImageRules, image_token_id: int) -> None:
        self._llama = importlib.import_module("llama_cpp.llama_cpp")
        self._mtmd = importlib.import_module("llama_cpp.mtmd_cpp")
        self.name = f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
        self._rules = rules
        self._image_token_id = image_token_id
        self._ids: set[str] = set()
        self._differing: dict[str, set[str]] = {said: set() for said in _DIFFERENCES}
        self._quieten()
        self._llama.llama_backend_init()
        self._model = self._llama.llama_model_load_from_file(
            str(model_file).encode(), self._llama.llama_model_default_params()
        )
        if not self._model:
            raise UserError(f"{model_file}: llama.cpp cannot load it. Run it with llama-cli to see why.")
        self._context = self._llama.llama_init_from_model(self._model, self._context_settings())
        if not self._context:
            raise UserError(f"{model_file}: llama.cpp cannot make a context of {_CONTEXT} tokens for it.")
        self._vision = self._mtmd.mtmd_init_from_file(
            str(projector_file).encode(), self._model, self._vision_settings()
        )
        if not self._vision:
            raise UserError(f"{projector_file}: llama.cpp cannot load it beside {model_file.name}.")
        self._memory = self._llama.llama_get_memory(self._context)
        self._vocab_size = self._llama.llama_vocab_n_tokens(self._llama.llama_model_get_vocab(self._model))

    @property
    def notes(self) -> list[str]:
        return [f"{len(ids)} of {len(self._ids)} {said}" for said, ids in self._differing.items() if ids]

    def score(self, item: GateItem, answers: Sequence[Sequence[int]]) -> list[float]:
        first, position = self._run_prompt(item)
        scores = [float(first[answer[0]]) for answer in answers]
        longer = [index for index, answer in enumerate(answers) if len(answer) > 1]
        for start in range(0, len(longer), _SEQUENCES):
            group = longer[start : start + _SEQUENCES]
            for sequence in range(1, len(group) + 1):
                self._llama.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
            log_probs = self._decode([(s, list(answers[i][:-1])) for s, i in enumerate(group, start=1)], position)
            for index, rows in zip(group, log_probs, strict=True):
                scores[index] += sum(float(row[token]) for row, token in zip(rows, answers[index][1:], strict=True))
            for sequence in range(1, len(group) + 1):
                self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return scores

    def greedy(self, item: GateItem, end: int, max_new_tokens: int) -> list[int]:
        log_probs, position = self._run_prompt(item)
        tokens: list[int] = []
        while len(tokens) < max_new_tokens and (token := int(log_probs.argmax())) != end:
            tokens.append(token)
            log_probs = self._decode([(0, [token])], position)[0][0]
            position += 1
        return tokens

    def close(self) -> None:
        """Free the model's memory, which Python knows nothing of."""
        self._mtmd.mtmd_free(self._vision)
        self._llama.llama_free(self._context)
        self._llama.llama_model_free(self._model)

    def _run_prompt(self, item: GateItem) -> tuple[NDArray[np.float64], int]:
        """(float64[V] log-probabilities after the prompt, number of positions it took), as sequence 0."""
        self._llama.llama_memory_clear(self._memory, True)
        with self._chunks(item) as chunks:
            self._compare_tokens(item, chunks)
            position = self._llama.llama_pos(0)
            failed = self._mtmd.mtmd_helper_eval_chunks(
                self._vision, self._context, chunks, 0, 0, _BATCH, True, ctypes.byref(position)
            )
        if failed:
            raise UserError(f"{item.id}: llama.cpp cannot run this prompt (code {failed}).")
        return self._log_probs(-1), int(position.value)

    @contextmanager
    def _chunks(self, item: GateItem) -> Iterator[Any]:
        """The prompt as llama.cpp cuts it: text, tiles, text."""
        image = self._scaled(item)
        pixels = image.tobytes()
        buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        bitmap = self._mtmd.mtmd_bitmap_init(image.width, image.height, buffer)
        chunks = self._mtmd.mtmd_input_chunks_init()
        try:
            text = item.before.encode() + self._mtmd.mtmd_default_marker() + item.after.encode()
            prompt = self._mtmd.mtmd_input_text(text, len(text), False, True)
            bitmaps = (self._mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            failed = self._mtmd.mtmd_tokenize(self._vision, chunks, ctypes.byref(prompt), bitmaps, 1)
            if failed:
                raise UserError(f"{item.id}: llama.cpp cannot prepare this prompt (code {failed}).")
            yield chunks
        finally:
            self._mtmd.mtmd_input_chunks_free(chunks)
            self._mtmd.mtmd_bitmap_free(bitmap)

    def _scaled(self, item: GateItem) -> Image.Image:
        size = self._rules.size_for(item.image.height, item.image.width)
        if size is None:
            return item.image
        self._differing[_SCALED].add(item.id)
        return item.image.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    def _compare_tokens(self, item: GateItem, chunks: Any) -> None:
        """Note prompts that llama.cpp tokenizes differently from training."""
        ids: list[int] = []
        for index in range(self._mtmd.mtmd_input_chunks_size(chunks)):
            chunk = self._mtmd.mtmd_input_chunks_get(chunks, index)
            count = ctypes.c_size_t(0)
            if self._mtmd.mtmd_input_chunk_get_type(chunk) == self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                tokens = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                ids += tokens[: count.value]
            else:
                ids += [self._image_token_id] * self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        self._ids.add(item.id)
        image = self._image_token_id
        if ids.count(image) != item.ids.count(image):
            self._differing[_OTHER_SIZE].add(item.id)
        if self._rules.is_letterboxed(item.image.height, item.image.width, item.processed.text):
            self._differing[_LETTERBOXED].add(item.id)
        if [token for token in ids if token != image] != [token for token in item.ids if token != image]:
            self._differing[_OTHER_TOKENS].add(item.id)

    def _decode(self, sequences: Sequence[tuple[int, Sequence[int]]], position: int) -> list[NDArray[np.float64]]:
        """Run tokens of several sequences after ``position``: for each, float64[tokens, V] log-probabilities."""
        total = sum(len(tokens) for _, tokens in sequences)
        batch = self._llama.llama_batch_init(total, 0, 1)
        try:
            row = 0
            for sequence, tokens in sequences:
                for offset, token in enumerate(tokens):
                    batch.token[row], batch.pos[row] = token, position + offset
                    batch.n_seq_id[row], batch.seq_id[row][0], batch.logits[row] = 1, sequence, True
                    row += 1
            batch.n_tokens = total
            failed = self._llama.llama_decode(self._context, batch)
        finally:
            self._llama.llama_batch_free(batch)
        if failed:
            raise UserError(f"llama.cpp cannot run {total} tokens of {len(sequences)} answers (code {failed}).")
        rows = iter(range(total))
        return [np.stack([self._log_probs(next(rows)) for _ in tokens]) for _, tokens in sequences]

    def _log_probs(self, row: int) -> NDArray[np.float64]:
        """float64[V] of a row of the last batch; -1 is its last."""
        pointer = self._llama.llama_get_logits_ith(self._context, row)
        logits = np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).astype(np.float64)
        shifted = logits - logits.max()
        return np.asarray(shifted - np.log(np.exp(shifted).sum()))

    def _context_settings(self) -> Any:
        settings = self._llama.llama_context_default_params()
        settings.n_ctx = _CONTEXT
        settings.n_batch = _BATCH
        settings.n_seq_max = 1 + _SEQUENCES
        settings.kv_unified = True  # one buffer: forking a sequence copies no keys
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        return settings

    def _vision_settings(self) -> Any:
        settings = self._mtmd.mtmd_context_params_default()
        settings.image_min_tokens, settings.image_max_tokens = self._rules.min_tokens, self._rules.max_tokens
        settings.print_timings = settings.warmup = False
        settings.n_threads = os.cpu_count() or 1
        return settings

    def _quieten(self) -> None:
        """Silence llama.cpp, which writes hundreds of lines to stderr. A reference keeps the callback alive."""
        self._silence = self._llama.llama_log_callback(lambda level, text, data: None)
        self._llama.llama_log_set(self._silence, ctypes.c_void_p(0))
        for name in ("mtmd_log_set", "mtmd_helper_log_set"):
            getattr(self._mtmd, name)(self._silence, ctypes.c_void_p(0))


# ── what llama.cpp cannot do as the model was trained ───────────────────────────────────────────────────────────────

# The values in llama.cpp's source, by the names of our settings.
_FIXED_ALWAYS: Mapping[str, object] = {
    "resample": 2,
    "do_rescale": True,
    "do_normalize": True,
    "use_image_special_tokens": True,
}
_FIXED_WHEN_SPLITTING: Mapping[str, object] = {
    "tile_size": 512,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "max_pixels_tolerance": 2.0,
}
_TOLERANCE = 2.0
_IMAGE_TOKENS = (64, 256)
_RESCALE = 1 / 255
_TILE = re.compile(r"<\|img_row_(\d+)_col_(\d+)\|>")


@dataclass(frozen=True)
class ImageRules:
    """How images must be given to llama.cpp, so that it prepares them as the model was trained.

    Attributes:
        settings: the model's own.
    """

    settings: Lfm2VlImageSettings

    @property
    def min_tokens(self) -> int:
        return self.settings.min_image_tokens

    @property
    def max_tokens(self) -> int:
        return self.settings.max_image_tokens

    @property
    def max_pixels(self) -> int:
        """Most pixels of a one-tile image, in whole image tokens."""
        return self.max_tokens * self._token_side**2

    @property
    def _token_side(self) -> int:
        """Pixels along a side of one image token."""
        return self.settings.encoder_patch_size * self.settings.downsample_factor

    def size_for(self, height: int, width: int) -> tuple[int, int] | None:
        """The (height, width) that an image must be scaled to first; None if it can be given as it is."""
        rounded = [round(length / self._token_side) * self._token_side for length in (height, width)]
        area = max(self.settings.encoder_patch_size, rounded[0]) * max(self.settings.encoder_patch_size, rounded[1])
        if self.settings.do_image_splitting or area <= self.max_pixels * _TOLERANCE:
            return None
        return smart_resize(self.settings, height, width)

    def is_letterboxed(self, height: int, width: int, text: str) -> bool:
        """Whether llama.cpp pads an image's tiles with black where training stretched them.

        Args:
            text: the placeholder text of our own preparation, whose tile names give the grid.
        """
        places = [(int(row), int(column)) for row, column in _TILE.findall(text)]
        if not places:
            return False
        sides = [max(side) * self.settings.tile_size for side in zip(*places, strict=True)]
        scale = min(sides[0] / height, sides[1] / width)
        return [min(ceil(height * scale), sides[0]), min(ceil(width * scale), sides[1])] != sides

    def sentences(self) -> list[str]:
        """Instructions for users of the files."""
        said = []
        if (self.min_tokens, self.max_tokens) != _IMAGE_TOKENS:
            said.append(
                f"run llama.cpp with --image-min-tokens {self.min_tokens} --image-max-tokens {self.max_tokens}: GGUF "
                f"has no key for them, and its own are {_IMAGE_TOKENS[0]} and {_IMAGE_TOKENS[1]}"
            )
        if not self.settings.do_image_splitting:
            said.append(
                f"scale images to at most {self.max_pixels:,} pixels first (bilinear): the model was trained without "
                f"tiles, and llama.cpp cuts what has more than {int(self.max_pixels * _TOLERANCE):,} pixels into tiles "
                "of 512 and cannot be told not to"
            )
        return said


def unsupported(model: Lfm2Vl, processor: Lfm2VlImageProcessor) -> list[str]:
    """Every reason why llama.cpp could not run this model as it was trained; empty if it can."""
    settings, config = processor.settings, model.config
    fixed = {**_FIXED_ALWAYS, **(_FIXED_WHEN_SPLITTING if settings.do_image_splitting else {})}
    reasons = [
        f"{name} is {getattr(settings, name)!r}; llama.cpp's is {value!r} and cannot be set"
        for name, value in fixed.items()
        if getattr(settings, name) != value
    ]
    if settings.do_rescale and abs(settings.rescale_factor - _RESCALE) > 1e-9:
        reasons.append(f"rescale_factor is {settings.rescale_factor}; llama.cpp's is 1/255 and cannot be set")
    if config.text_config.conv_bias:
        reasons.append("conv_bias is true; llama.cpp's short convolution has no bias")
    if config.downsample_factor < 2:
        reasons.append(f"downsample_factor is {config.downsample_factor}; llama.cpp merges at least 2 × 2 patches")
    if round(config.vision_config.num_patches**0.5) ** 2 != config.vision_config.num_patches:
        reasons.append(f"num_patches {config.vision_config.num_patches} is no square, as llama.cpp takes it to be")
    return reasons
