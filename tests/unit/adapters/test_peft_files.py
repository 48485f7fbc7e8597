"""Adapter files come back as they were saved, and MODEL opens whatever it is: model, adapter, checkpoint, run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_model import write_tiny_folder
from tests.unit.adapters.test_plan import ROLES, disturb, random_model, run
from vlmtune.adapters.layer import LoraLinear, merged
from vlmtune.adapters.peft_files import load_adapter, save_adapter
from vlmtune.adapters.plan import AdapterPlan, apply_adapter
from vlmtune.config.load import dump
from vlmtune.config.schema import AdapterSection, Experiment, ModelSection
from vlmtune.errors import AdapterError, RunFolderError, UserError, WeightsError
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.registry import open_model
from vlmtune.runs.open import find_run, open_adapted

pytestmark = pytest.mark.unit

SECTIONS = {
    "lora": AdapterSection(targets=ROLES, rank=3, alpha=5),
    "rslora": AdapterSection(targets=["q_proj", "mlp"], rank=4, rslora=True, dropout=0.1),
    "parts": AdapterSection(parts=["connector", "embeddings"]),
    "both": AdapterSection(targets=["attention"], parts=["connector", "vision_tower"], rank=2),
    "everything": AdapterSection(parts=["everything"]),
    "decoder": AdapterSection(parts=["language_model"], targets=["connector"]),
}


def adapted(section: AdapterSection) -> tuple[Lfm2Vl, AdapterPlan]:
    """A model whose adapter has learned something."""
    model = random_model()
    plan = apply_adapter(model, section)
    disturb(model)
    with torch.no_grad():
        for parameter in plan.full_parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model, plan


@pytest.mark.parametrize("kind", SECTIONS)
def test_an_adapter_comes_back_onto_a_plain_model(kind: str, tmp_path: Path) -> None:
    model, plan = adapted(SECTIONS[kind])
    save_adapter(tmp_path / "a", model, plan, "base")
    other = random_model()
    loaded = load_adapter(tmp_path / "a", other)
    with torch.no_grad():
        assert torch.equal(run(other), run(model))
        assert not torch.equal(run(other), run(random_model()))
    assert loaded.parameters.keys() == plan.parameters.keys()
    assert loaded.num_trainable == plan.num_trainable
    assert loaded.section.rank == plan.section.rank and loaded.section.rslora == plan.section.rslora


def test_adapter_loads_onto_the_same_plan_on_resume(tmp_path: Path) -> None:
    model, plan = adapted(SECTIONS["both"])
    save_adapter(tmp_path / "a", model, plan, "base")
    other = random_model()
    other_plan = apply_adapter(other, SECTIONS["both"], seed=9)
    optimizer = torch.optim.AdamW(other_plan.parameter_groups(1e-3))
    assert load_adapter(tmp_path / "a", other, other_plan) is other_plan
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in other_plan.parameters.values()}  # still the optimizer's own
    assert all(torch.equal(p, plan.parameters[name]) for name, p in other_plan.parameters.items())


def test_saving_while_merged_saves_the_same(tmp_path: Path) -> None:
    model, plan = adapted(SECTIONS["lora"])
    save_adapter(tmp_path / "a", model, plan, "base")
    with merged(model):
        save_adapter(tmp_path / "b", model, plan, "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_parts_under_bfloat16_are_saved_in_float32_and_come_back(tmp_path: Path) -> None:
    model = random_model().to(torch.bfloat16)
    plan = apply_adapter(model, SECTIONS["parts"])
    with torch.no_grad():
        for parameter in plan.full_parameters.values():
            parameter.add_(1e-5)
    save_adapter(tmp_path / "a", model, plan, "base")
    assert {t.dtype for t in load_file(tmp_path / "a" / "adapter_model.safetensors").values()} == {torch.float32}
    other = random_model().to(torch.bfloat16)
    loaded = load_adapter(tmp_path / "a", other)
    for name, parameter in loaded.full_parameters.items():
        assert torch.equal(parameter, plan.full_parameters[name])
        assert torch.equal(other.get_parameter(name), parameter.bfloat16())


def _damage(folder: Path, kind: str) -> None:
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, values = load_file(weights), json.loads(config.read_text())
    first = next(name for name in tensors if "lora_A" in name)
    if kind == "half":
        del tensors[first]
    elif kind == "layer":
        for half in ("lora_A", "lora_B"):
            del tensors[first.replace("lora_A", half)]
    elif kind == "shape":
        tensors[first] = tensors[first][:, :-1].contiguous()
    elif kind == "stranger":
        tensors["base_model.model.model.nowhere.lora_A.weight"] = torch.zeros(2, 2)
    elif kind == "prefix":
        tensors["transformer.lora_A.weight"] = torch.zeros(2, 2)
    elif kind == "dora":
        values["use_dora"] = True
    elif kind == "bias":
        values["bias"] = "all"
    save_file(tensors, weights)
    config.write_text("{" if kind == "json" else json.dumps(values))
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif kind == "gone":
        weights.unlink()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("half", "only one of lora_A and lora_B"),
        ("layer", "named by target_modules, but not in"),
        ("shape", r"lora_A is \[3, 31\], expected \[3, 32\]|wrong shape"),
        ("stranger", "not a linear layer of this model: model.nowhere"),
        ("prefix", "not a PEFT adapter"),
        ("dora", "use_dora is True"),
        ("bias", "bias is 'all'"),
        ("json", "not readable as JSON"),
        ("truncated", "bytes found"),
        ("gone", "cannot read it"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(kind: str, told: str, tmp_path: Path) -> None:
    model, plan = adapted(SECTIONS["lora"])
    save_adapter(tmp_path / "a", model, plan, "base")
    _damage(tmp_path / "a", kind)
    with pytest.raises((AdapterError, WeightsError), match=told):
        load_adapter(tmp_path / "a", random_model())


def test_an_adapter_of_another_plan_is_refused_on_resume(tmp_path: Path) -> None:
    model, plan = adapted(SECTIONS["lora"])
    save_adapter(tmp_path / "a", model, plan, "base")
    other = random_model()
    other_plan = apply_adapter(other, AdapterSection(targets=["mlp"], rank=3, alpha=5))
    with pytest.raises(AdapterError, match="extra: "):
        load_adapter(tmp_path / "a", other, other_plan)


def test_an_adapter_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    model, plan = adapted(SECTIONS["lora"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        save_adapter(tmp_path / "file" / "a", model, plan, "base")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "base")


@pytest.fixture
def trained(base: Path, tmp_path: Path) -> Path:
    """A run folder with two checkpoints, of which the first is the best."""
    run_folder = tmp_path / "runs" / "x"
    experiment = Experiment(model=ModelSection(base=str(base), do_image_splitting=False))
    opened = open_model(str(base))
    plan = apply_adapter(opened.model, SECTIONS["both"])
    for step in (1, 2):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in plan.parameters.values():
                parameter.normal_(std=0.1)
        save_adapter(run_folder / "checkpoints" / f"step-{step:06d}", opened.model, plan, str(base))
    (run_folder / "config.yaml").write_text(dump(experiment))
    (run_folder / "best").symlink_to(Path("checkpoints") / "step-000001")
    return run_folder


def test_a_plain_model_opens(base: Path) -> None:
    opened = open_adapted(str(base))
    assert opened.plan is None and opened.base == str(base) == opened.source


def test_run_opens_as_best_checkpoint_with_its_image_settings(trained: Path, base: Path) -> None:
    opened = open_adapted(str(trained))
    assert opened.adapter_folder == (trained / "checkpoints" / "step-000001").resolve()
    assert opened.base == str(base) and opened.source == str(trained)
    assert opened.processor.settings.do_image_splitting is False  # type: ignore[attr-defined]
    best = open_adapted(str(trained / "checkpoints" / "step-000001"))
    last = open_adapted(str(trained / "checkpoints" / "step-000002"))
    link = open_adapted(str(trained / "best"))
    with torch.no_grad():
        assert torch.equal(run(opened.model), run(best.model))  # type: ignore[arg-type]
        assert torch.equal(run(opened.model), run(link.model))  # type: ignore[arg-type]
        assert not torch.equal(run(opened.model), run(last.model))  # type: ignore[arg-type]
    for other in (best, last, link):
        assert other.experiment is not None
        assert other.processor.settings.do_image_splitting is False  # type: ignore[attr-defined]


def test_opened_run_is_plain_unless_adapter_is_kept(trained: Path) -> None:
    plain, kept = open_adapted(str(trained)), open_adapted(str(trained), keep_adapter=True)
    assert not any(isinstance(module, LoraLinear) for module in plain.model.modules())
    assert any(isinstance(module, LoraLinear) for module in kept.model.modules())
    with torch.no_grad():
        ours, theirs = run(plain.model), run(kept.model)  # type: ignore[arg-type]
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_an_adapter_outside_a_run_finds_its_base(trained: Path, tmp_path: Path, base: Path) -> None:
    moved = Path(shutil.copytree(trained / "checkpoints" / "step-000001", tmp_path / "moved"))
    assert find_run(moved) is None
    opened = open_adapted(str(moved))
    assert opened.base == str(base) and opened.experiment is None
    with torch.no_grad():
        assert torch.equal(run(opened.model), run(open_adapted(str(trained)).model))  # type: ignore[arg-type]


def test_an_adapter_without_a_base_says_so(trained: Path) -> None:
    folder = trained / "checkpoints" / "step-000001"
    config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": None}
    moved = trained.parent / "moved"
    shutil.copytree(folder, moved)
    (moved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="names no base model"):
        open_adapted(str(moved))


def test_missing_checkpoint_and_dangling_link_have_different_messages(trained: Path) -> None:
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(RunFolderError, match="which is gone"):
        open_adapted(str(trained))
    os.unlink(trained / "best")  # noqa: PTH108
    with pytest.raises(RunFolderError, match="no checkpoint yet"):
        open_adapted(str(trained))
