"""LoRA reaches what it is told to, starts as nothing, learns alone, merges exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.parity.lfm2_peer import random_image, tiny_config
from tests.tiny_model import random_model
from vlmtune.adapters.layer import LoraLinear, merged
from vlmtune.adapters.plan import apply_adapter, base_parameters, count_trainable, fold, trainable_parameters
from vlmtune.config.schema import AdapterSection
from vlmtune.errors import AdapterError
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.registry import KNOWN_CONFIGS
from vlmtune.models.tree import Level

pytestmark = pytest.mark.unit

ROLES = ["attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp"]
IMAGES = [random_image([(4, 4)], 1), random_image([(2, 4)], 2)]


def run(model: Lfm2Vl) -> Tensor:
    """float32[N, V]: logits of two prompts, each with an image."""
    features = model.encode_images(IMAGES)
    ids, lengths = [], []
    for image, tokens in zip(IMAGES, ([7, 8, 9], [10, 11]), strict=True):
        ids += [6, *[model.image_token_id] * image.num_tokens, *tokens]
        lengths.append(1 + image.num_tokens + len(tokens))
    rows = Level.chains(lengths, read_last=lengths)
    embedded = model.embed(torch.tensor(ids), features)
    return model.logits(model.decode(embedded, [rows]).hidden)


def loss_of(model: Lfm2Vl) -> Tensor:
    return run(model).log_softmax(-1)[:, 3].sum().neg()


def disturb(model: nn.Module) -> None:
    """Make every B something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_B.normal_(std=0.05)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_trainable_parameters_of_3b_runs_are_exact() -> None:
    config = KNOWN_CONFIGS["LiquidAI/LFM2-VL-3B"]
    trainable, total = count_trainable(config, AdapterSection(targets=["q_proj", "k_proj", "v_proj"], rank=16))
    assert trainable == 8 * 147_456 + 27 * 110_592 == 4_165_632
    assert 2.9e9 < total < 3.1e9


@pytest.mark.parametrize(
    ("role", "layers"),
    [("attention", 8), ("mlp", 21), ("conv", 10), ("connector", 2), ("vision_attention", 12), ("vision_mlp", 6)],
)
def test_role_matches_its_layers_and_no_others(role: str, layers: int) -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(targets=[role], rank=2))
    assert len(plan.lora) == len(plan.matches[0].layers) == layers
    tower = {"connector": "connector", "vision_attention": "vision tower", "vision_mlp": "vision tower"}
    assert plan.matches[0].towers == {tower.get(role, "decoder"): layers}
    assert plan.touches_vision == role.startswith("vision")


def test_roles_match_every_linear_layer_but_patch_embedding() -> None:
    model = random_model()
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    plan = apply_adapter(model, AdapterSection(targets=ROLES))
    assert linear - set(plan.lora) == {"model.vision_tower.embeddings.patch_embedding"}


def test_a_raw_name_matches_in_every_tower_as_peft_does() -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(targets=["q_proj", "layers.0.conv.out_proj"]))
    assert plan.matches[0].towers == {"vision tower": 3, "decoder": 2}
    assert plan.matches[1].layers == ("model.language_model.layers.0.conv.out_proj",)


def test_a_layer_matched_twice_is_wrapped_and_counted_once() -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(targets=["attention", "q_proj"], rank=2))
    assert sum(match.num_trainable for match in plan.matches) == plan.num_trainable
    assert all(not list(layer.children()) for layer in plan.lora.values())


def test_unmatched_targets_are_refused_with_known_layers() -> None:
    with pytest.raises(AdapterError) as caught:
        apply_adapter(random_model(), AdapterSection(targets=["q_proj", "o_proj", "gate_proj", "embed_tokens"]))
    message = str(caught.value)
    assert "'o_proj', 'gate_proj', 'embed_tokens' match no layer" in message
    assert "'q_proj'" not in message
    assert "w1 (7)" in message and "vision_mlp" in message
    assert "not a linear layer but Embedding" in message


def test_part_of_a_name_is_not_a_match() -> None:
    with pytest.raises(AdapterError, match="'proj' matches no layer"):
        apply_adapter(random_model(), AdapterSection(targets=["proj"]))


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (AdapterSection(targets=[], parts=[]), "nothing to train"),
        (AdapterSection(parts=["projector"]), "Unknown part 'projector'"),
        (AdapterSection(targets=["connector"], parts=["connector"]), "trained in full"),
        (AdapterSection(targets=["mlp"], learning_rate_factors={"conv": 0.5}), "role or part that learns 'conv'"),
    ],
)
def test_contradictory_sections_are_refused(section: AdapterSection, told: str) -> None:
    with pytest.raises(AdapterError, match=told):
        apply_adapter(random_model(), section)


def test_a_second_adapter_is_refused() -> None:
    model = random_model()
    apply_adapter(model, AdapterSection(targets=["mlp"]))
    with pytest.raises(AdapterError, match="already has an adapter"):
        apply_adapter(model, AdapterSection(targets=["attention"]))


def test_start_is_bit_equal_to_base_with_its_names() -> None:
    model = random_model()
    with torch.no_grad():
        base = run(model)
        names = set(dict(model.named_parameters()))
        apply_adapter(model, AdapterSection(targets=ROLES))
        assert torch.equal(run(model), base)
    assert set(base_parameters(model)) == names


def test_the_start_is_seeded() -> None:
    first, second, third = random_model(), random_model(), random_model()
    for model, seed in ((first, 3), (second, 3), (third, 4)):
        apply_adapter(model, AdapterSection(targets=["mlp"]), seed=seed)
    a, b, c = (trainable_parameters(model) for model in (first, second, third))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_the_start_is_kaiming_uniform_with_a_zero_b() -> None:
    plan = apply_adapter(random_model(), AdapterSection(targets=["w2"], rank=16))
    for layer in plan.lora.values():
        bound = layer.in_features**-0.5
        assert layer.lora_B.abs().max() == 0
        assert 0.9 * bound < layer.lora_A.abs().max() <= bound


@pytest.mark.parametrize("rslora", [False, True])
def test_scale_is_alpha_over_rank_or_its_root(rslora: bool) -> None:
    plan = apply_adapter(random_model(), AdapterSection(targets=["w1"], rank=4, alpha=6, rslora=rslora))
    assert next(iter(plan.lora.values())).scale == (3.0 if rslora else 1.5)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(targets=ROLES, rank=2))
    disturb(model)
    loss_of(model).backward()
    for name, parameter in plan.parameters.items():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_gradients_equal_those_of_plain_weights() -> None:
    """dL/dB of W + s·B·A is s · dL/dW · Aᵀ, and likewise for A."""
    model, plain = random_model(), random_model()
    plan = apply_adapter(model, AdapterSection(targets=ROLES, rank=3, alpha=5))
    disturb(model)
    with merged(model), torch.no_grad():
        for name, parameter in base_parameters(model).items():
            plain.get_parameter(name).copy_(parameter)
    loss_of(model).backward()
    loss_of(plain).backward()
    for name, layer in plan.lora.items():
        full = plain.get_parameter(f"{name}.weight").grad
        assert full is not None and layer.lora_A.grad is not None and layer.lora_B.grad is not None
        expected_b, expected_a = layer.scale * full @ layer.lora_A.T, layer.scale * layer.lora_B.T @ full
        assert (layer.lora_B.grad - expected_b).norm() < 1e-4 * expected_b.norm(), name
        assert (layer.lora_A.grad - expected_a).norm() < 1e-4 * expected_a.norm(), name


def test_only_the_plans_parameters_move_in_steps() -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(targets=["attention", "vision_mlp"], parts=["connector"]))
    before = snapshot(model)
    optimizer = torch.optim.AdamW(plan.parameter_groups(1e-2), weight_decay=0.1)
    plan.attach(optimizer)
    for _ in range(2):
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = snapshot(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(plan.parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_answers_as_unmerged_and_gives_every_bit_back(dtype: torch.dtype) -> None:
    model = random_model().to(dtype)
    plan = apply_adapter(model, AdapterSection(targets=ROLES))
    disturb(model)
    before = snapshot(model)
    with torch.inference_mode():
        apart = run(model)
        with merged(model):
            together = run(model)
            assert all(layer.is_merged for layer in plan.lora.values())
        again = run(model)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    assert (together - apart).norm() < tolerance * apart.norm()
    assert torch.equal(apart, again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model).items())
    loss_of(model).backward()  # and training goes on


def test_merged_restores_after_an_error_and_nests() -> None:
    model = random_model()
    apply_adapter(model, AdapterSection(targets=["mlp"]))
    disturb(model)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="stop"), merged(model), merged(model):
        raise RuntimeError("stop")
    assert all(torch.equal(tensor, before[name]) for name, tensor in snapshot(model).items())


def test_folding_leaves_a_plain_model_with_the_same_answers() -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(targets=ROLES))
    disturb(model)
    with torch.no_grad():
        apart = run(model)
        fold(model, plan)
        assert (run(model) - apart).norm() < 1e-5 * apart.norm()
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert not trainable_parameters(model)
    assert set(snapshot(model)) == set(snapshot(random_model()))


def test_dropout_acts_in_training_only_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(8, 4), 2, 1.0, 0.5, torch.Generator().manual_seed(0))
    nn.init.normal_(layer.lora_B)
    x = torch.randn(1, 8)
    with torch.no_grad():
        expected = layer.eval()(x)
        assert torch.equal(layer(x), expected)
        layer.train()
        draws = layer(x.expand(20_000, 8))
        assert draws.std(0).min() > 0
        assert (draws.mean(0) - expected[0]).abs().max() < 0.05
        base = nn.functional.linear(x, layer.weight, layer.bias)
        layer.scale = 0.0
        assert torch.equal(layer(x), base)  # the frozen branch sees every input


PARTS: dict[str, Any] = {
    "connector": ["model.multi_modal_projector."],
    "vision_tower": ["model.vision_tower."],
    "embeddings": ["model.language_model.embed_tokens."],
    "language_model": ["model.language_model.layers.", "model.language_model.embedding_norm."],
    "everything": ["model."],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_trained_whole_and_alone(part: str) -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(parts=[part]))
    expected = {name for name in snapshot(model) if name.startswith(tuple(PARTS[part]))}
    assert set(trainable_parameters(model)) == set(plan.parameters) == expected
    loss_of(model).backward()
    zero = [name for name, parameter in plan.parameters.items() if parameter.grad is None or not parameter.grad.any()]
    # Attention is blind to a constant added to all keys, so this gradient is zero but for rounding.
    assert all(name.endswith("k_proj.bias") for name in zero)


def test_every_part_belongs_to_the_count() -> None:
    whole, total = count_trainable(tiny_config(), AdapterSection(parts=["everything"]))
    assert whole == total == sum(parameter.numel() for parameter in random_model().parameters())
    parts = ["connector", "vision_tower", "embeddings", "language_model"]
    assert count_trainable(tiny_config(), AdapterSection(parts=parts))[0] == total


def test_parts_under_bfloat16_learn_in_float32_and_are_written_back() -> None:
    model = random_model().to(torch.bfloat16)
    plan = apply_adapter(model, AdapterSection(targets=["mlp"], parts=["connector"]))
    assert {parameter.dtype for parameter in plan.parameters.values()} == {torch.float32}
    before = snapshot(model)
    # Steps far below bfloat16's last digit: alone each would be lost.
    optimizer = torch.optim.SGD(plan.parameter_groups(1.0))
    plan.attach(optimizer)
    name = "model.multi_modal_projector.linear_2.weight"
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        assert model.get_parameter(name).grad is None  # moved to the master
        master = plan.parameters[name]
        assert master.grad is not None
        master.grad.fill_(1e-4)
        optimizer.step()
    assert torch.allclose(plan.parameters[name], before[name].float() - 3e-4, atol=1e-6)
    assert torch.equal(model.get_parameter(name), plan.parameters[name].bfloat16())


def test_gradients_of_micro_batches_add_up_in_the_masters() -> None:
    model = random_model().to(torch.bfloat16)
    plan = apply_adapter(model, AdapterSection(parts=["connector"]))
    master = plan.parameters["model.multi_modal_projector.linear_2.weight"]
    loss_of(model).backward()
    assert master.grad is not None
    once = master.grad.clone()
    loss_of(model).backward()
    assert torch.equal(master.grad, once * 2)


def test_learning_rates_follow_roles_also_under_a_raw_name() -> None:
    model = random_model()
    factors = {"vision_attention": 0.1, "connector": 0.5}
    section = AdapterSection(targets=["q_proj", "mlp"], parts=["connector"], learning_rate_factors=factors)
    plan = apply_adapter(model, section)
    rates: dict[str, set[float]] = {}
    counted = 0
    by_identity = {id(parameter): name for name, parameter in plan.parameters.items()}
    for group in plan.parameter_groups(2.0):
        for parameter in group["params"]:
            rates.setdefault(by_identity[id(parameter)].split(".")[1], set()).add(group["lr"])
            counted += 1
    assert rates == {"vision_tower": {0.2}, "language_model": {2.0}, "multi_modal_projector": {1.0}}
    assert counted == len(plan.parameters)


def test_vectors_do_not_decay() -> None:
    model = random_model()
    plan = apply_adapter(model, AdapterSection(parts=["connector"]))
    for group in plan.parameter_groups(1.0):
        assert all((parameter.dim() <= 1) == (group.get("weight_decay") == 0.0) for parameter in group["params"])


def test_training_under_autocast_runs_and_learns() -> None:
    model = random_model().train()
    plan = apply_adapter(model, AdapterSection(targets=ROLES, dropout=0.1))
    disturb(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in plan.parameters.values())
