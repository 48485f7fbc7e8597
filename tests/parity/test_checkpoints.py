"""Files go both ways between vlmtune and transformers: what one saves, the other loads with the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.parity.lfm2_peer import build_pair
from tests.parity.test_peft import our_logits, peer_logits, relative_error
from tests.parity.tolerances import MODEL
from tests.tiny_model import write_tiny_folder
from vlmtune.adapters.layer import merged
from vlmtune.adapters.plan import apply_adapter, base_parameters
from vlmtune.config.schema import AdapterSection
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.registry import LFM2_VL, open_model, read_config
from vlmtune.models.weights import load_strict, read_checkpoint, save_hf

pytestmark = pytest.mark.parity


def _load_ours(folder: Path) -> Lfm2Vl:
    with torch.device("meta"):
        model = Lfm2Vl(Lfm2VlConfig.from_dict(read_config(folder)))
    load_strict(model, read_checkpoint(folder), LFM2_VL.names)
    return model.eval()


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_we_load_what_transformers_saves(shard: str, tmp_path: Path) -> None:
    peer, _ = build_pair()
    peer.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    with torch.no_grad():
        assert relative_error(our_logits(_load_ours(tmp_path)), peer_logits(peer)) < MODEL


@pytest.mark.parametrize("max_shard_bytes", [5_000_000_000, 20_000])
def test_transformers_loads_what_we_save_strictly(max_shard_bytes: int, tmp_path: Path) -> None:
    from transformers import Lfm2VlForConditionalGeneration

    _, ours = build_pair()
    save_hf(tmp_path / "m", ours, ours.config_dict(), max_shard_bytes=max_shard_bytes)
    peer, told = Lfm2VlForConditionalGeneration.from_pretrained(
        tmp_path / "m", output_loading_info=True, dtype=torch.float32
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert relative_error(our_logits(ours), peer_logits(peer.eval())) < MODEL


def test_transformers_loads_a_merged_model(tmp_path: Path) -> None:
    from transformers import Lfm2VlForConditionalGeneration

    _, ours = build_pair()
    plan = apply_adapter(ours, AdapterSection(targets=["attention", "mlp", "conv", "connector"], rank=3))
    torch.manual_seed(2)
    with torch.no_grad():
        base = our_logits(ours)
        for parameter in plan.parameters.values():
            parameter.normal_(std=0.1)
        with merged(ours):
            save_hf(tmp_path / "m", ours, ours.config_dict(), tensors=base_parameters(ours))
        peer = Lfm2VlForConditionalGeneration.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
        assert relative_error(our_logits(ours), base) > 0.01
        assert relative_error(our_logits(ours), peer_logits(peer)) < MODEL


def test_the_auto_classes_open_our_whole_folder(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

    folder = write_tiny_folder(tmp_path / "m")
    opened = open_model(str(folder))
    assert AutoConfig.from_pretrained(folder).model_type == "lfm2_vl"
    assert type(AutoModelForImageTextToText.from_pretrained(folder)).__name__ == "Lfm2VlForConditionalGeneration"
    text = "a red square"
    assert AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False).input_ids == opened.tokenizer.encode(
        text
    )
    assert GenerationConfig.from_pretrained(folder).eos_token_id == opened.config["text_config"]["eos_token_id"]
    stored = json.loads((folder / "config.json").read_text())
    assert stored["model_type"] == "lfm2_vl" and stored["dtype"] == "float32"
