"""One training step of LFM2-VL-450M: transformers + PEFT against the prefix tree, on the same samples.

    python bench/train_step.py [--quick] [--device cpu|cuda] [--json FILE]

A step is forward, backward and AdamW, as TRL's and the Trainer's loops run them, without their logging, which only
costs more (TRL also computes token accuracy and entropy over all logits). Contenders:

- recipe: the older repos' settings: batch 4, activation checkpointing, labels on every token. LoRA r=16 on all linear
  layers of the decoder, as ours has, so that both do the same work; `recipe_as_it_was` has the older list of names,
  of which only q, k and v match.
- strongest: what that stack can do: no checkpointing, logits and loss on answers only, adapters in bfloat16 (faster
  than PEFT's fp32 ones), and the larger batch where memory allows.
- ours: the tree at B = 4, 8, 16, 32, images encoded in the step, or their features taken from the cache.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import (
    add_options,
    apply_options,
    in_own_process,
    interleave,
    matrix_rate,
    peak_memory,
    progress,
    ratio,
    ratio_table,
    record,
    reset_peak_memory,
    seconds_of,
    spread,
    table,
    write_json,
)
from peers import (
    ALL_DECODER_LINEAR,
    OLDER_TARGETS,
    Batch,
    build_ours,
    build_peer,
    make_batch,
    num_adapted,
    random_weights,
    share,
    with_peft,
)
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlmtune.adapters.plan import apply_adapter, trainable_parameters
from vlmtune.config.schema import AdapterSection
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.train.device import autocast
from vlmtune.train.step import Answer, Sample, plan_step, run

DTYPE = torch.bfloat16
LEARNING_RATE = 2e-4
Step = Callable[[], float]


def optimizer_of(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=LEARNING_RATE)


def peer_step(model: Any, batch: Batch, device: torch.device, *, answers_only: bool) -> Step:
    """The Trainer's step on a PEFT model; or a hand-made one that reads only the answers' logits."""
    optimizer = optimizer_of(list(model.parameters()))
    inputs = batch.peer_inputs(device)
    ids = inputs["input_ids"]
    if answers_only:
        # Prompts have one length here, so that the last columns hold all answers: the fastest way.
        start = len(batch.shared) + len(batch.own[0])
        num_kept = ids.shape[1] - start + 1
        targets = torch.where(inputs["attention_mask"].bool(), ids, -100)[:, start:]
    else:
        labels = torch.where(inputs["attention_mask"].bool(), ids, -100)

    def step() -> float:
        model.train()
        if answers_only:
            logits = model(**inputs, use_cache=False, logits_to_keep=num_kept).logits[:, :-1]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
        else:
            loss = model(**inputs, use_cache=False, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def our_step(model: Lfm2Vl, batch: Batch, *, cached: bool) -> Step:
    """The step of `train/loop.py`, from tokens and patches."""
    parameters = list(trainable_parameters(model).values())
    optimizer = optimizer_of(parameters)
    features: list[Tensor] | None = None
    if cached:
        with torch.no_grad():
            features = [f.clone() for f in model.encode_images(batch.images)]

    def step() -> float:
        model.train()
        with autocast(model.device, "bfloat16"):
            encoded = model.encode_images(batch.images) if features is None else features
            samples = [
                Sample(ids, image, [Answer(answer)])
                for image, (ids, answer) in enumerate(zip(batch.own, batch.answers, strict=True))
            ]
            plan = plan_step(model, batch.shared, samples)
            loss = run(model, plan, encoded)
        (loss / plan.weight).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item() / plan.weight

    return step


def adapt_ours(model: Lfm2Vl) -> Lfm2Vl:
    apply_adapter(model, AdapterSection(targets=["attention", "mlp", "conv"], rank=16, alpha=32.0))
    return model


class Peer:
    """One PEFT model whose checkpointing can be switched."""

    def __init__(self, device: torch.device, targets: list[str] | str, *, fp32_adapters: bool, base: Any = None):
        self.base = base if base is not None else build_peer(DTYPE, device)
        self.model = with_peft(self.base, targets, fp32_adapters=fp32_adapters)
        self.model.enable_input_require_grads()  # as the Trainer does for checkpointing over a frozen base
        self.device = device

    def step(self, batch: Batch, *, checkpointing: bool, answers_only: bool) -> Step:
        run = peer_step(self.model, batch, self.device, answers_only=answers_only)

        def step() -> float:
            if checkpointing:
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                self.model.gradient_checkpointing_disable()
            return run()

        return step


def contender(name: str, device: torch.device) -> Step:
    """Build one contender alone, given as `name:batch size`, for its own process."""
    kind, size = name.split(":")
    batch = make_batch(int(size))
    if kind.startswith("ours"):
        model = adapt_ours(build_ours(random_weights(DTYPE, device)))
        return our_step(model, batch, cached=kind == "ours_cached")
    is_recipe = kind == "recipe"
    peer = Peer(device, ALL_DECODER_LINEAR, fp32_adapters=is_recipe)
    return peer.step(batch, checkpointing=is_recipe, answers_only=not is_recipe)


def report_memory(name: str, device: torch.device, num_steps: int) -> None:
    """The body of an own process: steps, and the peak while they ran."""
    step = contender(name, device)
    reset_peak_memory(device)
    for _ in range(num_steps):
        step()
    print(json.dumps({"bytes": peak_memory(device)}))


def _fused_flop(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def share_of_rate(step: Step, seconds: list[float], rates: list[float]) -> tuple[float, list[float]]:
    """(FLOP of the matrix products and attention of a step, its rate over the machine's in each repetition)."""
    # torch does not count the products of its compiler's fused operator (a frozen tower's: kernels.fused_linear).
    fused = {torch.ops.mkldnn._linear_pointwise: _fused_flop}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter:
        step()
    flop = counter.get_total_flops()
    return flop, [flop / s / rate for s, rate in zip(seconds, rates, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = apply_options(options)
    keep_freed_memory()
    if options.memory_of:
        report_memory(options.memory_of, device, num_steps=1 if options.quick else 2)
        return

    repetitions = options.repetitions or (2 if options.quick else 5)
    sizes = [32] if options.quick else [4, 8, 16, 32]
    strongest_sizes = [4] if options.quick else [4, 8]

    progress("peak memory, each in its own process")
    memory_of = [f"strongest:{strongest_sizes[-1]}", "ours:32"]
    if not options.quick:
        memory_of = ["recipe:4", *(f"strongest:{n}" for n in strongest_sizes), *(f"ours:{n}" for n in sizes)]
        memory_of.append("ours_cached:32")
    arguments = ["--device", options.device, "--threads", str(options.threads), *(["--quick"] * options.quick)]
    memory = {name: in_own_process(__file__, *arguments, "--memory-of", name)["bytes"] for name in memory_of}

    progress("building")
    base = build_peer(DTYPE, device)
    ours = adapt_ours(build_ours(dict(base.state_dict())))
    recipe = Peer(device, ALL_DECODER_LINEAR, fp32_adapters=True, base=share(base))
    strongest = Peer(device, ALL_DECODER_LINEAR, fp32_adapters=False, base=share(base))
    as_it_was = Peer(device, OLDER_TARGETS, fp32_adapters=True, base=share(base))
    # Seven linear layers in each of 6 attention layers, five in each of 10 convolution layers.
    assert num_adapted(recipe.model) == num_adapted(ours) == 6 * 7 + 10 * 5

    contenders: dict[str, Step] = {}
    contenders["recipe:4"] = recipe.step(make_batch(4), checkpointing=True, answers_only=False)
    if not options.quick:
        contenders["recipe_as_it_was:4"] = as_it_was.step(make_batch(4), checkpointing=True, answers_only=False)
    for size in strongest_sizes:
        contenders[f"strongest:{size}"] = strongest.step(make_batch(size), checkpointing=False, answers_only=True)
    for size in sizes:
        contenders[f"ours:{size}"] = our_step(ours, make_batch(size), cached=False)
        contenders[f"ours_cached:{size}"] = our_step(ours, make_batch(size), cached=True)

    progress("warming up")
    for peer, checkpointing in ((recipe, True), (strongest, False)):
        seconds_of(peer.step(make_batch(1), checkpointing=checkpointing, answers_only=not checkpointing), device)
    seconds_of(our_step(ours, make_batch(2), cached=False), device)

    rates: list[float] = []
    # The machine's rate is measured next to our own step in every repetition, since others may be using it.
    contenders["matrix_rate"] = lambda: rates.append(matrix_rate(device, DTYPE))
    progress(f"timing, {repetitions} repetitions in turns")
    seconds = interleave(contenders, repetitions, device)
    del seconds["matrix_rate"]
    flop, shares = share_of_rate(contenders["ours:32"], seconds["ours:32"], rates)
    per_sample = {name: [s / int(name.split(":")[1]) for s in all_s] for name, all_s in seconds.items()}

    fastest = min((n for n in per_sample if n.startswith("strongest")), key=lambda n: statistics.median(per_sample[n]))
    peer_peak = min(memory[n] for n in memory if n.startswith("strongest"))
    ratios: dict[str, dict[str, float]] = {
        "uncached_b32_vs_recipe": ratio(per_sample["recipe:4"], per_sample["ours:32"]),
        "uncached_b32_vs_strongest": ratio(per_sample[fastest], per_sample["ours:32"]),
        "cached_b32_vs_recipe": ratio(per_sample["recipe:4"], per_sample["ours_cached:32"]),
        "peak_memory_vs_strongest": spread([memory["ours:32"] / peer_peak]),
        "matrix_rate_share": spread(shares),
    }
    result = record(
        "train_step",
        device,
        options.quick,
        setting={
            "model": "LFM2-VL-450M, random weights, bfloat16",
            "lora": "r=16 on all linear layers of the decoder, both sides (recipe_as_it_was: q, k, v of both towers)",
            "shared_tokens": 650,
            "image_tokens": 64,
            "own_tokens_after_the_image": 6,
            "answer_tokens": "2 to 4, end token included",
        },
        seconds_per_sample=per_sample,
        peak_memory_bytes=memory,
        matrix_rate_flops=rates,
        flop_of_our_step=flop,
        ratios=ratios,
    )
    slowest = statistics.median(per_sample["recipe:4"])
    rows = []
    for name, values in per_sample.items():
        middle = statistics.median(values)
        held = f"{memory[name] / 2**30:.1f}" if name in memory else ""
        rows.append([name, f"{middle:.3f}", f"{min(values):.3f} to {max(values):.3f}", f"{slowest / middle:.1f}", held])
    print(table(["contender:batch", "s/sample", "range", "× recipe", "peak GiB"], rows))
    print()
    print(ratio_table(ratios))
    write_json(options.json, result)


if __name__ == "__main__":
    main()
