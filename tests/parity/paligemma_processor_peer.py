"""Runs transformers' PaliGemma processor in a process of its own and writes what it made of images and prompts.

Why apart, and what to install: see `images_peer.py`. Usage: python paligemma_processor_peer.py FOLDER. FOLDER holds a
tokenizer; `results.safetensors` is written there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image

if __name__ == "__main__":
    from images_peer import PEERS, declare_torchvision, make_image
else:
    from tests.parity.images_peer import PEERS, declare_torchvision, make_image

# Name: (height, width), mode, pixels a side, patch, settings that differ from the checkpoints'.
CASES: dict[str, tuple[tuple[int, int], str, int, int, dict[str, Any]]] = {
    "one_pixel": ((1, 1), "RGB", 224, 14, {}),
    "strip": ((3, 500), "RGB", 224, 14, {}),
    "exact": ((224, 224), "RGB", 224, 14, {}),
    "small": ((32, 48), "RGB", 224, 14, {}),
    "photo": ((600, 900), "RGB", 224, 14, {}),
    "photo_448": ((600, 900), "RGB", 448, 14, {}),
    "photo_896": ((600, 900), "RGB", 896, 14, {}),
    "gray": ((100, 80), "L", 224, 14, {}),
    "transparent": ((100, 80), "RGBA", 224, 14, {}),
    "palette": ((100, 80), "P", 224, 14, {}),
    "bilinear": ((100, 80), "RGB", 224, 14, {"resample": 2}),
    "imagenet_statistics": (
        (100, 90), "RGB", 16, 4, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "not_normalized": ((100, 90), "RGB", 16, 4, {"do_normalize": False}),
    "not_rescaled": ((100, 90), "RGB", 16, 4, {"do_rescale": False}),
}  # fmt: skip
# Prompt, answer.
PROMPTS: dict[str, tuple[str, str]] = {
    "question": ("answer en what color is the square?", "red"),
    "coordinates": ("detect cat ; dog", "<loc0001><loc0200><loc1023><loc0512> cat"),
    "masks": ("segment <loc0001>cat", "<loc0001><seg000><seg127> cat"),
    "spaces": (" answer  en", " two  words "),
    "lines": ("line one\nline two", "\nthree"),
    "foreign": ("répondre é 漢", "漢字"),
}


def case_image(name: str) -> Image.Image:
    (height, width), mode, *_ = CASES[name]
    image = make_image(height, width)
    if mode == "RGBA":
        image.putalpha(make_image(height, width, 1).convert("L"))
    return image.convert(mode)


def main(folder: Path) -> None:
    sys.path.append(str(PEERS))
    declare_torchvision()
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer
    from transformers.models.paligemma.processing_paligemma import PaliGemmaProcessor
    from transformers.models.siglip.image_processing_siglip import SiglipImageProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder)
    results = {}
    for name, (_, _, size, patch, settings) in CASES.items():
        # A processor made anew for each: transformers caches the normalization of the first settings it sees.
        images = SiglipImageProcessor(
            size={"height": size, "width": size}, image_seq_length=(size // patch) ** 2, **settings
        )
        results[f"{name}.pixels"] = images(case_image(name), return_tensors="pt")["pixel_values"].contiguous()
    images = SiglipImageProcessor(size={"height": 16, "width": 16}, image_seq_length=16)
    processor = PaliGemmaProcessor(images, tokenizer)
    for name, (prompt, answer) in PROMPTS.items():
        made = processor(images=[case_image("exact")], text=["<image>" + prompt], suffix=[answer])
        results[f"{name}.ids"] = torch.tensor(made["input_ids"][0])
        results[f"{name}.types"] = torch.tensor(made["token_type_ids"][0])
    save_file(results, folder / "results.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
