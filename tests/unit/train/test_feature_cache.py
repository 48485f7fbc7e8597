"""The cache of frozen image features: equal to encoding, refused where it would be wrong, whole after a crash."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlmtune.adapters.plan import AdapterPlan, apply_adapter
from vlmtune.config.schema import AdapterSection, Experiment
from vlmtune.errors import UserError
from vlmtune.models.fingerprint import features_key
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.records import Example, ImageSource
from vlmtune.train import feature_cache
from vlmtune.train.feature_cache import Refusal, connect, open_feature_cache
from vlmtune.train.feature_files import CachedImage, FeatureCache

pytestmark = pytest.mark.unit
FROZEN = ("model.vision_tower.", "model.multi_modal_projector.")


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_model("builtin:tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def images() -> list[ImageSource]:
    draw, found = np.random.default_rng(0), []
    for number in range(12):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        found.append(ImageSource(data=buffer.getvalue(), name=f"{number}.png"))
    return found


@pytest.fixture(scope="module")
def plan(opened: OpenedModel) -> AdapterPlan:
    """Of LoRA in the decoder alone."""
    return apply_adapter(opened.model, AdapterSection(targets=["attention"]))


def open_cache(
    folder: Path,
    opened: OpenedModel,
    plan: AdapterPlan,
    mode: str = "on",
    images: Sequence[ImageSource] = (),
    epochs: float = 2.0,
    changes: str | None = None,
) -> FeatureCache | Refusal:
    experiment = Experiment.model_validate(
        {"model": {"base": "builtin:tiny", "dtype": "float32"}, "train": {"feature_cache": mode, "epochs": epochs}}
    )
    examples = [Example(str(number), image, ("cat",)) for number, image in enumerate(images)]
    return open_feature_cache(folder, opened, plan, experiment, examples, changes)


def filled(folder: Path, count: int = 3) -> list[torch.Tensor]:
    cache = FeatureCache(folder, "key")
    features = [torch.randn(4 + i, 8).to(torch.bfloat16) for i in range(count)]
    for number, tensor in enumerate(features):
        cache.put(f"d{number}", CachedImage(tensor, f"<{number}>"))
    cache.close()
    return features


def test_features_come_back_bit_for_bit_after_opening_again(tmp_path: Path) -> None:
    features = filled(tmp_path)
    cache = FeatureCache(tmp_path, "key")
    assert len(cache) == 3 and cache.num_repaired == 0 and "d1" in cache
    for number, tensor in enumerate(features):
        found = cache.get(f"d{number}")
        assert found is not None and found.text == f"<{number}>"
        assert found.features.dtype == torch.bfloat16 and torch.equal(found.features, tensor)
    assert cache.get("unknown") is None


def test_a_record_put_while_reading_is_found(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "key")
    for number in range(4):
        cache.put(f"d{number}", CachedImage(torch.full((2, 3), float(number)), ""))
        found = cache.get(f"d{number}")
        assert found is not None and found.features.unique().tolist() == [number]


@pytest.mark.parametrize("torn", ["features.bin", "index.jsonl"])
def test_a_torn_end_is_cut_off_and_the_rest_kept(tmp_path: Path, torn: str) -> None:
    features = filled(tmp_path)
    path = tmp_path / torn
    path.write_bytes(path.read_bytes()[:-5])
    cache = FeatureCache(tmp_path, "key")
    assert cache.num_repaired == 1 and len(cache) == 2 and cache.get("d2") is None
    cache.put("d2", CachedImage(features[2], "<2>"))
    cache.close()
    again = FeatureCache(tmp_path, "key")
    found = again.get("d2")
    assert again.num_repaired == 0 and found is not None and torch.equal(found.features, features[2])


def test_a_record_without_an_index_line_is_overwritten(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / "features.bin").open("ab") as file:
        file.write(b"left by a crash")
    cache = FeatureCache(tmp_path, "key")
    cache.put("new", CachedImage(torch.ones(2, 8), ""))
    found = cache.get("new")
    assert found is not None and found.features.eq(1).all()


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    features = filled(tmp_path)
    content = bytearray((tmp_path / "features.bin").read_bytes())
    content[3] ^= 1
    (tmp_path / "features.bin").write_bytes(content)
    cache = FeatureCache(tmp_path, "key")
    assert cache.get("d0") is None and cache.get("d1") is not None
    cache.put("d0", CachedImage(features[0], "<0>"))
    cache.close()
    found = FeatureCache(tmp_path, "key").get("d0")
    assert found is not None and torch.equal(found.features, features[0])


def test_features_of_something_else_are_thrown_away(tmp_path: Path) -> None:
    filled(tmp_path)
    cache = FeatureCache(tmp_path, "another key")
    assert len(cache) == 0 and (tmp_path / "features.bin").stat().st_size == 0
    assert json.loads((tmp_path / "header.json").read_text())["key"] == "another key"


def test_the_key_depends_on_weights_preprocessing_and_number_format(opened: OpenedModel) -> None:
    key = features_key(opened, FROZEN, "float32")
    assert key == features_key(opened, FROZEN, "float32") != features_key(opened, FROZEN, "bfloat16")
    other = open_model("builtin:tiny", dtype="float32", device="cpu", image_overrides={"max_image_tokens": 32})
    assert features_key(other, FROZEN, "float32") != key
    other = open_model("builtin:tiny", dtype="float32", device="cpu")
    with torch.no_grad():
        other.model.model.language_model.embed_tokens.weight[0, 0] += 1  # type: ignore[union-attr,operator,index]
        assert features_key(other, FROZEN, "float32") == key, "the decoder does not change features"
        other.model.model.multi_modal_projector.linear_2.bias[0] += 1  # type: ignore[union-attr,operator,index]
    assert features_key(other, FROZEN, "float32") != key


def test_cached_features_equal_encoding(
    tmp_path: Path, opened: OpenedModel, plan: AdapterPlan, images: list[ImageSource]
) -> None:
    cache = open_cache(tmp_path, opened, plan, images=images)
    assert isinstance(cache, FeatureCache)
    image = opened.processor.process(images[0].open())
    found = cache.get(images[0].digest())
    assert found is not None and found.text == image.text
    with torch.no_grad():
        torch.testing.assert_close(found.features, opened.model.encode_images([image])[0], rtol=1e-5, atol=1e-5)


def test_it_is_refused_where_the_tower_learns(tmp_path: Path) -> None:
    opened = open_model("builtin:tiny", dtype="float32", device="cpu")
    plan = apply_adapter(opened.model, AdapterSection(targets=["attention", "vision_mlp"]))
    refusal = open_cache(tmp_path, opened, plan, "auto")
    assert isinstance(refusal, Refusal) and "tower learn" in refusal.reason and "lora_A" in refusal.reason


def test_cached_tower_features_teach_a_connector_the_same(tmp_path: Path, images: list[ImageSource]) -> None:
    opened = open_model("builtin:tiny", dtype="float32", device="cpu")
    images = images[:4]
    plan = apply_adapter(opened.model, AdapterSection(targets=["attention"], parts=["connector"]))
    cache = open_cache(tmp_path, opened, plan, images=images)
    assert isinstance(cache, FeatureCache) and cache.level == "tower"
    kept = [cache.get(image.digest()) for image in images]
    found = connect(opened.model, "tower", [image for image in kept if image is not None])
    expected = opened.model.encode_images([opened.processor.process(image.open()) for image in images])
    weight = opened.model.connector.linear_2.weight
    (gradient,) = torch.autograd.grad(torch.cat(found).square().sum(), [weight])
    (wanted,) = torch.autograd.grad(torch.cat(expected).square().sum(), [weight])
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_changing_images_are_not_cached(tmp_path: Path, opened: OpenedModel, plan: AdapterPlan) -> None:
    refusal = open_cache(tmp_path, opened, plan, "auto", changes="flip-crop changes images.")
    assert isinstance(refusal, Refusal) and refusal.note == "image features are not cached: flip-crop changes images."
    with pytest.raises(UserError, match="is on, but features cannot be cached: flip-crop"):
        open_cache(tmp_path, opened, plan, "on", changes="flip-crop changes images.")
    refusal = open_cache(tmp_path, opened, plan, "off")
    assert isinstance(refusal, Refusal) and "off" in refusal.reason


def test_auto_refuses_a_single_epoch_and_gives_its_measurement(
    tmp_path: Path, opened: OpenedModel, plan: AdapterPlan, images: list[ImageSource]
) -> None:
    refusal = open_cache(tmp_path, opened, plan, "auto", images * 9, epochs=1)
    assert isinstance(refusal, Refusal) and "ms an image" in refusal.reason


def test_two_holders_of_one_folder_are_not_allowed(tmp_path: Path, opened: OpenedModel, plan: AdapterPlan) -> None:
    pytest.importorskip("fcntl")
    holder = FeatureCache(tmp_path / "connector", "key")
    refusal = open_cache(tmp_path, opened, plan, "auto")
    assert isinstance(refusal, Refusal) and "another process" in refusal.reason
    holder.close()


def test_a_full_disk_ends_the_keeping_and_not_the_run(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    features = filled(tmp_path, 2)
    cache = FeatureCache(tmp_path, "key")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "features.bin").stat().st_size + 5, limits[1]))
    try:
        cache.put("d2", CachedImage(torch.randn(100, 8), "<2>"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    cache.put("d3", CachedImage(torch.randn(1, 8), "<3>"))
    assert cache.get("d2") is None and cache.get("d3") is None and "only 2" in cache.note
    cache.close()
    again = FeatureCache(tmp_path, "key")
    for number, tensor in enumerate(features):
        found = again.get(f"d{number}")
        assert found is not None and torch.equal(found.features, tensor)
    again.put("d2", CachedImage(features[0], "<2>"))
    again.close()
    last = FeatureCache(tmp_path, "key").get("d2")
    assert last is not None and torch.equal(last.features, features[0])


def test_a_repaired_cache_says_so(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "features.bin").write_bytes(b"\0" * (tmp_path / "features.bin").stat().st_size)
    cache = FeatureCache(tmp_path, "key")
    assert cache.note == "image features are cached"
    assert cache.get("d0") is None and cache.get("d1") is None
    assert cache.note == "image features are cached; 2 torn or damaged records were made again"


def test_an_image_with_many_questions_is_stored_once(
    tmp_path: Path, opened: OpenedModel, plan: AdapterPlan, images: list[ImageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    monkeypatch.setattr(feature_cache, "_judge", lambda cache, opened, images, *rest: judged.append(len(images)))
    cache = open_cache(tmp_path, opened, plan, images=images * 9)
    assert isinstance(cache, FeatureCache) and judged == [len(images)]
    cache.close()
