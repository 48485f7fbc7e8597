"""How the benchmarks form their figures, and that both sides of them get the same work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

from measure import interleave, ratio, ratio_table, record, table, write_json
from peers import IMAGE_TOKEN, NUM_IMAGE_TOKENS, config_450m, make_batch

from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def test_a_ratio_is_formed_within_a_repetition() -> None:
    # The second repetition ran on a machine half as fast: no ratio changes by that.
    assert ratio([10.0, 20.0, 10.0], [1.0, 2.0, 2.0]) == {"value": 10.0, "low": 5.0, "high": 10.0}
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0], [1.0])


def test_contenders_take_turns_and_every_repetition_is_kept() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_record_says_where_and_with_what(tmp_path: Path) -> None:
    path = tmp_path / "results" / "file.json"
    write_json(path, record("name", CPU, True, ratios={"x": {"value": 2.0, "low": 1.0, "high": 3.0}}))
    found = json.loads(path.read_text())
    assert found["benchmark"] == "name" and found["quick"] and found["clock"] == "wall"
    assert found["machine"]["threads"] == torch.get_num_threads() and "torch" in found["versions"]


def test_tables_show_the_range_and_what_was_not_measured() -> None:
    text = ratio_table({"x": {"value": 2.0, "low": 1.0, "high": 3.0}, "y": None})
    assert "1.00 to 3.00" in text and "not measured" in text
    assert len({len(line) for line in table(["a", "b"], [["1", "22"], ["333", "4"]]).splitlines()}) == 1


def test_both_sides_see_the_same_tokens() -> None:
    batch = make_batch(3)
    inputs = batch.peer_inputs(CPU)
    for row in range(3):
        whole = batch.shared + batch.own[row] + batch.answers[row]
        assert inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist() == whole
    assert (inputs["input_ids"] == IMAGE_TOKEN).sum() == 3 * NUM_IMAGE_TOKENS
    assert {len(answer) for answer in batch.answers} == {2, 3, 4}


def test_the_model_is_the_450m_one() -> None:
    with torch.device("meta"):
        model = Lfm2Vl(Lfm2VlConfig.from_dict(config_450m()))
    assert model.config.text_config.feed_forward_size == 4608
    assert 440e6 < sum(p.numel() for p in model.parameters()) < 460e6
