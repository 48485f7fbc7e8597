"""PaliGemma's files go both ways between vlmtune and transformers, in every spelling that they have had."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity.paligemma_peer import Generation, build_pair, peer_logits, prompt_ids, random_ids, random_image
from tests.parity.test_paligemma import both, our_logits, relative_error
from tests.parity.tolerances import MODEL
from tests.tiny_paligemma import write_tiny_paligemma
from vlmtune.adapters.layer import merged
from vlmtune.adapters.plan import apply_adapter, base_parameters
from vlmtune.config.schema import AdapterSection
from vlmtune.errors import WeightsError
from vlmtune.models.paligemma import PaliGemma
from vlmtune.models.registry import PALIGEMMA, build_on_meta, open_model, read_config
from vlmtune.models.weights import load_strict, read_checkpoint, save_hf

pytestmark = pytest.mark.parity

PROMPT, ANSWER = prompt_ids(4, 1), random_ids(3, 2)
IMAGE, PIXELS = random_image(3)


def load_ours(folder: Path) -> PaliGemma:
    model = build_on_meta(read_config(folder))
    assert isinstance(model, PaliGemma)
    load_strict(model, read_checkpoint(folder), PALIGEMMA.names, origin=str(folder))
    return model.eval()


def ours_and_theirs(ours: PaliGemma, peer: torch.nn.Module) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        theirs: Tensor = peer_logits(peer, PROMPT, ANSWER, PIXELS).logits[0]
        return our_logits(ours, PROMPT, ANSWER, ours.encode_images([IMAGE])), theirs


def hub(name: str) -> str:
    """The hub's first files: no outer prefix, the decoder with its head inside, one more module around the tower."""
    name = re.sub(r"^model\.vision_tower\.", "vision_tower.vision_model.", name)
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return re.sub(r"^model\.", "", name)


def wrapped_tower(name: str) -> str:
    """transformers 4.52 to 4.57: the outer prefix, and still the module around the tower."""
    return re.sub(r"^model\.vision_tower\.", "model.vision_tower.vision_model.", name)


def current(name: str) -> str:
    """transformers' modules today, which are ours."""
    return name


@both
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_we_load_what_transformers_saves(generation: Generation, shard: str, tmp_path: Path) -> None:
    peer, _ = build_pair(generation)
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "40KB")
    assert relative_error(*ours_and_theirs(load_ours(tmp_path), peer)) < MODEL


@both
@pytest.mark.parametrize("spell", [hub, wrapped_tower, current])
@pytest.mark.parametrize("has_head", [False, True])
def test_every_spelling_of_the_names_loads(
    generation: Generation, spell: Callable[[str], str], has_head: bool, tmp_path: Path
) -> None:
    peer, ours = build_pair(generation)
    save_hf(tmp_path / "m", ours, ours.config_dict())
    file = tmp_path / "m" / "model.safetensors"
    tensors = {spell(name): tensor for name, tensor in load_file(file).items()}
    if has_head:
        head = "language_model.lm_head.weight" if spell is hub else "lm_head.weight"
        tensors[head] = ours.model.language_model.embed_tokens.weight.detach().clone()
    save_file(tensors, file, {"format": "pt"})
    assert relative_error(*ours_and_theirs(load_ours(tmp_path / "m"), peer)) < MODEL


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    _, ours = build_pair(2)
    save_hf(tmp_path / "m", ours, ours.config_dict())
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.language_model.layers.1.pre_feedforward_layernorm.weight"]
    tensors["model.language_model.layers.1.extra.weight"] = torch.zeros(3)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(WeightsError) as told:
        load_ours(tmp_path / "m")
    assert "missing: model.language_model.layers.1.pre_feedforward_layernorm.weight [32]" in str(told.value)
    assert "extra: model.language_model.layers.1.extra.weight [3]" in str(told.value)


def test_a_head_apart_from_the_embedding_is_refused(tmp_path: Path) -> None:
    _, ours = build_pair(1)
    save_hf(tmp_path / "m", ours, ours.config_dict())
    file = tmp_path / "m" / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.zeros(97, 32)}, file, {"format": "pt"})
    with pytest.raises(WeightsError, match="separate output head"):
        load_ours(tmp_path / "m")


@both
@pytest.mark.parametrize("is_adapted", [False, True])
def test_transformers_loads_what_we_save_strictly(generation: Generation, is_adapted: bool, tmp_path: Path) -> None:
    from transformers import PaliGemmaForConditionalGeneration

    _, ours = build_pair(generation)
    if is_adapted:
        plan = apply_adapter(ours, AdapterSection(targets=["attention", "mlp", "connector"], rank=3))
        torch.manual_seed(2)
        with torch.no_grad():
            for parameter in plan.parameters.values():
                parameter.normal_(std=0.1)
    with merged(ours):
        save_hf(tmp_path / "m", ours, ours.config_dict(), tensors=base_parameters(ours))
    peer, told = PaliGemmaForConditionalGeneration.from_pretrained(
        tmp_path / "m", output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert relative_error(*ours_and_theirs(ours, peer.eval())) < MODEL


@both
def test_the_auto_classes_open_our_whole_folder(generation: Generation, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

    folder = write_tiny_paligemma(tmp_path / "m", generation)
    opened = open_model(str(folder))
    assert AutoConfig.from_pretrained(folder).model_type == "paligemma"
    assert type(AutoModelForImageTextToText.from_pretrained(folder)).__name__ == "PaliGemmaForConditionalGeneration"
    text = "detect cat <loc0012><seg007>\n"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(text, add_special_tokens=False).input_ids == opened.tokenizer.encode(text)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == opened.tokenizer.end_id
    assert not (folder / "chat_template.jinja").exists()
