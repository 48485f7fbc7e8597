"""A two-stage file: what each stage is as an experiment, and how its mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmtune.config import defaults
from vlmtune.config.load import is_staged, load_experiment, load_stages
from vlmtune.errors import ConfigError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def write(folder: Path, text: str) -> Path:
    path = folder / "stages.yaml"
    path.write_text(text)
    return path


TWO = """
seed: 5
model: {base: builtin:tiny, connector: dense}
align: {data: builtin:drawn-captions}
instruct: {data: builtin:drawn-vqa, train: {max_steps: 7}}
"""


def test_the_connector_learns_alone_then_with_lora(tmp_path: Path) -> None:
    align, instruct = load_stages(write(tmp_path, TWO), [f"output_dir={tmp_path}"]).values()
    assert (align.name, instruct.name, align.seed, instruct.seed) == ("stages-align", "stages", 5, 5)
    assert (align.adapter.parts, align.adapter.targets, align.train.learning_rate) == (["connector"], [], 1e-3)
    assert align.model.connector is not None and align.model.connector.start is None
    assert instruct.model.connector is not None
    assert instruct.model.connector.start == str(tmp_path / "stages-align")
    assert (align.task.type, instruct.task.type, instruct.train.max_steps) == ("text", "text", 7)
    decided = defaults.apply(instruct, num_train=100_000, num_labels=0)
    assert decided.adapter.parts == ["connector"] and "mlp" in (decided.adapter.targets or [])
    assert decided.adapter.learning_rate_factors == {"connector": 0.1}
    assert defaults.apply(align, num_train=100_000, num_labels=0).train.augment == []


def test_a_stage_is_an_experiment_whose_file_reads_back(tmp_path: Path) -> None:
    from vlmtune.config.load import dump

    for experiment in load_stages(write(tmp_path, TWO)).values():
        path = tmp_path / f"{experiment.name}.yaml"
        path.write_text(dump(experiment))
        assert load_experiment(path, must_exist=False) == experiment


def test_the_base_s_connector_goes_through_both_stages(tmp_path: Path) -> None:
    stages = load_stages(write(tmp_path, TWO), ["model.connector=null"])
    assert stages["align"].model.connector is None
    connector = stages["instruct"].model.connector
    assert connector is not None and connector.kind == "own" and (connector.start or "").endswith("stages-align")


def test_a_random_start_is_the_first_stage_s_alone(tmp_path: Path) -> None:
    stages = load_stages(write(tmp_path, TWO), ["model.connector.start=random", f"output_dir={tmp_path}"])
    starts = [stage.model.connector.start for stage in stages.values() if stage.model.connector is not None]
    assert starts == ["random", str(tmp_path / "stages-align")]


def test_one_stage_may_stand_alone(tmp_path: Path) -> None:
    (experiment,) = load_stages(write(tmp_path, TWO), ["align=null"]).values()
    assert experiment.name == "stages" and experiment.model.connector is not None
    assert experiment.model.connector.start is None and not experiment.adapter.learning_rate_factors
    with pytest.raises(ConfigError, match="found no stage"):
        load_stages(write(tmp_path, "align: null\nmodel: builtin:tiny\n"))


def test_mistakes_are_named_with_stage_and_line(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: {base: builtin:tiny, connector: {kind: mlp, variant: dci}}\n"
        "align:\n  data: nowhere.jsonl\n  train: {batch_size: none}\n"
        "instruct:\n  adapter: {parts: [conector]}\n  data: {sorce: x}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_stages(path)
    text = str(caught.value)
    assert "5 problems" in text
    for place in (
        "1: model.connector.variant:",
        "3: align.data.source:",
        "4: align.train.batch_size:",
        "6: instruct.adapter.parts",
        "7: instruct.data.sorce:",
    ):
        assert f"stages.yaml:{place}" in text, text


def test_overrides_reach_into_short_forms(tmp_path: Path) -> None:
    stages = load_stages(write(tmp_path, TWO), ["model.connector.variant=sci", "align.data.limit=9"])
    connector = stages["align"].model.connector
    assert connector is not None and (connector.kind, connector.variant) == ("dense", "sci")
    assert (stages["align"].data.source, stages["align"].data.limit) == ("builtin:drawn-captions", 9)


def test_the_shipped_files_are_told_apart() -> None:
    assert set(load_stages(ROOT / "configs" / "connector_stages.yaml")) == {"align", "instruct"}
    assert is_staged(ROOT / "configs" / "connector_stages.yaml") and not is_staged(ROOT / "configs" / "digits.yaml")
