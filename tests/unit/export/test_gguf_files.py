"""GGUF files, without llama.cpp: names, types, vocabulary, and that they hold the model's values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export_runs import write_run
from tests.parity.lfm2_peer import tiny_config
from tiny.tokenizer import train_tokenizer
from vlmtune.errors import UserError
from vlmtune.export import llama_runtime, transformers_runtime
from vlmtune.export.formats import find_format
from vlmtune.export.gate import Bounds
from vlmtune.export.gguf_files import import_gguf, read_gguf, write_gguf
from vlmtune.export.gguf_names import CONTROL, LANGUAGE_MODEL, NORMAL, PROJECTOR, UNUSED, gguf_place, read_vocabulary
from vlmtune.export.llama_runtime import ImageRules, unsupported
from vlmtune.export.run import export
from vlmtune.export.trained_run import open_trained_run
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings
from vlmtune.models.registry import build_on_meta, open_model
from vlmtune.text.tokenizer import Tokenizer

pytestmark = pytest.mark.unit

TINY = open_model("builtin:tiny")
SETTINGS = Lfm2VlImageSettings(encoder_patch_size=4, do_image_splitting=False, min_image_tokens=4, max_image_tokens=16)
# Relative to the largest entry of a matrix: half of float16's and bfloat16's last bit, and of a block's step.
ERRORS = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 127, "Q4_0": 1 / 7}


def random_model(**changes: Any) -> Lfm2Vl:
    torch.manual_seed(0)
    config = tiny_config(**changes)
    config["text_config"]["vocab_size"] = 300
    return Lfm2Vl(Lfm2VlConfig.from_dict(config))


def tokenizer() -> Tokenizer:
    made = train_tokenizer(["a red square, a blue circle", "yes no maybe"] * 4, vocab_size=300)
    assert len(made) > 265
    return made


def fields(path: Path) -> dict[str, Any]:
    reader = import_gguf().GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def test_every_parameter_has_a_place_of_its_own() -> None:
    places = [gguf_place(name) for name, _ in random_model().named_parameters()]
    assert len({place.name for place in places}) == len(places)
    assert any(place.is_projector for place in places) and not all(place.is_projector for place in places)
    with pytest.raises(KeyError):
        gguf_place("model.language_model.layers.0.self_attn.o_proj.weight")


def test_the_gguf_package_knows_every_name() -> None:
    gguf = import_gguf()
    for table, architecture in ((LANGUAGE_MODEL, "LFM2"), (PROJECTOR, "MMPROJ")):
        known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[architecture]]}
        known = {name.replace("{bid}", "{}") for name in known}
        for name in table.values():
            # The connector's layers are numbered by hand.
            assert name.replace("mm.1", "mm.{}").replace("mm.2", "mm.{}") in known, name


@pytest.mark.parametrize("dtype", ERRORS)
def test_the_files_hold_the_models_values(dtype: str, tmp_path: Path) -> None:
    assert isinstance(TINY.model, Lfm2Vl)
    files = write_gguf(tmp_path, "tiny", TINY.model, TINY.tokenizer, Lfm2VlImageProcessor(SETTINGS), dtype)
    empty = build_on_meta(TINY.config)
    assert isinstance(empty, Lfm2Vl)
    held = read_gguf(files.model, files.projector, empty)
    parameters = dict(TINY.model.named_parameters())
    assert held.keys() == parameters.keys()
    for name, parameter in parameters.items():
        error = (held[name] - parameter).abs().max() / parameter.abs().max()
        assert error <= (ERRORS[dtype] if parameter.dim() > 1 else 0.0), name
    if dtype not in ("F32", "BF16"):  # the package holds bfloat16
        assert any(not torch.equal(held[name], parameter) for name, parameter in parameters.items())


def test_the_keys_are_those_that_llama_cpp_reads(tmp_path: Path) -> None:
    model, settings = random_model(), Lfm2VlImageSettings(encoder_patch_size=4, image_mean=(0.4, 0.5, 0.6))
    files = write_gguf(tmp_path, "named", model, tokenizer(), Lfm2VlImageProcessor(settings), "F32")
    text, vision = fields(files.model), fields(files.projector)
    assert text["general.architecture"] == "lfm2" and text["general.name"] == "named"
    assert text["lfm2.attention.head_count_kv"] == [0, 0, 2, 0, 2, 0, 0]
    assert text["lfm2.feed_forward_length"] == model.config.text_config.feed_forward_size == 32
    assert text["lfm2.shortconv.l_cache"] == 3 and text["lfm2.vocab_size"] == 300
    assert vision["clip.projector_type"] == "lfm2" and vision["clip.has_vision_encoder"] is True
    assert vision["clip.vision.projector.scale_factor"] == 2 and vision["clip.vision.projection_dim"] == 32
    assert vision["clip.vision.image_mean"] == pytest.approx([0.4, 0.5, 0.6])
    assert vision["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-6)


def test_rows_that_do_not_divide_into_blocks_become_float16(tmp_path: Path) -> None:
    files = write_gguf(tmp_path, "odd", random_model(), tokenizer(), Lfm2VlImageProcessor(SETTINGS), "Q8_0")
    assert files.num_by_type["F16"] > 0 and files.num_by_type["Q8_0"] > 0  # the tower is 24 wide, the decoder 32
    held = {tensor.name: tensor.tensor_type.name for tensor in import_gguf().GGUFReader(files.projector).tensors}
    assert held["v.blk.0.attn_q.weight"] == "F16" and held["v.position_embd.weight"] == "F32"


def test_four_bits_spare_the_head_and_the_projector(tmp_path: Path) -> None:
    assert isinstance(TINY.model, Lfm2Vl)
    files = write_gguf(tmp_path, "tiny", TINY.model, TINY.tokenizer, Lfm2VlImageProcessor(SETTINGS), "Q4_0")
    text = {tensor.name: tensor.tensor_type.name for tensor in import_gguf().GGUFReader(files.model).tensors}
    vision = {tensor.name: tensor.tensor_type.name for tensor in import_gguf().GGUFReader(files.projector).tensors}
    assert (text["blk.0.ffn_up.weight"], text["token_embd.weight"]) == ("Q4_0", "Q8_0")
    assert (vision["v.blk.0.ffn_up.weight"], vision["v.patch_embd.weight"]) == ("Q8_0", "F16")


def test_a_connector_without_biases_gets_zeros(tmp_path: Path) -> None:
    model = random_model(projector_bias=False)
    files = write_gguf(tmp_path, "bare", model, tokenizer(), Lfm2VlImageProcessor(SETTINGS), "F32")
    held = {tensor.name: tensor.data for tensor in import_gguf().GGUFReader(files.projector).tensors}
    assert np.array_equal(held["mm.2.bias"], np.zeros(32))


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    model = random_model()
    with torch.no_grad():
        model.model.language_model.layers[0].feed_forward.w1.weight[0, 0] = 1e5
    with pytest.raises(UserError, match=r"ffn_gate.weight: holds 1e\+05, beyond float16's range"):
        write_gguf(tmp_path, "big", model, tokenizer(), Lfm2VlImageProcessor(SETTINGS), "F16")


def test_the_vocabulary_is_padded_and_typed() -> None:
    made = tokenizer()
    vocabulary = read_vocabulary(made, len(made) + 2)
    assert len(vocabulary.tokens) == len(vocabulary.types) == len(made) + 2
    assert vocabulary.types[-2:] == [UNUSED, UNUSED]
    assert vocabulary.types[made.image_token_id] == CONTROL and vocabulary.tokens[made.end_id] == "<|im_end|>"
    assert vocabulary.types.count(NORMAL) == len(made) - len(made.control_tokens)
    assert vocabulary.pre == "qwen2" and vocabulary.adds_bos
    assert vocabulary.ids == {"bos": 1, "eos": 4, "pad": 0}
    assert vocabulary.merges[0].count(" ") == 1


def test_a_vocabulary_larger_than_the_models_is_refused() -> None:
    made = tokenizer()
    with pytest.raises(UserError, match="the model has 97 rows"):
        read_vocabulary(made, 97)


def test_an_unknown_splitting_rule_is_refused() -> None:
    made = tokenizer()
    state = json.loads(made.backend.to_str())
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
    import tokenizers

    other = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)), made.config, made.chat_template, "other")
    with pytest.raises(UserError, match=r"no name for this tokenizer's splitting rule .*Known: lfm2, qwen2"):
        read_vocabulary(other, len(other))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"do_image_splitting": True, "tile_size": 256}, "tile_size is 256; llama.cpp's is 512"),
        ({"do_image_splitting": True, "use_thumbnail": False}, "use_thumbnail is False"),
        ({"use_image_special_tokens": False}, "use_image_special_tokens is False"),
        ({"resample": 3}, "resample is 3"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0"),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused(changes: dict[str, Any], reason: str) -> None:
    settings = {"encoder_patch_size": 4, "do_image_splitting": False, **changes}
    (found,) = unsupported(random_model(), Lfm2VlImageProcessor(Lfm2VlImageSettings(**settings)))
    assert reason in found


def test_the_settings_of_the_hubs_checkpoints_are_no_obstacle() -> None:
    assert unsupported(random_model(), Lfm2VlImageProcessor(Lfm2VlImageSettings())) == []
    assert ImageRules(Lfm2VlImageSettings()).sentences() == []


def test_images_without_tiles_are_scaled_for_llama_cpp() -> None:
    rules = ImageRules(SETTINGS)  # 16 tokens of 8 × 8 pixels: 32 × 32, and tiles from 2,048 pixels
    assert rules.size_for(32, 32) is None and rules.size_for(43, 43) is None
    assert rules.size_for(64, 64) == (32, 32)
    assert rules.size_for(60, 120) == (16, 40)
    assert ImageRules(Lfm2VlImageSettings()).size_for(3000, 4000) is None
    assert "at most 1,024 pixels" in " ".join(rules.sentences())


def test_black_bars_are_foreseen_from_the_grid_of_tiles() -> None:
    settings = Lfm2VlImageSettings()
    processor, rules = Lfm2VlImageProcessor(settings), ImageRules(settings)

    def is_letterboxed(width: int, height: int) -> bool:
        from PIL import Image

        text = processor.process(Image.new("RGB", (width, height))).text
        return rules.is_letterboxed(height, width, text)

    assert not is_letterboxed(640, 480)  # one tile
    assert not is_letterboxed(1024, 1024) and not is_letterboxed(1152, 576)  # 2 × 2 and 1 × 2, their own shapes
    assert is_letterboxed(1200, 700) and is_letterboxed(700, 1200)


def test_without_llama_cpp_our_runtime_judges_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_runtime, "is_installed", lambda: False)
    monkeypatch.setattr(transformers_runtime, "is_installed", lambda with_peft: False)
    trained_run = open_trained_run(write_run(tmp_path / "digits"), 5)
    made = export(trained_run, find_format("gguf"), "F16", tmp_path / "gguf", Bounds(1.0))
    assert made.verdict.num_agree == 5 and 0 < made.verdict.max_probability_difference < 0.01
    assert "llama-cpp-python is not installed" in made.verdict.notes[0]
    assert (
        "llama-mtmd-cli -m digits-F16.gguf --mmproj mmproj-digits-F16.gguf" in (made.folder / "README.md").read_text()
    )
