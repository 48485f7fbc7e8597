"""Checkpoints load strictly in both directions, and are saved whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tiny_model import random_model
from vlmtune.errors import UserError, WeightsError
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.registry import LFM2_VL
from vlmtune.models.weights import NameTable, load_strict, read_checkpoint, save_hf

pytestmark = pytest.mark.unit


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2, bias=False)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _empty_like(model: Lfm2Vl) -> Lfm2Vl:
    with torch.device("meta"):
        return Lfm2Vl(Lfm2VlConfig.from_dict(model.config_dict()))


def test_a_saved_model_loads_back_bit_for_bit(tmp_path: Path) -> None:
    model = random_model()
    save_hf(tmp_path / "m", model, model.config_dict())
    other = _empty_like(model)
    load_strict(other, read_checkpoint(tmp_path / "m"), LFM2_VL.names)
    for (name, ours), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert not theirs.is_meta


def test_a_sharded_model_equals_the_single_file(tmp_path: Path) -> None:
    model = random_model()
    save_hf(tmp_path / "m", model, model.config_dict(), max_shard_bytes=20_000)
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) < 40_000
    other = _empty_like(model)
    load_strict(other, read_checkpoint(tmp_path / "m"), LFM2_VL.names)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_all_problems_are_told_at_once_with_shapes() -> None:
    tensors = _tensors(Small())
    tensors["third.weight"] = torch.zeros(7)
    tensors["first.weight"] = torch.zeros(4, 9)
    del tensors["second.weight"]
    with pytest.raises(WeightsError) as caught:
        load_strict(Small(), tensors, NameTable(), origin="here")
    message = str(caught.value)
    assert message.startswith("here: 3 tensors do not fit")
    assert "missing: second.weight [2, 4]" in message
    assert "extra: third.weight [7]" in message
    assert "first.weight is [4, 9], expected [4, 3]" in message


def test_nothing_is_assigned_when_something_does_not_fit() -> None:
    model = Small()
    before = _tensors(model)
    tensors = {name: tensor + 1 for name, tensor in before.items()} | {"extra": torch.zeros(1)}
    with pytest.raises(WeightsError):
        load_strict(model, tensors, NameTable())
    assert all(torch.equal(tensor, before[name]) for name, tensor in _tensors(model).items())


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
        lambda name: name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model."),
        lambda name: name.removeprefix("model.").replace("language_model.", "language_model.model."),
    ],
)
def test_older_spellings_load(spell: object, tmp_path: Path) -> None:
    assert callable(spell)
    model = random_model()
    old = {spell(name): tensor for name, tensor in _tensors(model).items()}
    assert old.keys() != _tensors(model).keys()
    other = _empty_like(model)
    load_strict(other, read_checkpoint(_write(tmp_path / "m", old)), LFM2_VL.names)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_only_the_pooling_head_is_dropped() -> None:
    model = random_model()
    tensors = _tensors(model) | {"model.vision_tower.vision_model.head.probe": torch.zeros(1, 1, 24)}
    load_strict(_empty_like(model), tensors, LFM2_VL.names)
    tensors["model.vision_tower.tail.probe"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"extra: model\.vision_tower\.tail\.probe \[1\]"):
        load_strict(_empty_like(model), tensors, LFM2_VL.names)


def test_only_an_equal_tied_head_loads() -> None:
    model = random_model()
    embedding = model.model.language_model.embed_tokens.weight.detach()
    load_strict(_empty_like(model), _tensors(model) | {"lm_head.weight": embedding.clone()}, LFM2_VL.names)
    with pytest.raises(WeightsError, match=r"lm_head\.weight differs from .*embed_tokens"):
        load_strict(_empty_like(model), _tensors(model) | {"lm_head.weight": embedding + 1}, LFM2_VL.names)


def test_two_spellings_of_one_tensor_are_refused() -> None:
    model = random_model()
    tensors = _tensors(model)
    tensors["multi_modal_projector.linear_1.bias"] = tensors["model.multi_modal_projector.linear_1.bias"].clone()
    with pytest.raises(WeightsError, match="twice: "):
        load_strict(_empty_like(model), tensors, LFM2_VL.names)


def test_a_loaded_model_and_its_file_are_independent(tmp_path: Path) -> None:
    folder = _write(tmp_path / "m", _tensors(Small()))
    file = folder / "model.safetensors"
    before = file.read_bytes()
    model = Small()
    load_strict(model, read_checkpoint(folder), NameTable())
    with file.open("r+b") as stream:  # another program saves over the file, in place
        stream.seek(-8, 2)
        stream.write(b"\xff" * 8)
    assert not any(parameter.isnan().any() for parameter in model.parameters())
    file.write_bytes(before)
    with torch.no_grad():
        model.first.weight.fill_(7)
    assert file.read_bytes() == before


def test_loading_casts(tmp_path: Path) -> None:
    model = Small()
    load_strict(model, read_checkpoint(_write(tmp_path / "m", _tensors(model))), NameTable(), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_truncated_file_is_named_with_its_size(tmp_path: Path, cut: int) -> None:
    folder = _write(tmp_path / "m", {"a": torch.zeros(100, 100)})
    file = folder / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size - cut])
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(folder)
    assert str(file) in str(caught.value)
    assert f"{size - cut:,} bytes found" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\x10\x00\x00\x00\x00\x00\x00\x00not json at all!",
        b"\xff" * 32,
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
    ],
)
def test_a_damaged_file_is_a_weights_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"model\.safetensors: (truncated|damaged)"):
        read_checkpoint(tmp_path)


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(WeightsError, match="git lfs pull"):
        read_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    model = random_model()
    save_hf(tmp_path / "m", model, model.config_dict(), max_shard_bytes=20_000)
    lost = sorted((tmp_path / "m").glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=lost.name):
        read_checkpoint(tmp_path / "m")


def test_an_index_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "m").mkdir()
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="beside the index"):
        read_checkpoint(tmp_path / "m")


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: pickled weights are never loaded"):
        read_checkpoint(tmp_path)


def test_saving_never_writes_over_a_folder_and_leaves_no_rest(tmp_path: Path) -> None:
    model = random_model()
    target = tmp_path / "m"
    target.mkdir()
    (target / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        save_hf(target, model, model.config_dict())
    assert [path.name for path in tmp_path.rglob("*")] == ["m", "mine.txt"]


def test_a_failed_save_leaves_nothing_behind(tmp_path: Path) -> None:
    class FullDisk:
        def save(self, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    model = random_model()
    with pytest.raises(UserError, match="No space left on device"):
        save_hf(tmp_path / "m", model, model.config_dict(), tokenizer=FullDisk())
    assert list(tmp_path.iterdir()) == []


def test_saving_casts_and_says_so(tmp_path: Path) -> None:
    model = random_model()
    save_hf(tmp_path / "m", model, model.config_dict(), dtype=torch.bfloat16)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}
