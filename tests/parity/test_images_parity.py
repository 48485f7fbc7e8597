"""Our image processing against transformers' Lfm2VlProcessor: patches, shapes, tokens, all equal bit for bit."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.images_peer import PEERS, cases, make_image
from tiny.tokenizer import train_tokenizer
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings
from vlmtune.text.tokenizer import Tokenizer

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(
        not (PEERS / "torchvision").is_dir() or importlib.util.find_spec("transformers") is None,
        reason=f"the peer needs transformers, and torchvision in {PEERS} (the command is in images_peer.py)",
    ),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["an image"], vocab_size=1000, max_tile_grid=24)


@pytest.fixture(scope="module")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("images_peer")
    tokenizer.save(folder)
    script = Path(__file__).with_name("images_peer.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "results.safetensors")


@pytest.mark.parametrize("name", cases())
def test_every_value_and_token_equals_transformers(name: str, peer: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    (height, width), values = cases()[name]
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    ours = Lfm2VlImageProcessor(Lfm2VlImageSettings(**settings)).process(make_image(height, width))
    assert [list(shape) for _, shape in ours.tiles] == peer[f"{name}.spatial_shapes"].tolist()
    for (patches, (rows, columns)), theirs in zip(ours.tiles, peer[f"{name}.pixel_values"], strict=True):
        # Not by its mask, which is too short for a strip that exceeds the most tokens.
        assert torch.equal(patches, theirs[: rows * columns])
    assert tokenizer.encode(ours.text) == peer[f"{name}.input_ids"][0].tolist()
    assert ours.num_tokens == int((peer[f"{name}.input_ids"] == tokenizer.image_token_id).sum())
