"""What a run shows: the same images whatever the threads and wherever it starts; two answers of a mixed image."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.images import write_class_folders
from tests.tiny_model import write_tiny_folder
from vlmtune.adapters.plan import apply_adapter
from vlmtune.config.schema import AdapterSection, Experiment
from vlmtune.data.prefetch import read_ahead
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import UserError
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.records import ImageSource, LabelSet
from vlmtune.train import items
from vlmtune.train.feature_cache import encode
from vlmtune.train.feature_files import FeatureCache
from vlmtune.train.items import EpochPrompts, ItemReader, TrainItem, image_features
from vlmtune.train.step import run

pytestmark = pytest.mark.unit

RANDOM = {"augment": ["trivialaugment", "flip", "crop"], "mixup": 0.4, "cutmix": 1.0, "mix_probability": 0.7}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    return open_model(str(write_tiny_folder(tmp_path_factory.mktemp("model") / "base")), dtype="float32")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    source = write_class_folders(tmp_path_factory.mktemp("images"), 8)
    experiment = Experiment.model_validate({"data": {"source": str(source)}})
    return load_splits(experiment.data, experiment.task, 0)


def experiment(**train: object) -> Experiment:
    return Experiment.model_validate({"seed": 3, "train": train, "task": {"list_labels": "prompt"}})


def reader_of(opened: OpenedModel, splits: Splits, **train: object) -> ItemReader:
    return ItemReader(experiment(**train), opened.processor, splits.train, splits.labels)


def pixels(shown: TrainItem) -> bytes:
    assert isinstance(shown.image, ProcessedImage)
    return b"".join(patches.numpy().tobytes() for patches, _ in shown.image.tiles)


def seen(batches: list[list[TrainItem]]) -> list[tuple[object, ...]]:
    return [(s.example.id, s.slot.epoch, tuple(s.answers.items()), pixels(s)) for batch in batches for s in batch]


def test_reading_threads_do_not_change_what_training_sees(
    opened: OpenedModel, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for num_threads in (1, 2, 7):
        monkeypatch.setattr(items, "read_ahead", partial(read_ahead, num_threads=num_threads))
        shown.append(seen(list(reader_of(opened, splits, **RANDOM).micro_batches(4, 0, 12))))
    assert shown[0] == shown[1] == shown[2]


def test_starting_in_the_middle_shows_what_would_have_come(opened: OpenedModel, splits: Splits) -> None:
    whole = seen(list(reader_of(opened, splits, sampling="balanced", **RANDOM).micro_batches(4, 0, 12)))
    rest = seen(list(reader_of(opened, splits, sampling="balanced", **RANDOM).micro_batches(4, 7, 5)))
    assert rest == whole[28:]


def test_every_showing_of_an_example_is_drawn_anew(opened: OpenedModel, splits: Splits) -> None:
    reader = reader_of(opened, splits, augment="crop")
    shown = [s for batch in reader.micro_batches(len(splits.train), 0, 3) for s in batch]
    first = [pixels(s) for s in shown if s.example.id == splits.train[0].id]
    assert len(set(first)) == 3


def test_a_mixed_image_says_with_whom_and_weights_both_answers(opened: OpenedModel, splits: Splits) -> None:
    shown = [s for batch in reader_of(opened, splits, mixup=1.0).micro_batches(6, 0, 6) for s in batch]
    for item in shown:
        assert item.mixed_with is not None
        other, share = item.mixed_with
        if other.label != item.example.label:
            assert item.answers == {item.example.label: pytest.approx(share), other.label: pytest.approx(1 - share)}
        else:
            assert item.answers == {item.example.label: pytest.approx(1.0)}
    assert len({item.mixed_with[0].id for item in shown if item.mixed_with}) > 5


def test_a_mixed_image_weights_both_losses_by_lambda(opened: OpenedModel, splits: Splits) -> None:
    """λ·NLL(a) + (1-λ)·NLL(b), by two branches of one image; gradients too."""
    prompts = EpochPrompts(opened, experiment(), splits.labels)
    batch = next(reader_of(opened, splits, mixup=1.0).micro_batches(6, 0, 1))
    assert any(len(item.answers) == 2 for item in batch)
    weight = opened.model.get_parameter("model.language_model.layers.0.feed_forward.w1.weight").requires_grad_(True)

    def loss_and_gradient(batch: list[TrainItem]) -> tuple[float, torch.Tensor]:
        loss = torch.zeros(())
        for group, plan in prompts.plan(opened.model, batch, "answer"):
            loss = loss + run(opened.model, plan, image_features(opened.model, group))
        return loss.item(), torch.autograd.grad(loss, weight)[0]

    expected, gradient = 0.0, torch.zeros_like(weight)
    for item in batch:
        for answer, share in item.answers.items():
            alone = TrainItem(item.example, item.slot, item.image, {answer: 1.0})
            loss, own = loss_and_gradient([alone])
            expected += share * loss
            gradient += share * own
    found, own = loss_and_gradient(batch)
    assert found == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(own, gradient, atol=1e-4 * float(gradient.abs().max()))
    weight.requires_grad_(False)


def test_flips_of_labels_with_sides_are_refused(opened: OpenedModel, splits: Splits) -> None:
    turned = LabelSet(("left", "right"), (("left",), ("right",)))
    with pytest.raises(UserError, match="names a side"):
        ItemReader(experiment(augment="flip-crop"), opened.processor, splits.train, turned)
    assert ItemReader(experiment(augment="crop"), opened.processor, splits.train, turned).has_sided_labels


def test_an_unreadable_partner_leaves_the_image_unmixed(opened: OpenedModel, splits: Splits, tmp_path: Path) -> None:
    broken = replace(splits.train[1], image=ImageSource(data=b"no image", name="broken"))
    reader = ItemReader(experiment(mixup=1.0), opened.processor, [splits.train[0], broken], splits.labels)
    shown = [s for batch in reader.micro_batches(2, 0, 10) for s in batch]
    assert {s.example.id for s in shown} == {splits.train[0].id}
    assert {s.mixed_with is None for s in shown} == {True, False}
    assert list(reader.unreadable) == [broken.id]
    assert np.isclose(sum(shown[0].answers.values()), 1)


def test_connector_dropout_is_the_same_whatever_is_cached(splits: Splits, tmp_path: Path) -> None:
    opened = open_model(str(write_tiny_folder(tmp_path / "base")), dtype="float32")
    plan = apply_adapter(opened.model, AdapterSection(targets=["connector"], dropout=0.5))
    for layer in plan.lora.values():
        torch.nn.init.normal_(layer.lora_B)
    opened.model.train()
    (batch,) = reader_of(opened, splits).micro_batches(4, 0, 1)
    cached = encode(opened.model, "tower", [item.image for item in batch])  # type: ignore[misc]
    results = []
    for hits in ((), (2,), (0, 1, 2, 3)):
        items_ = [replace(item, image=cached[n] if n in hits else item.image) for n, item in enumerate(batch)]
        torch.manual_seed(7)
        with FeatureCache(tmp_path / str(len(hits)), "key", "tower") as cache:
            results.append(image_features(opened.model, items_, cache))
    for other in results[1:]:
        assert all(torch.equal(other[n], features) for n, features in results[0].items())
