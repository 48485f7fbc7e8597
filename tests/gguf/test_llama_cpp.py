"""GGUF exports in llama.cpp itself: `make test-gguf`.

What is asked: a fine-tuned `builtin:tiny` on handwritten digits, and a model with LFM2-VL's own image settings, tiles
included, that has learned to name colors. `docs/LOG.md` holds a recorded run and what llama.cpp does otherwise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.gguf.tiling_base import (
    LETTERBOXED,
    SMALL,
    TILED,
    WHOLE,
    write_images,
    write_photographs,
    write_tiling_base,
)
from vlmtune.config.schema import Experiment
from vlmtune.export.formats import find_format, lfm2_vl_parts
from vlmtune.export.gate import Bounds, held_out_prompts, judge
from vlmtune.export.gguf_files import write_gguf
from vlmtune.export.llama_runtime import ImageRules, LlamaCppRuntime
from vlmtune.export.run import export
from vlmtune.export.runtime import GateItem, OwnRuntime
from vlmtune.export.trained_run import TrainedRun, open_trained_run
from vlmtune.text.prompt import PromptBuilder
from vlmtune.workflows.train import train

pytest.importorskip("llama_cpp", reason="make test-gguf compiles it")
pytestmark = pytest.mark.gguf

NUM_IMAGES = 100


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`builtin:tiny`, fine-tuned on a fifth of the digits."""
    experiment = Experiment(name="digits", output_dir=str(tmp_path_factory.mktemp("runs")))
    experiment.data.fraction = 0.2
    experiment.train.max_steps = 60
    train(experiment, with_base=False)
    return Path(experiment.output_dir) / "digits"


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that cuts large images into tiles of 512, trained on small ones."""
    folder = tmp_path_factory.mktemp("colors")
    experiment = Experiment(name="colors", output_dir=str(folder / "runs"))
    experiment.model.base = str(write_tiling_base(folder / "base"))
    experiment.data.source = str(write_images(folder / "data", {"train": (640, SMALL), "test": (16, SMALL)}))
    experiment.adapter.targets, experiment.adapter.parts = [], ["everything"]
    experiment.train.max_steps, experiment.train.batch_size = 150, 16
    experiment.train.learning_rate, experiment.train.augment = 2e-3, "none"
    train(experiment, with_base=False)
    return folder / "runs" / "colors"


def held_out(run: Path, folder: Path, sizes: tuple[tuple[int, int], ...], num: int) -> TrainedRun:
    data = write_images(folder / "data", {"train": (8, SMALL), "test": (num, sizes)})
    return open_trained_run(run, num, [f"data.source={data}"])


# The share of labels, and the largest difference of a label's probability, seen in the recorded run and rounded up.
@pytest.mark.parametrize(
    ("dtype", "agreement", "difference"),
    [("F32", 0.99, 0.005), ("F16", 0.99, 0.005), ("BF16", 0.99, 0.03), ("Q8_0", 0.99, 0.05), ("Q4_0", 0.96, 0.25)],
)
def test_the_built_in_model_answers_alike_in_llama_cpp(
    digits: Path, tmp_path: Path, dtype: str, agreement: float, difference: float
) -> None:
    made = export(open_trained_run(digits, NUM_IMAGES), find_format("gguf"), dtype, tmp_path / dtype, Bounds(agreement))
    assert made.verdict.runtime.startswith("llama.cpp") and made.verdict.num_images == NUM_IMAGES
    assert made.verdict.is_accepted, made.verdict.sentence()
    assert made.verdict.max_probability_difference < difference
    # llama.cpp cannot be told to leave an image whole: the gate does what the card says.
    assert made.verdict.notes == ("100 of 100 images were scaled to one tile's size first",)


def test_greedy_answers_are_the_same(digits: Path, tmp_path: Path) -> None:
    trained_run = open_trained_run(digits, 30)
    form = find_format("gguf")
    made = export(trained_run, form, "F16", tmp_path / "gguf", Bounds(0.0, 1.0))
    trained = trained_run.open()
    theirs, own = form.runtime(trained_run, trained, made.folder), OwnRuntime(trained, "the trained model")
    prompt = PromptBuilder(trained.tokenizer, trained_run.task, trained_run.labels)
    for item in held_out_prompts(trained_run, trained, prompt):
        assert item is not None
        assert theirs.greedy(item, trained.tokenizer.end_id, 4) == own.greedy(item, trained.tokenizer.end_id, 4)
    theirs.close()


@pytest.mark.parametrize(("name", "sizes"), [("whole", WHOLE), ("tiled", TILED)])
def test_tiled_images_get_the_trained_labels(
    colors: Path, tmp_path: Path, name: str, sizes: tuple[tuple[int, int], ...]
) -> None:
    trained_run = held_out(colors, tmp_path, sizes, NUM_IMAGES)
    made = export(trained_run, find_format("gguf"), "F16", tmp_path / name, Bounds(0.99))
    assert made.verdict.is_accepted, (made.verdict.sentence(), made.verdict.differences)
    assert made.verdict.notes == ()  # the same tokens, tiles' names and thumbnail included


def test_photographs_get_the_trained_models_labels(colors: Path, tmp_path: Path) -> None:
    source = write_photographs(tmp_path / "data", NUM_IMAGES)
    trained_run = open_trained_run(colors, NUM_IMAGES, [f"data.source={source}"])
    made = export(trained_run, find_format("gguf"), "F16", tmp_path / "gguf", Bounds(0.99))
    assert made.verdict.is_accepted, (made.verdict.sentence(), made.verdict.differences)
    assert made.verdict.notes == ()


def test_black_bars_are_counted(colors: Path, tmp_path: Path) -> None:
    made = export(
        held_out(colors, tmp_path, LETTERBOXED, 8), find_format("gguf"), "F16", tmp_path / "gguf", Bounds(0.0, 1.0)
    )
    assert any(note.startswith("8 of 8 images are cut into tiles with black bars") for note in made.verdict.notes)


def test_tiles_of_another_shape_than_the_grids_are_letterboxed(colors: Path, tmp_path: Path) -> None:
    """llama.cpp keeps the image's shape and fills up with black, where transformers stretches. If this fails because
    they agree, llama.cpp has changed: take the warning out of docs/LOG.md."""
    trained = open_trained_run(colors, 1).open()
    image = np.full((700, 1500, 3), 200, np.uint8)
    image[:, :, 2] = 30
    ours, theirs = _embeddings(trained, tmp_path, image)
    assert ours.shape == theirs.shape
    assert _distance(ours, theirs) > 0.1
    whole = np.full((1024, 1024, 3), 200, np.uint8)
    whole[:, :, 2] = 30
    assert _distance(*_embeddings(trained, tmp_path, whole)) < 0.01


def test_every_image_feature_is_ours_where_nothing_is_resized(colors: Path, tmp_path: Path) -> None:
    """512 × 512: one tile as it is, positions interpolated from 8 × 8 to 32 × 32, pixel-unshuffle, connector."""
    trained = open_trained_run(colors, 1).open()
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3)).astype(np.uint8)
    ours, theirs = _embeddings(trained, tmp_path, image)
    assert ours.shape == theirs.shape == (256, 64)
    assert _distance(ours, theirs) < 0.005


def test_swapped_keys_and_values_are_caught(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmtune.export import gguf_names

    keys = "model.language_model.layers.{}.self_attn.k_proj"
    values = "model.language_model.layers.{}.self_attn.v_proj"
    swapped = dict(gguf_names.LANGUAGE_MODEL)
    swapped[keys], swapped[values] = swapped[values], swapped[keys]
    monkeypatch.setattr(gguf_names, "LANGUAGE_MODEL", swapped)
    made = export(open_trained_run(digits, 30), find_format("gguf"), "F16", tmp_path / "gguf", Bounds(0.995))
    assert not made.verdict.is_accepted and made.folder.name == "gguf.rejected"


def test_open_answers_are_judged_too(digits: Path, tmp_path: Path) -> None:
    import dataclasses

    trained_run = open_trained_run(digits, 10)
    task = trained_run.task.model_copy(update={"list_labels": "never"})
    asking = dataclasses.replace(trained_run, labels=None, task=task)
    trained = asking.open()
    form = find_format("gguf")
    made = export(asking, form, "F16", tmp_path / "gguf", Bounds(0.9))
    assert (made.verdict.judged, made.verdict.is_accepted) == ("answers", True)
    runtime = form.runtime(asking, trained, made.folder)
    again = judge(asking, OwnRuntime(trained, "the trained model"), runtime, trained, Bounds(0.9))
    assert again.num_agree == made.verdict.num_agree
    runtime.close()


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _embeddings(trained: object, folder: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ours, llama.cpp's) float32[T, D] of one image, in float32 files."""
    from PIL import Image

    from vlmtune.models.registry import OpenedModel

    assert isinstance(trained, OpenedModel)
    model, processor = lfm2_vl_parts(trained)
    files = write_gguf(folder, "features", model, trained.tokenizer, processor, "F32")
    rules = ImageRules(processor.settings)
    runtime = LlamaCppRuntime(files.model, files.projector, rules, trained.tokenizer.image_token_id)
    image = Image.fromarray(pixels)
    processed = processor.process(image)
    with torch.inference_mode():
        ours = model.encode_images([processed])[0].numpy()
    found = list(_encoded_chunks(runtime, GateItem("image", image, processed, [], "a", "b"), ours.shape[1]))
    runtime.close()
    return ours, np.concatenate(found)


def _encoded_chunks(runtime: LlamaCppRuntime, item: GateItem, width: int) -> Iterator[np.ndarray]:
    mtmd = runtime._mtmd
    with runtime._chunks(item) as chunks:
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                assert mtmd.mtmd_encode_chunk(runtime._vision, chunk) == 0
                rows = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
                values = ctypes.cast(mtmd.mtmd_get_output_embd(runtime._vision), ctypes.POINTER(ctypes.c_float))
                yield np.ctypeslib.as_array(values, shape=(rows, width)).copy()
