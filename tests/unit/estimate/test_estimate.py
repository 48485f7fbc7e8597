"""What a run would cost, from shapes alone."""

from __future__ import annotations

import pytest

from vlmtune.config import defaults
from vlmtune.config.schema import AdapterSection, Experiment, ModelSection, TrainSection
from vlmtune.estimate.costs import SampleShape
from vlmtune.estimate.estimate import Estimate, estimate
from vlmtune.models.registry import KNOWN_CONFIGS, build_on_meta

pytestmark = pytest.mark.unit

SHAPE = SampleShape(prefix=650, own=70, answer=3.0, tiles=((16, 16),), known_from="the test")


def of(base: str, targets: list[str], **train: object) -> Estimate:
    experiment = Experiment(
        name="x",
        model=ModelSection(base=base, dtype="bfloat16"),
        adapter=AdapterSection(targets=targets, rank=16),
        train=TrainSection(**{"epochs": 3, "batch_size": 16, **train}),  # type: ignore[arg-type]
    )
    resolved = defaults.apply(experiment, num_train=45_000, num_labels=100)
    return estimate(resolved, KNOWN_CONFIGS[base], SHAPE, 45_000, measure=False)


def test_the_older_3b_runs_are_reproduced_exactly() -> None:
    found = of("LiquidAI/LFM2-VL-3B", ["q_proj", "k_proj", "v_proj"])
    assert found.num_trainable == 8 * 147_456 + 27 * 110_592 == 4_165_632
    assert round(100 * found.num_trainable / found.num_total, 2) == 0.14
    assert found.num_steps == 8_439


@pytest.mark.parametrize(
    ("base", "billions"),
    [("LiquidAI/LFM2-VL-450M", 0.45), ("LiquidAI/LFM2-VL-1.6B", 1.6), ("google/paligemma-3b-pt-224", 2.92)],
)
def test_known_shapes_have_the_sizes_their_names_say(base: str, billions: float) -> None:
    total = sum(parameter.numel() for parameter in build_on_meta(KNOWN_CONFIGS[base]).parameters())
    assert total == pytest.approx(billions * 1e9, rel=0.01)


def test_a_frozen_decoder_costs_four_operations_a_weight() -> None:
    # LoRA of rank 1 on one small layer: nearly nothing of its own.
    found = of("LiquidAI/LFM2-VL-450M", ["linear_2"], batch_size=1)
    decoder = next(part for part in found.parts if part.name == "decoder").linear
    tower = next(part for part in found.parts if part.name == "vision tower").linear
    rows = 650 + 70 + 3 - 1
    products = 4 * decoder * rows + 2 * tower * 256
    assert products < found.flops_per_sample < 1.25 * products  # attention, head and connector are the rest


def test_a_learning_tower_costs_its_backward_pass() -> None:
    frozen = of("LiquidAI/LFM2-VL-450M", ["attention", "mlp"])
    learning = of("LiquidAI/LFM2-VL-450M", ["attention", "mlp", "vision_mlp"])
    tower = next(part for part in frozen.parts if part.name == "vision tower").linear
    assert learning.flops_per_sample - frozen.flops_per_sample > 2 * tower * 256
    assert learning.memory_gib[16] > frozen.memory_gib[16] + 0.5


def test_shared_prompts_make_large_micro_batches_cheaper_and_checkpointing_smaller() -> None:
    small, large = of("LiquidAI/LFM2-VL-450M", ["mlp"], batch_size=1), of("LiquidAI/LFM2-VL-450M", ["mlp"])
    assert large.flops_per_sample < small.flops_per_sample / 3
    checkpointed = of("LiquidAI/LFM2-VL-450M", ["mlp"], checkpoint_activations="on")
    assert checkpointed.memory_gib[64] < 0.6 * large.memory_gib[64]
    assert checkpointed.flops_per_sample > 1.2 * large.flops_per_sample


def test_a_card_that_is_too_small_is_said_to_be() -> None:
    machines = {machine.name: machine for machine in of("LiquidAI/LFM2-VL-3B", ["mlp"], batch_size=64).machines}
    assert machines["H100"].micro_batch == 64
    assert machines["L4"].micro_batch is not None and machines["L4"].micro_batch < 64
    assert machines["T4"].micro_batch is None and "needs" in machines["T4"].note and "float32" in machines["T4"].note
