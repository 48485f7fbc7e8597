"""PaliGemma's prompts, images, configuration and roles: what is asked, what is refused, and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.tiny_paligemma import config_for, gemma_tokenizer, write_tiny_paligemma
from vlmtune.adapters.module_map import linear_layers
from vlmtune.adapters.plan import apply_adapter
from vlmtune.config.schema import AdapterSection, Experiment, TaskSection
from vlmtune.errors import AdapterError, ConfigError, DataError, UserError, WeightsError
from vlmtune.inference.predictor import Predictor
from vlmtune.models.paligemma import PaliGemma
from vlmtune.models.paligemma.config import PaliGemmaConfig
from vlmtune.models.paligemma.images import PaliGemmaImageProcessor, PaliGemmaImageSettings
from vlmtune.models.plan import DecodePlan
from vlmtune.models.registry import build_on_meta, open_model
from vlmtune.models.tree import Level
from vlmtune.records import LabelSet
from vlmtune.text.formats import PALIGEMMA
from vlmtune.text.prompt import PromptBuilder
from vlmtune.text.tokenizer import Tokenizer

pytestmark = pytest.mark.unit

TOKENIZER = gemma_tokenizer()
IMAGE = "<image>" * 4
LABELS = LabelSet(("0", "1"), (("cat", "a cat"), ("sea lion",)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_paligemma(tmp_path_factory.mktemp("paligemma") / "base", 1)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({}, "<bos>answer en what does the picture show?\n"),
        ({"type": "text"}, "<bos>answer en why?\n"),
        ({"user_prompt": "caption en"}, "<bos>caption en\n"),
        ({"system_prompt": "Choose from:\n{labels}"},
         "<bos>Choose from:\ncat\nsea lion\nanswer en what does the picture show?\n"),
        ({"system_prompt": "Choose from: {labels}. Be quick.", "list_labels": "never"},
         "<bos>Be quick.\nanswer en what does the picture show?\n"),
    ],
    ids=["classify", "vqa", "own", "system", "system without list"],
)  # fmt: skip
def test_prompt_is_image_bos_text_newline(task: dict[str, str], text: str) -> None:
    builder = PromptBuilder(TOKENIZER, TaskSection.model_validate(task), LABELS)
    question = "why?" if task.get("type") == "text" else None
    assert builder.text(question, IMAGE) == IMAGE + text
    assert builder.system == ""  # there is no such turn: it stands above the user prompt
    assert builder.shared_prefix() == []


@given(st.text(min_size=1).filter(lambda text: bool(text.strip()) and "<" not in text))
def test_an_answer_is_tokenized_apart_and_ends_with_eos(answer: str) -> None:
    builder = PromptBuilder(TOKENIZER, TaskSection(), LABELS)
    assert builder.answer_tokens(answer) == [*TOKENIZER.encode(answer), TOKENIZER.token_id("<eos>")]
    assert builder.check_answer_boundary(answer) is None


def test_coordinates_and_masks_are_kept_in_prompts_and_answers() -> None:
    builder = PromptBuilder(TOKENIZER, TaskSection(user_prompt="segment <loc0012> cat"), None)
    ids = builder.build(None, IMAGE).ids
    assert TOKENIZER.token_id("<loc0012>") in ids
    target = builder.answer_tokens("<loc0001><seg127> cat")
    assert target[:2] == [TOKENIZER.token_id("<loc0001>"), TOKENIZER.token_id("<seg127>")]
    assert TOKENIZER.decode(target, skip_special_tokens=True) == "<loc0001><seg127> cat"


def test_coordinates_listed_as_words_are_one_token(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    plain = [token for token in file["added_tokens"] if token["content"].startswith("<loc")]
    file["added_tokens"] = [token for token in file["added_tokens"] if token not in plain]
    file["model"]["vocab"] |= {token["content"]: token["id"] for token in plain}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    opened = Tokenizer.from_folder(tmp_path, PALIGEMMA)
    assert opened.encode("<loc0512>") == TOKENIZER.encode("<loc0512>") == [TOKENIZER.token_id("<loc0512>")]
    assert len(opened) == len(TOKENIZER)


def test_foreign_special_tokens_and_image_last_are_refused() -> None:
    with pytest.raises(ConfigError, match="<bos>"):
        PromptBuilder(TOKENIZER, TaskSection(user_prompt="<bos>hello"), None)
    with pytest.raises(ConfigError, match=r"image_position.*image first"):
        PromptBuilder(TOKENIZER, TaskSection(image_position="last"), None)
    with pytest.raises(DataError, match="<image>"):
        PromptBuilder(TOKENIZER, TaskSection(type="text"), None).build("<image> what?", IMAGE)


def test_a_saved_tokenizer_has_no_template_and_opens_as_before(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    again = Tokenizer.from_folder(tmp_path, PALIGEMMA)
    assert again.chat_template == PALIGEMMA.template
    assert again.encode("answer en <seg000>\n") == TOKENIZER.encode("answer en <seg000>\n")


def test_every_image_has_the_checkpoints_size_and_values_within_one() -> None:
    processor = PaliGemmaImageProcessor(PaliGemmaImageSettings(size=28, image_seq_length=4))
    for size, mode in (((5, 90), "RGB"), ((300, 20), "L"), ((28, 28), "P")):
        made = processor.process(Image.linear_gradient("L").resize(size).convert(mode))
        ((patches, grid),) = made.tiles
        assert patches.shape == (4, 3 * 14 * 14) and grid == (2, 2)
        assert patches.min() >= -1 and patches.max() <= 1
    white = processor.process(Image.new("RGB", (3, 3), "white")).tiles[0][0]
    assert torch.equal(white, torch.ones_like(white))


def test_a_patch_is_its_square_of_the_image_channels_first() -> None:
    image = Image.new("RGB", (4, 4), (0, 0, 0))
    image.putpixel((3, 0), (255, 0, 0))  # the right patch's top right pixel
    processor = PaliGemmaImageProcessor(PaliGemmaImageSettings(size=4, image_seq_length=4))
    patches = processor.process(image).tiles[0][0].view(2, 2, 3, 2, 2)
    assert (patches == 1).nonzero().tolist() == [[0, 1, 0, 0, 1]]


def test_other_families_image_settings_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.max_image_tokens.*448"):
        open_model(str(folder), image_overrides={"max_image_tokens": 64, "min_image_tokens": None})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image_seq_length": 15}, "image_seq_length 15"),
        ({"image_seq_length": 4}, "pixels a side in patches of 8, config.json expects 16 in patches of 4"),
        ({"size": {"height": 16, "width": 12}}, "equal 'height' and 'width'"),
        ({"resample": 0}, "resample 0"),
    ],
)
def test_image_settings_of_another_model_are_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    values = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | change))
    with pytest.raises(WeightsError, match=told):
        PaliGemmaImageProcessor.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: values["text_config"].update(model_type="llama"), "gemma or gemma2"),
        (lambda values: values["vision_config"].update(model_type="clip"), "siglip_vision_model"),
        (lambda values: values.update(projection_dim=31), "projection_dim 31"),
        (lambda values: values["text_config"].update(rope_parameters={"rope_type": "yarn"}), "rope_type 'yarn'"),
        (lambda values: values["text_config"].update(layer_types=["full_attention"]), "1 layer_types for 2 layers"),
        (lambda values: values["text_config"].update(layer_types=["full_attention", "x"]), "layer type 'x'"),
        (lambda values: values["text_config"].update(hidden_act="relu"), "hidden_act 'relu'"),
        (lambda values: values["text_config"].update(vocab_size="many"), "vocab_size is 'many'"),
    ],
)
def test_a_configuration_that_is_not_computed_here_is_refused(
    change: Callable[[dict[str, Any]], None], told: str
) -> None:
    values = config_for(TOKENIZER, 2)
    change(values)
    with pytest.raises(WeightsError, match=told):
        PaliGemmaConfig.from_dict(values)


def test_roles_together_match_every_linear_layer() -> None:
    model = build_on_meta(config_for(TOKENIZER, 2))
    every = set(linear_layers(model))
    roles = ["attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp"]
    plan = apply_adapter(model, AdapterSection(targets=roles, rank=2))
    reached = {match.pattern: len(match.layers) for match in plan.matches}
    assert reached == {
        "attention": 8, "mlp": 6, "conv": 0, "connector": 1, "vision_attention": 8, "vision_mlp": 4,
    }  # fmt: skip
    assert set(plan.lora) == every
    with pytest.raises(AdapterError, match="nothing to train"):
        apply_adapter(build_on_meta(config_for(TOKENIZER, 1)), AdapterSection(targets=["conv"]))


@pytest.mark.parametrize("part", ["connector", "vision_tower", "embeddings", "language_model", "everything"])
def test_the_parts_are_whole_and_everything_is_all(part: str) -> None:
    model = build_on_meta(config_for(TOKENIZER, 2))
    plan = apply_adapter(model, AdapterSection(parts=[part]))
    prefix = {
        "connector": "model.multi_modal_projector",
        "vision_tower": "model.vision_tower",
        "embeddings": "model.language_model.embed_tokens",
        "language_model": "model.language_model",
        "everything": "model",
    }[part]
    expected = {name for name, _ in model.named_parameters() if name.startswith(prefix + ".")}
    if part == "language_model":
        expected -= {"model.language_model.embed_tokens.weight"}
    assert set(plan.parameters) == expected


def test_a_question_task_needs_no_label_set(folder: Path) -> None:
    predictor = Predictor(open_model(str(folder)), TaskSection(type="text"))
    assert predictor.prefix == []
    assert predictor.prompt.user == "answer en {question}"


def test_learning_the_prompt_too_is_refused(folder: Path, tmp_path: Path) -> None:
    from tests.images import write_class_folders
    from vlmtune.runs.prepare import load_data, open_base
    from vlmtune.train.loop import Trainer

    values = {
        "name": "x",
        "model": {"base": str(folder)},
        "data": {"source": str(write_class_folders(tmp_path, 3))},
        "train": {"loss": "all"},
    }
    resolved, splits = load_data(Experiment.model_validate(values))
    with pytest.raises(ConfigError, match=r"train\.loss: found all"):
        Trainer(resolved, open_base(resolved.model), splits)


def test_equally_long_prompts_need_no_mask_despite_a_window() -> None:
    model = build_on_meta(config_for(TOKENIZER, 2))
    assert isinstance(model, PaliGemma)
    cache = model.model.language_model.empty_cache(torch.float32, torch.device("cpu"))

    def mask(rows: Level, window: int | None) -> torch.Tensor | None:
        tree = DecodePlan([rows], cache, num_inputs=0, num_convs_above=0, want_cache=False, device=torch.device("cpu"))
        return tree.mask(0, tree.all, torch.float32, repeat=1, window=window)

    assert mask(Level.chains([5, 5], bidirectional=[5, 5]), None) is None
    assert mask(Level.chains([5, 5], bidirectional=[5, 5]), 2) is None
    assert mask(Level.chains([5, 4], bidirectional=[5, 4]), None) is not None
    answered = mask(Level.chains([6], bidirectional=[4]), 3)
    assert answered is not None
    # Four rows of a prompt see each other; two of an answer see three rows back, themselves counted.
    assert (answered[0, 0] == 0).int().tolist() == [
        *[[1, 1, 1, 1, 0, 0]] * 4,
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
