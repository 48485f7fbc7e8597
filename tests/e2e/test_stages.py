"""Two-stage training for real, on a random model small enough for seconds: captions, then conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tiny_model import write_tiny_folder
from vlmtune.config.load import load_stages
from vlmtune.errors import RunFolderError
from vlmtune.models.registry import open_model
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.open import open_adapted
from vlmtune.workflows.train import train_stages

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, LLaVA-style lists, and the file of both stages."""
    folder = tmp_path_factory.mktemp("stages")
    write_tiny_folder(folder / "base")
    colors = ("red", "blue", "white", "black")
    for number in range(24):
        Image.new("RGB", (16, 16), colors[number % 4]).save(folder / f"{number}.png")
    captions = [{"image": f"{n}.png", "caption": f"a {colors[n % 4]} square"} for n in range(24)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    talks = [
        {
            "id": str(n),
            "image": f"{n}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat color?"},
                {"from": "gpt", "value": colors[n % 4]},
                {"from": "human", "value": "Is it a circle?"},
                {"from": "gpt", "value": "no"},
            ],
        }
        for n in range(24)
    ]
    (folder / "talks.json").write_text(json.dumps(talks))
    path = folder / "two.yaml"
    path.write_text(
        "model: {base: base, dtype: float32, connector: dense}\n"
        "align: {data: captions.jsonl, train: {max_steps: 4, batch_size: 4, eval_every: 2, save_every: 2}}\n"
        "instruct:\n  data: talks.json\n  adapter: {parts: [connector], targets: [mlp], rank: 2, dropout: 0.1}\n"
        "  train: {max_steps: 6, batch_size: 4, eval_every: 3, save_every: 2, learning_rate: 3e-3}\n"
    )
    return path


LAST = (("two-align", 4), ("two", 6))
"""Run folder and last step of each stage."""


class KilledHereError(Exception):
    pass


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "adapter_model.safetensors")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


@pytest.mark.parametrize(("stage", "step"), [("two-align", 3), ("two", 5)])
def test_killed_in_either_stage_and_resumed_equals_uninterrupted(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    # One output folder after the other: the second stage's file names the first one's folder.
    output = tmp_path / "runs"
    change = [f"output_dir={output}"]
    train_stages(load_stages(config, change))
    whole = {
        name: (tensors(output / name, last), losses(output / name)) for name, last in (("two-align", 4), ("two", 6))
    }
    output.rename(tmp_path / "first")

    append = RunFolder.append_metrics

    def killed(folder: RunFolder, **values: Any) -> None:
        append(folder, **values)
        if folder.path.name == stage and values["kind"] == "train" and values["step"] == step:
            raise KilledHereError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", killed)
        with pytest.raises(KilledHereError):
            train_stages(load_stages(config, change))
    with pytest.raises(RunFolderError, match="--resume"):
        train_stages(load_stages(config, change))
    results = train_stages(load_stages(config, change), resume=True)
    assert list(results) == ["align", "instruct"]
    for name, last in LAST:
        expected, found = whole[name][0], tensors(output / name, last)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)
        assert losses(output / name) == whole[name][1]


def test_stage_one_moves_only_the_connector_and_stage_two_continues(config: Path, tmp_path: Path) -> None:
    results = train_stages(load_stages(config, [f"output_dir={tmp_path}"]))
    first, second = Path(results["align"].run), Path(results["instruct"].run)
    aligned = tensors(first, 4)
    assert {name.split(".")[3] for name in aligned} == {"multi_modal_projector"}
    base = open_model(str(config.parent / "base"))
    dense = aligned["base_model.model.model.multi_modal_projector.dense.weight"]
    assert dense.abs().sum() > 0
    assert not torch.equal(
        aligned["base_model.model.model.multi_modal_projector.linear_1.weight"],
        base.model.connector.get_parameter("linear_1.weight"),
    )
    learned = json.loads((second / "run.json").read_text())
    assert {item["pattern"] for item in learned["learned"]} == {"mlp", "connector"}
    notes = json.dumps(learned["data"])
    assert learned["data"]["splits"]["train"]["used"] == 2 * learned["data"]["splits"]["train"]["images"], notes
    # An ordinary run folder: opens by its name, with its connector.
    opened = open_adapted(str(second))
    assert opened.model.connector.shape.variant == "dci"
    moved = tensors(second, 6)["base_model.model.model.multi_modal_projector.dense.weight"]
    assert not torch.equal(moved, dense)
