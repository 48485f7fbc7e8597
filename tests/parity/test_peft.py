"""PEFT loads our adapters onto transformers' model with the same logits, and we load PEFT's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

from tests.parity.lfm2_peer import IMAGE_TOKEN, build_pair, peer_pixels, random_image
from tests.parity.random_trees import RandomBatch, batches, peer_loss, relaxed, samples_of
from tests.parity.tolerances import GRADIENT, LOSS, MODEL
from vlmtune.adapters.connector_swap import install_connector, wanted_shape
from vlmtune.adapters.peft_files import load_adapter, save_adapter
from vlmtune.adapters.plan import AdapterPlan, apply_adapter
from vlmtune.config.schema import AdapterSection, ConnectorSection
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.tree import Level
from vlmtune.train.step import plan_step, run

pytestmark = pytest.mark.parity

IMAGE = random_image([(4, 4), (2, 4)], 1)
IDS = [6, *[IMAGE_TOKEN] * IMAGE.num_tokens, 11, 12, 13, 14]

SECTIONS = {
    "roles": AdapterSection(
        targets=["attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp"], rank=3, alpha=7
    ),
    "rslora": AdapterSection(targets=["q_proj", "w2"], rank=4, alpha=4, rslora=True),
    "role that is one tower's": AdapterSection(targets=["attention"], rank=2),
    "connector whole": AdapterSection(targets=["mlp"], parts=["connector"], rank=2),
    "tower whole": AdapterSection(targets=["mlp"], parts=["vision_tower"], rank=2),
    "embeddings whole": AdapterSection(targets=["mlp"], parts=["embeddings"], rank=2),
    "decoder whole": AdapterSection(targets=["vision_mlp"], parts=["language_model"], rank=2),
    "parts alone": AdapterSection(parts=["connector"]),
    "everything": AdapterSection(parts=["everything"]),
}


def our_logits(model: Lfm2Vl) -> Tensor:
    rows = Level.chains([len(IDS)], read_last=[len(IDS)])
    embedded = model.embed(torch.tensor(IDS), model.encode_images([IMAGE]))
    return model.logits(model.decode(embedded, [rows]).hidden)


def peer_logits(peer: Any) -> Tensor:
    logits: Tensor = peer(input_ids=torch.tensor([IDS]), **peer_pixels([IMAGE])).logits[0]
    return logits


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def disturb(plan: AdapterPlan) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in plan.parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize("kind", SECTIONS)
def test_peft_loads_ours_with_the_same_logits(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    peer, ours = build_pair()
    with torch.no_grad():
        before = our_logits(ours)
        plan = apply_adapter(ours, SECTIONS[kind])
        disturb(plan)
        save_adapter(tmp_path, ours, plan, "")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = PeftModel.from_pretrained(peer, tmp_path)
        theirs, after = peer_logits(loaded.eval()), our_logits(ours)
    assert relative_error(after, before) > 0.01
    assert relative_error(after, theirs) < MODEL
    told = [str(warning.message) for warning in caught]
    assert not [text for text in told if "missing" in text.lower() or "unexpected" in text.lower()]


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "w1", "in_proj", "linear_1", "fc2"], "r": 3, "lora_alpha": 7},
        {"target_modules": ["out_proj"], "r": 4, "lora_alpha": 4, "use_rslora": True},
        {"target_modules": r".*language_model.*\.(q_proj|w2)", "r": 2, "lora_alpha": 2},
        {
            "target_modules": ["q_proj", "w3"],
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {"w3": 2},
            "alpha_pattern": {"layers.0.feed_forward.w3": 5},
        },
        {"target_modules": ["w1"], "r": 2, "modules_to_save": ["multi_modal_projector"]},
        {"target_modules": ["w1"], "r": 2, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
)
def test_we_load_pefts_with_the_same_logits(options: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    peer, ours = build_pair()
    adapted = get_peft_model(peer, LoraConfig(init_lora_weights=False, **options)).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
        adapted.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
        before = our_logits(ours)
        plan = load_adapter(tmp_path / "theirs", ours)
        assert relative_error(our_logits(ours), before) > 0.01
        assert relative_error(our_logits(ours), peer_logits(adapted)) < MODEL

        # And once round: what we save of theirs is theirs.
        save_adapter(tmp_path / "ours", ours, plan, "")
        _, again = build_pair()
        load_adapter(tmp_path / "ours", again)
        assert torch.equal(our_logits(again), our_logits(ours))


@pytest.mark.parametrize("max_answers", [1, 3])
def test_lora_gradients_over_random_trees_equal_pefts_over_whole_samples(max_answers: int, tmp_path: Path) -> None:
    from peft import PeftModel

    peer, ours = build_pair()
    plan = apply_adapter(ours, SECTIONS["roles"])
    disturb(plan)
    save_adapter(tmp_path, ours, plan, "")
    loaded = PeftModel.from_pretrained(peer, tmp_path, is_trainable=True).train()
    theirs = {name: parameter for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert len(theirs) == len(plan.parameters)

    @relaxed
    @given(batches(max_answers))
    def check(batch: RandomBatch) -> None:
        prefix, drawn = batch
        expected = peer_loss(loaded, prefix, drawn)
        expected.backward()
        samples, features = samples_of(ours, drawn)
        loss = run(ours, plan_step(ours, prefix, samples), features)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=LOSS)
        largest = max(gradient(parameter).abs().max().item() for parameter in theirs.values())
        for name, parameter in plan.parameters.items():
            layer, _, leaf = name.rpartition(".")
            wanted = gradient(theirs[f"base_model.model.{layer}.{leaf}.default.weight"])
            error = (gradient(parameter) - wanted).abs().max().item()
            assert error <= max(GRADIENT * wanted.abs().max().item(), 1e-6 * largest), name
        for each in (*theirs.values(), *plan.parameters.values()):
            each.grad = None

    check()


def gradient(parameter: Tensor) -> Tensor:
    """Zero where the loss does not depend on it, as with the keys of a prompt of one token."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def test_the_count_equals_pefts() -> None:
    from peft import LoraConfig, get_peft_model

    peer, ours = build_pair()
    targets = ["q_proj", "k_proj", "v_proj", "w1"]
    plan = apply_adapter(ours, AdapterSection(targets=targets, rank=5))
    adapted = get_peft_model(peer, LoraConfig(r=5, target_modules=targets))
    assert plan.num_trainable == adapted.get_nb_trainable_parameters()[0]


def test_peft_refuses_an_adapter_whose_connector_it_would_lose(tmp_path: Path) -> None:
    from peft import PeftModel

    peer, ours = build_pair()
    connector = install_connector(ours, wanted_shape(ConnectorSection(kind="dense"), ours))
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.normal_()
    plan = apply_adapter(ours, AdapterSection(targets=["mlp"], parts=["connector"], rank=2))
    save_adapter(tmp_path, ours, plan, "base")
    with pytest.raises((KeyError, ValueError), match="VLMTUNE_CONNECTOR"):
        PeftModel.from_pretrained(peer, str(tmp_path))
