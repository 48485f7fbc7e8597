"""llama.cpp as a runtime of the export gate, through `llama-cpp-python`: its tokenizer, its images, its arithmetic.

The image goes in as pixels and the prompt as text; nothing that we computed is used. All answers of an image hang on
one copy of its prompt's state, which is how llama.cpp itself forks a conversation.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmtune.errors import UserError
from vlmtune.export.gguf_limits import ImageRules
from vlmtune.export.runtime import Asked

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
        self._asked: set[str] = set()
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
        return [f"{len(ids)} of {len(self._asked)} {said}" for said, ids in self._differing.items() if ids]

    def score(self, asked: Asked, answers: Sequence[Sequence[int]]) -> list[float]:
        first, position = self._run_prompt(asked)
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

    def greedy(self, asked: Asked, end: int, max_new_tokens: int) -> list[int]:
        log_probs, position = self._run_prompt(asked)
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

    def _run_prompt(self, asked: Asked) -> tuple[NDArray[np.float64], int]:
        """(float64[V] log-probabilities after the prompt, number of positions it took), as sequence 0."""
        self._llama.llama_memory_clear(self._memory, True)
        with self._chunks(asked) as chunks:
            self._compare_tokens(asked, chunks)
            position = self._llama.llama_pos(0)
            failed = self._mtmd.mtmd_helper_eval_chunks(
                self._vision, self._context, chunks, 0, 0, _BATCH, True, ctypes.byref(position)
            )
        if failed:
            raise UserError(f"{asked.id}: llama.cpp cannot run this prompt (code {failed}).")
        return self._log_probs(-1), int(position.value)

    @contextmanager
    def _chunks(self, asked: Asked) -> Iterator[Any]:
        """The prompt as llama.cpp cuts it: text, tiles, text."""
        image = self._scaled(asked)
        pixels = image.tobytes()
        buffer = (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels)
        bitmap = self._mtmd.mtmd_bitmap_init(image.width, image.height, buffer)
        chunks = self._mtmd.mtmd_input_chunks_init()
        try:
            text = asked.before.encode() + self._mtmd.mtmd_default_marker() + asked.after.encode()
            prompt = self._mtmd.mtmd_input_text(text, len(text), False, True)
            bitmaps = (self._mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
            failed = self._mtmd.mtmd_tokenize(self._vision, chunks, ctypes.byref(prompt), bitmaps, 1)
            if failed:
                raise UserError(f"{asked.id}: llama.cpp cannot prepare this prompt (code {failed}).")
            yield chunks
        finally:
            self._mtmd.mtmd_input_chunks_free(chunks)
            self._mtmd.mtmd_bitmap_free(bitmap)

    def _scaled(self, asked: Asked) -> Image.Image:
        size = self._rules.size_for(asked.image.height, asked.image.width)
        if size is None:
            return asked.image
        self._differing[_SCALED].add(asked.id)
        return asked.image.resize((size[1], size[0]), Image.Resampling.BILINEAR)

    def _compare_tokens(self, asked: Asked, chunks: Any) -> None:
        """Note prompts that llama.cpp reads otherwise than the model was trained."""
        ids: list[int] = []
        for index in range(self._mtmd.mtmd_input_chunks_size(chunks)):
            chunk = self._mtmd.mtmd_input_chunks_get(chunks, index)
            count = ctypes.c_size_t(0)
            if self._mtmd.mtmd_input_chunk_get_type(chunk) == self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                tokens = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
                ids += tokens[: count.value]
            else:
                ids += [self._image_token_id] * self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        self._asked.add(asked.id)
        image = self._image_token_id
        if ids.count(image) != asked.ids.count(image):
            self._differing[_OTHER_SIZE].add(asked.id)
        if self._rules.is_letterboxed(asked.image.height, asked.image.width, asked.processed.text):
            self._differing[_LETTERBOXED].add(asked.id)
        if [token for token in ids if token != image] != [token for token in asked.ids if token != image]:
            self._differing[_OTHER_TOKENS].add(asked.id)

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
        """llama.cpp writes hundreds of lines to stderr. A reference keeps the callback alive."""
        self._silence = self._llama.llama_log_callback(lambda level, text, data: None)
        self._llama.llama_log_set(self._silence, ctypes.c_void_p(0))
        for name in ("mtmd_log_set", "mtmd_helper_log_set"):
            getattr(self._mtmd, name)(self._silence, ctypes.c_void_p(0))
