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
from vlmtune.config.schema import Experiment
from vlmtune.data.prefetch import read_ahead
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import UserError
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.records import ImageSource, LabelSet
from vlmtune.train import samples
from vlmtune.train.samples import Prompts, SampleReader, SampleTree, Shown, image_features
from vlmtune.train.step import sample_loss

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


def reader_of(opened: OpenedModel, splits: Splits, **train: object) -> SampleReader:
    return SampleReader(experiment(**train), opened.processor, splits.train, splits.labels)


def pixels(shown: Shown) -> bytes:
    assert isinstance(shown.image, ProcessedImage)
    return b"".join(patches.numpy().tobytes() for patches, _ in shown.image.tiles)


def seen(batches: list[list[Shown]]) -> list[tuple[object, ...]]:
    return [(s.example.id, s.epoch, tuple(s.answers.items()), pixels(s)) for batch in batches for s in batch]


def test_the_same_seed_shows_the_same_whatever_the_number_of_threads(
    opened: OpenedModel, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for num_threads in (1, 2, 7):
        monkeypatch.setattr(samples, "read_ahead", partial(read_ahead, num_threads=num_threads))
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


def total_loss(opened: OpenedModel, tree: SampleTree) -> torch.Tensor:
    features = image_features(opened.model, tree.shown)
    for sample, image in zip(tree.samples, features, strict=True):
        sample.features = [image]
    return sample_loss(opened.model, tree.prefix, tree.samples).total


def test_the_loss_of_a_mixed_image_is_lambda_of_one_answer_and_the_rest_of_the_other(
    opened: OpenedModel, splits: Splits
) -> None:
    """λ·NLL(a) + (1-λ)·NLL(b), by two branches of one image; gradients too."""
    prompts = Prompts(opened, experiment(), splits.labels)
    batch = next(reader_of(opened, splits, mixup=1.0).micro_batches(6, 0, 1))
    assert any(len(item.answers) == 2 for item in batch)
    weight = opened.model.get_parameter("model.language_model.layers.0.feed_forward.w1.weight").requires_grad_(True)

    def loss_and_gradient(items: list[Shown]) -> tuple[float, torch.Tensor]:
        loss = sum((total_loss(opened, tree) for tree in prompts.trees(items)), torch.zeros(()))
        return loss.item(), torch.autograd.grad(loss, weight)[0]

    expected, gradient = 0.0, torch.zeros_like(weight)
    for item in batch:
        for answer, share in item.answers.items():
            alone = Shown(item.example, item.epoch, item.image, "", {answer: 1.0})
            loss, own = loss_and_gradient([alone])
            expected += share * loss
            gradient += share * own
    found, own = loss_and_gradient(batch)
    assert found == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(own, gradient, atol=1e-4 * float(gradient.abs().max()))
    weight.requires_grad_(False)


def test_flips_of_labels_with_sides_are_refused_before_anything_is_read(opened: OpenedModel, splits: Splits) -> None:
    turned = LabelSet(("left", "right"), (("left",), ("right",)))
    with pytest.raises(UserError, match="names a side"):
        SampleReader(experiment(augment="flip-crop"), opened.processor, splits.train, turned)
    assert SampleReader(experiment(augment="crop"), opened.processor, splits.train, turned).has_sided_labels


def test_an_unreadable_partner_leaves_the_image_unmixed_and_is_noted(
    opened: OpenedModel, splits: Splits, tmp_path: Path
) -> None:
    broken = replace(splits.train[1], image=ImageSource(data=b"no image", name="broken"))
    reader = SampleReader(experiment(mixup=1.0), opened.processor, [splits.train[0], broken], splits.labels)
    shown = [s for batch in reader.micro_batches(2, 0, 10) for s in batch]
    assert {s.example.id for s in shown} == {splits.train[0].id}
    assert {s.mixed_with is None for s in shown} == {True, False}
    assert list(reader.unreadable) == [broken.id]
    assert np.isclose(sum(shown[0].answers.values()), 1)
