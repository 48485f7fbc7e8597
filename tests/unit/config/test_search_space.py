"""What a search may vary: the space in YAML, its defaults, and how a point becomes an experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmtune.config import defaults
from vlmtune.config.load import InvalidExperimentError, dump, load_experiment
from vlmtune.config.schema import Experiment, RangeSection
from vlmtune.config.search_space import (
    ALPHA_PER_RANK,
    default_space,
    label,
    own_value,
    searchable_keys,
    whole_space,
    with_point,
)

pytestmark = pytest.mark.unit


def resolved(**sections: dict) -> Experiment:
    return defaults.apply(Experiment.model_validate(sections), num_train=129, num_labels=10)


def load(tmp_path: Path, text: str) -> Experiment:
    (tmp_path / "e.yaml").write_text(text)
    return load_experiment(tmp_path / "e.yaml")


def messages(tmp_path: Path, space: str) -> list[str]:
    with pytest.raises(InvalidExperimentError) as caught:
        load(tmp_path, f"search:\n  space:\n{space}")
    return [str(problem).replace(str(tmp_path / "e.yaml"), "F") for problem in caught.value.problems]


def test_the_default_space_holds_what_the_experiment_does_by_itself() -> None:
    decided = resolved(adapter={"rank": 12, "targets": ["mlp"]}, train={"augment": "shift-rotate"})
    space = default_space(decided)
    assert set(space) == {
        "adapter.rank",
        ALPHA_PER_RANK,
        "adapter.targets",
        "adapter.dropout",
        "train.learning_rate",
        "train.augment",
    }
    for key, choices in space.items():
        own = own_value(decided, key)
        if isinstance(choices, RangeSection):
            assert choices.low <= own <= choices.high
        else:
            assert label(own) in [label(value) for value in choices]
    assert space["adapter.rank"] == [4, 8, 12, 16, 32]


def test_without_lora_there_is_no_rank_to_vary() -> None:
    space = default_space(resolved(adapter={"parts": ["everything"], "targets": []}))
    assert set(space) == {"train.learning_rate", "train.augment"}


def test_given_entries_replace_defaults_and_null_removes_one(tmp_path: Path) -> None:
    text = (
        "search:\n  space:\n    adapter.rank: [2, 64]\n    adapter.dropout: null\n    train.mixup: {low: 0, high: 1}\n"
    )
    space = whole_space(defaults.apply(load(tmp_path, text), num_train=129, num_labels=10))
    assert space["adapter.rank"] == [2, 64]
    assert "adapter.dropout" not in space
    assert space["train.mixup"] == RangeSection(low=0, high=1)
    assert "train.learning_rate" in space
    absolute = load(tmp_path, "search:\n  space:\n    adapter.alpha: [8, 16]\n")
    assert ALPHA_PER_RANK not in whole_space(defaults.apply(absolute, num_train=129, num_labels=10))


def test_alpha_follows_the_rank_of_a_point() -> None:
    experiment = Experiment.model_validate({"adapter": {"rank": 4}, "search": {"space": {"adapter.rank": [8]}}})
    own = with_point(
        experiment,
        {"adapter.rank": 8, ALPHA_PER_RANK: 4.0, "train.augment": "crop", "adapter.targets": ["attention", "mlp"]},
    )
    assert (own.adapter.rank, own.adapter.alpha, own.adapter.targets) == (8, 32.0, ["attention", "mlp"])
    assert own.train.augment == ["random-crop", "color"]
    assert own.search is None and experiment.adapter.rank == 4
    assert Experiment.model_validate(own.model_dump()) == own


def test_a_space_survives_being_written_and_read(tmp_path: Path) -> None:
    experiment = resolved()
    experiment = experiment.model_copy(
        update={"search": Experiment.model_validate({"search": {"space": default_space(experiment)}}).search}
    )
    assert load(tmp_path, dump(experiment)).search == experiment.search


def test_no_searchable_key_changes_what_is_measured() -> None:
    keys = set(searchable_keys())
    assert {"adapter.rank", "train.learning_rate", "train.mixup", "task.list_labels", ALPHA_PER_RANK} <= keys
    assert not {"seed", "data.limit", "data.validation_fraction", "task.type", "task.labels", "evaluate.split"} & keys


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("adapter.rnk: [4]", "Did you mean 'adapter.rank'?"),
        ("data.limit: [100]", "Unknown key to search over 'data.limit'"),
        ("adapter.rank: 4", "found '4', expected keys with values"),
        ("adapter.rank: [4, 0]", "found '0', which adapter.rank cannot be"),
        ("adapter.rank: []", "found an empty list"),
        ("adapter.rank: {low: 8, high: 4}", "found 8 to 4, expected low below high"),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "expected a number above 0"),
        ("adapter.dropout: {low: 0, high: 1.5}", "found '1.5', which adapter.dropout cannot be"),
        ("adapter.dropout: {low: 0, hgh: 1}", "Did you mean 'high'?"),
        ("train.augment: [none, [flop]]", "Unknown augmentation 'flop'"),
        ("adapter.alpha_per_rank: [2, -1]", "found '-1', expected a number above 0"),
        ("train.class_weights: [none, balanced, evenly]", "which train.class_weights cannot be"),
    ],
)
def test_a_wrong_space_is_one_problem_with_its_line(tmp_path: Path, line: str, words: str) -> None:
    found = messages(tmp_path, f"    {line}\n")
    assert words in found[0] and found[0].startswith("F:3: search.space.")


def test_only_contradictions_of_one_value_are_reported(
    tmp_path: Path,
) -> None:
    text = "train: {sampling: balanced, min_gain: 0.1}\nsearch: {space: {train.class_weights: [none, balanced]}}\n"
    with pytest.raises(InvalidExperimentError) as caught:
        load(tmp_path, text)
    keys = [problem.key for problem in caught.value.problems]
    assert sorted(keys) == ["search.space.train.class_weights[1]", "train.min_gain"]
