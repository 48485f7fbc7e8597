"""How fast this machine trains: a few layers of a model at their real width, stepped briefly. Called by `estimate`."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from vlmtune.adapters.connector_swap import install_connector, wanted_shape
from vlmtune.adapters.plan import apply_adapter
from vlmtune.config.schema import Experiment
from vlmtune.estimate.costs import Costs, SampleShape, adapted
from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import build_on_meta, choose_device, choose_dtype, family_of
from vlmtune.train.step import Answer, Sample, plan_step, run

_SLICE_TOKENS = 1024  # that the decoder runs in the measured step


def measure_throughput(
    experiment: Experiment, config: Mapping[str, Any], shape: SampleShape
) -> tuple[float, torch.device]:
    """Operations per second of a training step here, measured on a few layers of the model's real width.

    Returns:
        FLOP/s, counted as in `estimate`, and the device. The random weights are thrown away.
    """
    full = build_on_meta(dict(config))
    device = choose_device(experiment.model.device)
    dtype = choose_dtype(experiment.model.dtype, device, sum(p.numel() for p in full.parameters()))
    sliced = _sliced(config)
    model = build_on_meta(sliced).to(dtype)
    costs_model, costs_plan = adapted(sliced, experiment)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, 0.02)
    if experiment.model.connector is not None:
        install_connector(model, wanted_shape(experiment.model.connector, model))
    apply_adapter(model, experiment.adapter, family=family_of(sliced, "slice").name)
    batch = max(1, min(experiment.train.batch_size or 1, (_SLICE_TOKENS - shape.prefix) // max(1, shape.own)))
    # One image of the sample's first tile: enough to include the tower's share.
    grid = shape.tiles[0]
    num_tokens = model.connector.num_tokens(grid)
    ids = [model.image_token_id] * num_tokens + [5] * max(1, shape.own - num_tokens * len(shape.tiles))
    measured = SampleShape(shape.prefix, len(ids), math.ceil(shape.answer), (grid,), "")
    patches = torch.rand(grid[0] * grid[1], _patch_values(sliced))
    image = ProcessedImage([(patches, grid)], "", num_tokens)

    def step() -> float:
        start = time.perf_counter()
        features = model.encode_images([image] * batch)
        answers = [Answer([5] * int(measured.answer))]
        samples = [Sample(ids, image, answers) for image in range(batch)]
        run(model, plan_step(model, [5] * measured.prefix, samples), features).backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    step()
    seconds = min(step() for _ in range(2))
    counted = Costs(costs_model, costs_plan, measured, checkpointed=False)
    return counted.flops(batch) * batch / seconds, device


def _sliced(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same widths with two tower layers, the first decoder layers of each kind, and a small vocabulary."""
    full = build_on_meta(dict(config)).config_dict()
    sliced = copy.deepcopy(full)
    text = sliced["text_config"]
    kinds = text.get("layer_types")
    count = 2 if not kinds else 1 + max(kinds.index(kind) for kind in set(kinds))
    count = max(2, min(count, text["num_hidden_layers"]))
    text["num_hidden_layers"] = count
    if kinds:
        text["layer_types"] = kinds[:count]
    text.pop("full_attn_idxs", None)
    text["vocab_size"] = min(text["vocab_size"], 8192)
    for key in ("image_token_id", "image_token_index"):
        if key in sliced:
            sliced[key] = text["vocab_size"] - 1
    sliced["vision_config"]["num_hidden_layers"] = min(2, sliced["vision_config"]["num_hidden_layers"])
    return sliced


def _patch_values(config: Mapping[str, Any]) -> int:
    vision = config["vision_config"]
    return int(vision["patch_size"]) ** 2 * int(vision.get("num_channels", 3))
