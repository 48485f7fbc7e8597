"""Connectors: a zero-started one changes no bit, shapes and tokens follow the file, and what was trained comes back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tiny_model import write_tiny_folder
from tests.tiny_paligemma import write_tiny_paligemma
from vlmtune.adapters.connector_swap import connector_is_exportable, wanted_shape
from vlmtune.adapters.peft_files import load_adapter, save_adapter
from vlmtune.adapters.plan import apply_adapter, count_trainable
from vlmtune.config import defaults
from vlmtune.config.load import load_experiment
from vlmtune.config.schema import AdapterSection, ConnectorSection, Experiment
from vlmtune.errors import AdapterError, ConfigError
from vlmtune.models.connectors import STI_POOL, Connector, ConnectorShape, build_connector, default_groups
from vlmtune.models.registry import OpenedModel, build_on_meta, open_model
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.runs.open import open_adapted, put_connector

pytestmark = pytest.mark.unit

KINDS = [
    ConnectorSection(kind="dense"),
    ConnectorSection(kind="dense", variant="sci"),
    ConnectorSection(kind="dense", variant="sti"),
    ConnectorSection(kind="linear"),
    ConnectorSection(kind="mlp"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_paligemma(tmp_path_factory.mktemp("model") / "paligemma", generation=2)


@pytest.fixture(params=["lfm2_vl", "paligemma"])
def either(request: pytest.FixtureRequest) -> Path:
    """A base of either family: an mlp trunk with a norm, or a linear one."""
    found: Path = request.getfixturevalue("folder" if request.param == "lfm2_vl" else "paligemma")
    return found


def make_image(width: int = 24, height: int = 16) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(width), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


@torch.no_grad()
def logits(opened: OpenedModel, images: list[Image.Image]) -> list[Tensor]:
    """Of every row of a prompt around each image."""
    processed = [opened.processor.process(image) for image in images]
    found = []
    for image, features in zip(processed, opened.model.encode_images(processed), strict=True):
        assert len(features) == image.num_tokens
        ids = opened.tokenizer.encode(f"a red{image.text}square")
        embeddings = opened.model.embed(torch.tensor(ids), [features])
        whole = [len(ids)] if opened.model.bidirectional_prompt else None
        rows = Level.chains([len(ids)], read_last=len(ids), bidirectional=whole)
        hidden = opened.model.decode(embeddings, [rows]).hidden
        found.append(opened.model.logits(hidden))
    return found


@pytest.mark.parametrize("variant", ["dci", "sci"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dense_connector_starts_bit_equal_to_the_pretrained_model(either: Path, variant: str, dtype: str) -> None:
    images = [make_image(24, 16), make_image(40, 40), make_image(16, 16)]
    plain, dense = open_model(str(either), dtype=dtype), open_model(str(either), dtype=dtype)
    put_connector(dense, ConnectorSection.model_validate({"kind": "dense", "variant": variant}))
    assert dense.model.connector.dense is not None
    for expected, found in zip(logits(plain, images), logits(dense, images), strict=True):
        assert torch.equal(expected, found)


def test_the_new_channels_of_a_dense_connector_are_read(either: Path) -> None:
    opened = open_model(str(either))
    put_connector(opened, ConnectorSection(kind="dense"))
    before = logits(opened, [make_image()])[0]
    dense = opened.model.connector.dense
    assert dense is not None
    with torch.no_grad():
        dense.weight.add_(0.1)
    assert not torch.allclose(before, logits(opened, [make_image()])[0], atol=1e-3)


def test_a_zero_start_learns_at_once(either: Path) -> None:
    opened = open_model(str(either))
    put_connector(opened, ConnectorSection(kind="dense"))
    image = opened.processor.process(make_image())
    opened.model.encode_images([image])[0].square().sum().backward()
    dense = opened.model.connector.dense
    assert dense is not None and dense.weight.grad is not None
    # Every group of every square's patch gets a gradient.
    assert (dense.weight.grad.abs().amax(0) > 0).all()


def test_dense_channels_are_means_of_the_named_layers(folder: Path) -> None:
    opened = open_model(str(folder))
    put_connector(opened, ConnectorSection(kind="dense", groups=["0-1", "2"]))
    image = opened.processor.process(make_image())
    tower, (patches, grid) = opened.model.get_submodule("model.vision_tower"), image.tiles[0]
    states: list[Tensor] = []
    with torch.no_grad():
        output = tower(patches[None], grid, states)
        first = tower.post_layernorm((states[0] + states[1]) / 2)
        expected = torch.cat([output, first, tower.post_layernorm(states[2])], -1)[0]
        found = opened.model.tower_features([image])[0].patches[: len(patches)]
    torch.testing.assert_close(found, expected)


def test_default_layers_are_the_papers_or_halves() -> None:
    assert default_groups("dci", 27) == ((0, 12), (13, 25))
    assert default_groups("dci", 12) == ((0, 5), (6, 11))
    assert default_groups("dci", 1) == ((0, 0), (1, 1))
    assert default_groups("sci", 27) == default_groups("sti", 24) == ((7, 7), (15, 15))
    assert default_groups("sti", 12) == ((4, 4), (8, 8))


def test_sti_appends_means_of_eight_tokens_and_the_prompt_follows(either: Path) -> None:
    plain, sti = open_model(str(either)), open_model(str(either))
    put_connector(sti, ConnectorSection(kind="dense", variant="sti"))
    for size in ((16, 16), (24, 16), (64, 40), (90, 200)):
        before, after = plain.processor.process(make_image(*size)), sti.processor.process(make_image(*size))
        own = [rows * columns // plain.model.connector.shape.factor**2 for _, (rows, columns) in before.tiles]
        assert after.num_tokens == sum(count + 2 * -(-count // STI_POOL) for count in own)
        assert after.text.count("<image>") == after.num_tokens == len(sti.model.encode_images([after])[0])
        assert after.text.replace("<image>", "") == before.text.replace("<image>", "")
    # The tower's own tokens come first and are the pretrained ones.
    image = plain.processor.process(make_image())
    count = image.num_tokens
    assert torch.equal(plain.model.encode_images([image])[0], sti.model.encode_images([image])[0][:count])


def test_a_shorter_rest_of_pooled_tokens_is_their_mean() -> None:
    shape = ConnectorShape("linear", channels=3, width=3, variant="sti", groups=((1, 1),))
    connector = build_connector(shape)
    with torch.no_grad():
        connector.get_parameter("linear.weight").copy_(torch.eye(3))
        connector.get_parameter("linear.bias").zero_()
        patches = torch.randn(2, 10, 6)
        tokens = connector(patches, (5, 2))
    torch.testing.assert_close(tokens[:, 10], patches[:, :8, 3:].mean(1))
    torch.testing.assert_close(tokens[:, 11], patches[:, 8:, 3:].mean(1))


def test_prompt_follows_the_connectors_number_of_tokens() -> None:
    from vlmtune.models.connectors import respell
    from vlmtune.models.images import ProcessedImage

    fine = build_connector(ConnectorShape("linear", 2, 2))
    coarse = build_connector(ConnectorShape("mlp", 2, 2, factor=2, hidden_size=2))
    tiles = [(torch.zeros(16, 2), (4, 4)), (torch.zeros(8, 2), (2, 4))]
    text = "<row 1>" + "<image>" * 16 + "<row 2>" + "<image>" * 8 + "</image>"
    found = respell(ProcessedImage(tiles, text, 24), "<image>", fine, coarse)
    assert (found.text, found.num_tokens) == ("<row 1>" + "<image>" * 4 + "<row 2>" + "<image>" * 2 + "</image>", 6)
    again = respell(found, "<image>", coarse, fine)
    assert again.text == text


def test_pixel_unshuffle_on_paligemma_quarters_the_tokens(paligemma: Path) -> None:
    opened = open_model(str(paligemma))
    before = opened.processor.process(make_image()).num_tokens
    put_connector(opened, ConnectorSection(kind="mlp"))
    assert opened.processor.process(make_image()).num_tokens == before // 4
    assert len(logits(opened, [make_image()])[0]) < before


@pytest.mark.parametrize("section", KINDS, ids=lambda section: section.variant or section.kind)
def test_a_trained_connector_comes_back_with_its_adapter(
    either: Path, tmp_path: Path, section: ConnectorSection
) -> None:
    opened = open_model(str(either))
    put_connector(opened, section, seed=3)
    plan = apply_adapter(opened.model, AdapterSection(targets=["mlp"], parts=["connector"], rank=2))
    assert {name for name, _ in opened.model.connector.named_parameters()} == {
        name.rpartition("multi_modal_projector.")[2] for name in plan.full_parameters
    }
    with torch.no_grad():
        for parameter in plan.parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    expected = logits(opened, [make_image(), make_image(40, 40)])
    save_adapter(tmp_path / "adapter", opened.model, plan, str(either))
    again = open_adapted(str(tmp_path / "adapter"), keep_adapter=True)
    for ours, theirs in zip(expected, logits(again, [make_image(), make_image(40, 40)]), strict=True):
        assert torch.equal(ours, theirs)
    # Values go back into the same model, as on resuming.
    with torch.no_grad():
        next(opened.model.connector.parameters()).zero_()
    load_adapter(tmp_path / "adapter", opened.model, plan)
    assert torch.equal(logits(opened, [make_image()])[0], expected[0])


def test_frozen_connector_of_first_stage_is_saved_with_second(folder: Path, tmp_path: Path) -> None:
    dense = ConnectorSection(kind="dense")
    first = open_model(str(folder))
    put_connector(first, dense)
    plan = apply_adapter(first.model, AdapterSection(targets=[], parts=["connector"]))
    with torch.no_grad():
        for parameter in plan.full_parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(tmp_path / "one", first.model, plan, str(folder))
    expected = logits(first, [make_image()])[0]

    second = open_model(str(folder))
    put_connector(second, dense.model_copy(update={"start": str(tmp_path / "one")}))
    plan = apply_adapter(second.model, AdapterSection(targets=["attention"], rank=2))
    assert not plan.full_parameters
    save_adapter(tmp_path / "two", second.model, plan, str(folder))
    again = open_adapted(str(tmp_path / "two"))
    assert torch.equal(expected, logits(again, [make_image()])[0])
    assert load_adapter(tmp_path / "two", second.model, plan) is plan
    with pytest.raises(AdapterError, match="does not fit"):
        put_connector(
            open_model(str(folder)), ConnectorSection(kind="dense", start=str(tmp_path / "one"), groups=["1"])
        )


def test_base_connector_trained_in_first_stage_is_taken(folder: Path, tmp_path: Path) -> None:
    first = open_model(str(folder))
    plan = apply_adapter(first.model, AdapterSection(targets=[], parts=["connector"]))
    with torch.no_grad():
        for parameter in plan.full_parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    save_adapter(tmp_path / "one", first.model, plan, str(folder))
    second = open_model(str(folder))
    put_connector(second, ConnectorSection(kind="mlp", start=str(tmp_path / "one")))
    assert torch.equal(logits(first, [make_image()])[0], logits(second, [make_image()])[0])
    assert connector_is_exportable(second.model) is None


def test_an_adapter_does_not_go_onto_another_connector(folder: Path, tmp_path: Path) -> None:
    opened = open_model(str(folder))
    put_connector(opened, ConnectorSection(kind="dense"))
    plan = apply_adapter(opened.model, AdapterSection(targets=[], parts=["connector"]))
    save_adapter(tmp_path / "adapter", opened.model, plan, str(folder))
    plain = open_model(str(folder))
    with pytest.raises(AdapterError, match="its own connector"):
        load_adapter(tmp_path / "adapter", plain.model)
    config = tmp_path / "adapter" / "adapter_config.json"
    values = json.loads(config.read_text())
    values["vlmtune_connector"]["groups"] = "nonsense"
    config.write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="not a connector"):
        open_adapted(str(tmp_path / "adapter"))


def test_what_no_other_format_can_hold_is_said(either: Path) -> None:
    own = open_model(str(either)).model.connector.shape.trunk
    assert connector_is_exportable(open_model(str(either)).model) is None
    for section, name in zip(KINDS, ("DCI", "SCI", "STI", "linear", "mlp"), strict=True):
        opened = open_model(str(either))
        put_connector(opened, section)
        reason = connector_is_exportable(opened.model)
        assert reason is None if section.kind == own else name in (reason or "")


def test_a_random_start_keeps_nothing_and_follows_the_seed(folder: Path) -> None:
    def start(seed: int) -> Connector:
        opened = open_model(str(folder))
        put_connector(opened, ConnectorSection(kind="dense", start="random"), seed)
        return opened.model.connector

    one, same, other = start(0), start(0), start(1)
    pretrained = open_model(str(folder)).model.connector
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        if name.endswith("weight") and "layer_norm" not in name:
            assert not torch.equal(parameter, other.get_parameter(name))
        if name != "dense.weight":
            assert not torch.equal(parameter, pretrained.get_parameter(name))


def test_a_connector_is_counted_without_memory(folder: Path) -> None:
    config = open_model(str(folder)).config
    section = AdapterSection(targets=[], parts=["connector"])
    plain, dense = count_trainable(config, section), count_trainable(config, section, ConnectorSection(kind="dense"))
    vision = config["vision_config"]["hidden_size"]
    new = 2 * 4 * vision * config["projector_hidden_size"]
    assert dense == (plain[0] + new, plain[1] + new)


def test_dense_connector_on_paligemma_3b_adds_only_its_channels() -> None:
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    text = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8}
    config = {
        "model_type": "paligemma",
        "vision_config": vision | {"patch_size": 14, "image_size": 224},
        "text_config": text | {"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257_216},
    }
    section = AdapterSection(targets=[], parts=["connector"])
    plain, dense = count_trainable(config, section), count_trainable(config, section, ConnectorSection(kind="dense"))
    assert plain[0] == 1152 * 2048 + 2048
    assert dense[0] - plain[0] == dense[1] - plain[1] == 2 * 1152 * 2048
    shape = wanted_shape(ConnectorSection(kind="dense"), build_on_meta(config))
    assert str(shape) == "dense connector DCI of layers 0-12, 13-25 on 'linear', 1x1 patches a token"


def test_wrong_connectors_are_refused_with_the_layers_there_are(folder: Path) -> None:
    opened = open_model(str(folder))
    with pytest.raises(ConfigError, match=r"found '0-99', but this tower has \d layers"):
        wanted_shape(ConnectorSection(kind="dense", groups=["0-99"]), opened.model)
    with pytest.raises(ConfigError, match="no pretrained weights for 'linear'"):
        put_connector(opened, ConnectorSection(kind="linear", start="pretrained"))
    put_connector(opened, ConnectorSection(kind="dense"))
    with pytest.raises(AdapterError, match=r"adapter\.parts"):
        apply_adapter(opened.model, AdapterSection(targets=["connector"]))


def test_a_new_connector_learns_unless_the_file_says_otherwise() -> None:
    wanted = Experiment.model_validate({"model": {"connector": {"kind": "dense"}}})
    decided = defaults.apply(wanted, num_train=100, num_labels=3)
    assert decided.adapter.parts == ["connector"] and "connector" not in (decided.adapter.targets or [])
    assert decided.adapter.targets
    wanted.adapter.targets = ["mlp"]
    assert defaults.apply(wanted, num_train=100, num_labels=3).adapter.parts == ["connector"]
    assert defaults.apply(decided, num_train=100, num_labels=3) == decided


def test_file_names_a_connector_by_word_or_keys(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("model:\n  connector: dense\n")
    assert load_experiment(path).model.connector == ConnectorSection(kind="dense")
    path.write_text("model:\n  connector: {kind: dense, variant: sci, groups: [3, 0-4]}\n")
    with pytest.raises(ConfigError, match="found '0-4', but sci reads single layers"):
        load_experiment(path)
    path.write_text("model:\n  connector: {kind: dense, groups: [3, 0-4]}\n")
    connector = load_experiment(path, ["model.connector.variant=dci"]).model.connector
    assert connector is not None and connector.groups == ["3", "0-4"]
    assert load_experiment(path, ["model.connector=null"]).model.connector is None
    path.write_text("model:\n  connector: mlp\nadapter: {parts: [], targets: [mlp]}\n")
    with pytest.raises(ConfigError, match="expected 'connector' among the parts"):
        load_experiment(path)
    path.write_text("model:\n  connector: {kind: mlp, variant: dci}\n")
    with pytest.raises(ConfigError, match="only a dense connector"):
        load_experiment(path)
    path.write_text("model:\n  connector: {kind: mlp, start: nowhere.safetensors}\n")
    with pytest.raises(ConfigError, match="nowhere"):
        load_experiment(path)


def test_the_interface_names_its_connector(folder: Path) -> None:
    model = open_model(str(folder)).model
    assert isinstance(model, VisionLanguageModel) and model.connector.replaced is None
    assert dataclasses.asdict(model.connector.shape)["trunk"] == "mlp"
