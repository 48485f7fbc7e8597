"""What is decided for an experiment that leaves keys out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmtune.config import defaults
from vlmtune.config.schema import AdapterSection, ConnectorSection, Experiment, ModelSection, TaskSection, TrainSection

pytestmark = pytest.mark.unit

REAL = ModelSection(base="LiquidAI/LFM2-VL-450M")
DECIDED = [
    *(choice.key for choice in defaults.TABLE),
    "adapter.alpha",
    "train.eval_every",
    "train.save_every",
]


def value(experiment: Experiment, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(experiment, section), name)


@given(
    model=st.sampled_from([ModelSection(), REAL]),
    num_train=st.integers(1, 100_000),
    num_labels=st.integers(0, 2_000),
    parts=st.sampled_from([None, [], ["connector"]]),
    max_steps=st.sampled_from([None, 1, 5_000]),
)
def test_nothing_is_left_undecided_and_deciding_twice_changes_nothing(
    model, num_train, num_labels, parts, max_steps
) -> None:
    experiment = Experiment(model=model, adapter=AdapterSection(parts=parts), train=TrainSection(max_steps=max_steps))
    before = experiment.model_copy(deep=True)
    decided = defaults.apply(experiment, num_train=num_train, num_labels=num_labels)
    assert experiment == before
    assert [key for key in DECIDED if value(decided, key) is None] == []
    assert defaults.apply(decided, num_train=num_train, num_labels=num_labels) == decided
    Experiment.model_validate(decided.model_dump())
    assert decided.train.eval_every is not None
    assert 1 <= decided.train.eval_every <= defaults.num_steps(decided, num_train)
    assert decided.train.eval_every <= defaults.steps_per_epoch(decided, num_train)
    if max_steps:
        assert defaults.num_steps(decided, num_train) == max_steps


def test_what_the_file_says_is_never_changed() -> None:
    experiment = Experiment(
        adapter=AdapterSection(targets=["q_proj"], rank=4, alpha=1.0),
        train=TrainSection(epochs=0.5, learning_rate=7.0, eval_every=3),
        task=TaskSection(list_labels="never"),
    )
    decided = defaults.apply(experiment, num_train=1_000, num_labels=10)
    assert (decided.adapter.targets, decided.adapter.rank, decided.adapter.alpha) == (["q_proj"], 4, 1.0)
    assert (decided.train.epochs, decided.train.learning_rate, decided.train.eval_every) == (0.5, 7.0, 3)
    assert decided.task.list_labels == "never"
    assert decided.train.save_every == 3


def test_alpha_follows_the_rank_and_fewer_images_get_more_passes() -> None:
    few = defaults.apply(Experiment(adapter=AdapterSection(rank=8)), num_train=100, num_labels=10)
    many = defaults.apply(Experiment(), num_train=50_000, num_labels=10)
    assert few.adapter.alpha == 16
    assert few.train.epochs is not None and many.train.epochs is not None
    assert few.train.epochs > many.train.epochs


def test_parts_without_targets_take_a_lower_rate() -> None:
    parts = defaults.apply(
        Experiment(model=REAL, adapter=AdapterSection(parts=["connector"])), num_train=100, num_labels=2
    )
    lora = defaults.apply(Experiment(model=REAL), num_train=100, num_labels=2)
    assert parts.adapter.targets == []
    assert parts.train.learning_rate is not None and lora.train.learning_rate is not None
    assert parts.train.learning_rate < lora.train.learning_rate


@pytest.mark.parametrize(
    ("connector", "factors"),
    [
        (ConnectorSection(kind="dense"), {"connector": 0.1}),
        (ConnectorSection(kind="dense", start="random"), {}),
        (ConnectorSection(kind="linear"), {}),
        (ConnectorSection(kind="linear", start="runs/aligned"), {"connector": 0.1}),
        (None, {}),
    ],
)
def test_only_an_aligned_connector_takes_a_tenth_of_the_rate(
    connector: ConnectorSection | None, factors: dict[str, float]
) -> None:
    model = REAL.model_copy(update={"connector": connector})
    for adapter in (AdapterSection(), AdapterSection(targets=["mlp"])):
        decided = defaults.apply(Experiment(model=model, adapter=adapter), num_train=100, num_labels=2)
        assert decided.adapter.learning_rate_factors == factors
    own = AdapterSection(learning_rate_factors={"connector": 0.5, "mlp": 2.0})
    decided = defaults.apply(Experiment(model=model, adapter=own), num_train=100, num_labels=2)
    assert decided.adapter.learning_rate_factors == {"connector": 0.5, "mlp": 2.0}


def test_the_bases_connector_takes_a_tenth_beside_lora() -> None:
    for targets, factors in (["mlp"], {"connector": 0.1}), ([], {}):
        adapter = AdapterSection(targets=targets, parts=["connector"])
        decided = defaults.apply(Experiment(model=REAL, adapter=adapter), num_train=100, num_labels=2)
        assert decided.adapter.learning_rate_factors == factors


def test_a_long_class_list_is_left_out_of_the_prompt() -> None:
    decided = [defaults.apply(Experiment(model=REAL), num_train=100, num_labels=num) for num in (0, 100, 1_000)]
    listed = [one.task.list_labels for one in decided]
    assert listed == ["never", "prompt", "never"]


def test_the_texts_cifar_run_has_its_published_number_of_steps() -> None:
    """45,000 images, 3 epochs, 16 a step: 8,439 optimizer steps (text 000)."""
    experiment = Experiment(train=TrainSection(epochs=3, batch_size=4, gradient_accumulation=4))
    assert defaults.num_steps(experiment, 45_000) == 8_439


def test_a_tiny_models_folder_can_be_declared_tiny() -> None:
    folder = Experiment(model=ModelSection(base="/models/mine"))
    tiny = defaults.apply(folder, num_train=500, num_labels=10, kind="tiny")
    assert tiny.train.learning_rate == defaults.apply(Experiment(), num_train=500, num_labels=10).train.learning_rate


def test_images_that_are_asked_about_are_not_changed_at_random() -> None:
    asked = Experiment.model_validate({"task": {"type": "text"}, "adapter": {"parts": ["everything"]}})
    decided = defaults.apply(asked, num_train=20_000, num_labels=0)
    assert decided.train.augment == [] and decided.train.batch_size == 96
    named = Experiment.model_validate({**asked.model_dump(), "task": {"type": "choice"}})
    assert defaults.apply(named, num_train=20_000, num_labels=10).train.augment != []
