"""transformers and PEFT as runtimes of the export gate: they open the exported folder with their own code.

Deliberately plain: the whole prompt and the answer in one sequence, teacher-forced, nothing shared and nothing cached,
so that a fault of the prefix tree or of the scorer cannot hide. Images are prepared by our image processors, since
transformers' need torchvision; `tests/parity` shows that both are equal bit for bit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmtune.export.runtime import GateItem
from vlmtune.models.images import ProcessedImage

# Sequences per forward: enough for a small model, without a large one's logits filling the memory.
_ROWS = 16


class TransformersRuntime:
    """A transformers model, with or without a PEFT adapter.

    Args:
        model: of an Auto class. family: decides the keyword arguments for an image.
        name: library and versions.
    """

    def __init__(self, model: Any, family: str, name: str) -> None:
        self.model = model.eval()
        self.name = name
        self.notes = ["images were prepared by vlmtune's image processor"]
        self._pixels = PIXELS[family]

    @classmethod
    def open(
        cls, folder: Path, family: str, dtype: torch.dtype, device: torch.device, adapter: Path | None = None
    ) -> TransformersRuntime:
        """Load a folder with transformers, and an adapter's folder onto it with PEFT."""
        transformers = importlib.import_module("transformers")
        name = f"transformers {transformers.__version__}"
        with _quiet(transformers.utils.logging):
            auto = transformers.AutoModelForImageTextToText
            model = auto.from_pretrained(folder, dtype=dtype, **LOAD_OPTIONS.get(family, {})).to(device)
            if adapter is not None:
                peft = importlib.import_module("peft")
                model = peft.PeftModel.from_pretrained(model, adapter)
                name = f"PEFT {peft.__version__} on {name}"
        return cls(model, family, name)

    @torch.inference_mode()
    def score(self, item: GateItem, answers: Sequence[Sequence[int]]) -> list[float]:
        scores: list[float] = []
        for first in range(0, len(answers), _ROWS):
            scores += self._score_rows(item, answers[first : first + _ROWS])
        return scores

    def _score_rows(self, item: GateItem, answers: Sequence[Sequence[int]]) -> list[float]:
        prompt = len(item.ids)
        width = prompt + max(map(len, answers))
        # Padded on the right, with the last token of each: masked, and after every token that is read.
        rows = [[*item.ids, *answer, *[answer[-1]] * (width - prompt - len(answer))] for answer in answers]
        mask = [[1] * (prompt + len(answer)) + [0] * (width - prompt - len(answer)) for answer in answers]
        ids = torch.tensor(rows, device=self.model.device)
        logits = self.model(
            input_ids=ids,
            attention_mask=torch.tensor(mask, device=self.model.device),
            **self._inputs(item, len(answers), width),
            logits_to_keep=width - prompt + 1,  # a large vocabulary times a whole prompt would fill the memory
        ).logits
        log_probs = logits[:, :-1].float().log_softmax(-1)
        picked = log_probs.gather(2, ids[:, prompt:, None])[..., 0].double()
        return [float(row[: len(answer)].sum()) for row, answer in zip(picked, answers, strict=True)]

    @torch.inference_mode()
    def greedy(self, item: GateItem, end: int, max_new_tokens: int) -> list[int]:
        ids = torch.tensor([item.ids], device=self.model.device)
        made = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **self._inputs(item, 1, len(item.ids)),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )
        tokens: list[int] = made[0, len(item.ids) :].tolist()
        return tokens[: tokens.index(end)] if end in tokens else tokens

    def close(self) -> None:
        pass

    def _inputs(self, item: GateItem, num_sequences: int, width: int) -> dict[str, Any]:
        inputs = self._pixels(item.processed, num_sequences, width, len(item.ids))
        dtype = self.model.dtype
        return {
            name: value.to(self.model.device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """No bars and no advice on faster kernels while transformers loads; errors are still raised."""
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


def is_installed(with_peft: bool) -> bool:
    """Whether transformers (and PEFT) can be imported here."""
    return find_spec("transformers") is not None and (not with_peft or find_spec("peft") is not None)


def _lfm2_vl_pixels(processed: ProcessedImage, num_sequences: int, width: int, prompt: int) -> dict[str, Tensor]:
    """Tiles padded to the longest, once for each sequence."""
    tiles = processed.tiles
    longest = max(len(patches) for patches, _ in tiles)
    pixels = torch.zeros(len(tiles), longest, tiles[0][0].shape[1])
    mask = torch.zeros(len(tiles), longest, dtype=torch.int64)
    for index, (patches, _) in enumerate(tiles):
        pixels[index, : len(patches)] = patches
        mask[index, : len(patches)] = 1
    shapes = torch.tensor([grid for _, grid in tiles])
    return {
        "pixel_values": pixels.repeat(num_sequences, 1, 1),
        "pixel_attention_mask": mask.repeat(num_sequences, 1),
        "spatial_shapes": shapes.repeat(num_sequences, 1),
    }


def _paligemma_pixels(processed: ProcessedImage, num_sequences: int, width: int, prompt: int) -> dict[str, Tensor]:
    """The one square image, once for each sequence; and which tokens see each other: the prompt's."""
    ((patches, (rows, columns)),) = processed.tiles
    side = isqrt(patches.shape[1] // 3)
    squares = patches.view(rows, columns, 3, side, side).permute(2, 0, 3, 1, 4)
    pixels = squares.reshape(1, 3, rows * side, columns * side)
    types = (torch.arange(width) >= prompt).to(torch.int64)
    return {"pixel_values": pixels.repeat(num_sequences, 1, 1, 1), "token_type_ids": types.repeat(num_sequences, 1)}


PIXELS: Mapping[str, Callable[[ProcessedImage, int, int, int], dict[str, Tensor]]] = {
    "lfm2_vl": _lfm2_vl_pixels,
    "paligemma": _paligemma_pixels,
}
"""Family -> (image, number of sequences, their length, length of the prompt) to the model's keyword arguments."""

LOAD_OPTIONS: Mapping[str, Mapping[str, str]] = {
    # Gemma 2 caps its attention scores, which transformers' fused attention leaves out.
    "paligemma": {"attn_implementation": "eager"},
}
"""Family -> further arguments of `from_pretrained`, also shown in the card."""
