"""Our image processing and prompts against transformers' PaliGemmaProcessor: every value and token equal."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity.images_peer import PEERS
from tests.parity.paligemma_processor_peer import CASES, PROMPTS, case_image
from tests.tiny_paligemma import gemma_tokenizer
from vlmtune.config.schema import TaskSection
from vlmtune.models.paligemma.images import PaliGemmaImageProcessor, PaliGemmaImageSettings
from vlmtune.records import ImageSource
from vlmtune.text.prompt import PromptBuilder
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
    return gemma_tokenizer()


@pytest.fixture(scope="module")
def peer(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("paligemma_peer")
    tokenizer.save(folder)
    script = Path(__file__).with_name("paligemma_processor_peer.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(folder / "results.safetensors")


@pytest.mark.parametrize("name", [name for name in CASES if name != "transparent"])
def test_every_value_of_a_image_equals_transformers(name: str, peer: dict[str, Tensor]) -> None:
    _, _, size, patch, changes = CASES[name]
    side = size // patch
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
    ours = PaliGemmaImageProcessor(PaliGemmaImageSettings(size=size, image_seq_length=side**2, **settings))
    made = ours.process(case_image(name))
    ((patches, grid),) = made.tiles
    # Cut as transformers' strided convolution cuts.
    theirs = torch.nn.functional.unfold(peer[f"{name}.pixels"], patch, stride=patch)[0].T
    assert grid == (side, side) and made.num_tokens == side**2 and made.text == "<image>" * side**2
    assert torch.equal(patches, theirs)


def test_a_transparent_image_lies_over_white_as_in_transformers(peer: dict[str, Tensor], tmp_path: Path) -> None:
    case_image("transparent").save(tmp_path / "image.png")
    opened = ImageSource(path=tmp_path / "image.png", name="image").open()
    ((patches, _),) = PaliGemmaImageProcessor().process(opened).tiles
    theirs = torch.nn.functional.unfold(peer["transparent.pixels"], 14, stride=14)[0].T
    # Pillow blends on whole levels and transformers on fractions: a level apart here and there, of 127.5 a unit.
    assert (patches - theirs).abs().max().item() < 2.5 / 127.5


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_and_answer_are_transformers_tokens(name: str, peer: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    prompt, answer = PROMPTS[name]
    builder = PromptBuilder(tokenizer, TaskSection(user_prompt=prompt), None)
    ours = builder.build(None, "<image>" * 16)
    target = builder.answer_tokens(answer)
    assert ours.ids + target == peer[f"{name}.ids"].tolist()
    assert [0] * len(ours.ids) + [1] * len(target) == peer[f"{name}.types"].tolist()
    assert sum(ours.image_mask) == 16
    assert tokenizer.decode(target, skip_special_tokens=True) == answer
