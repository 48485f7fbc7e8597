"""Adapters on disk, in PEFT's layout, both ways.

`adapter_config.json` and `adapter_model.safetensors` hold LoRA and parts in full (PEFT's `modules_to_save`), under
`base_model.model.` and the model's own names, so that PEFT loads them onto transformers' model. Layers are listed by
their full names: a bare `q_proj` would also reach the vision tower. Called by `runs` and `export`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmtune.adapters.connector_swap import (
    CONFIG_KEY,
    PEFT_TYPE,
    connector_is_exportable,
    shape_from_json,
    shape_to_json,
)
from vlmtune.adapters.module_map import ModuleMap, is_suffix, is_within, linear_layers, module_map_of
from vlmtune.adapters.plan import AdapterPlan, LoraSpec, build_plan
from vlmtune.config.schema import AdapterSection
from vlmtune.errors import AdapterError
from vlmtune.files import explain_write_errors, read_json, write_json
from vlmtune.models.connectors import Connector, ConnectorShape
from vlmtune.models.registry import FAMILIES
from vlmtune.models.vlm import CONNECTOR, VisionLanguageModel
from vlmtune.models.weights import NameTable, read_safetensors

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# Keys of PEFT's LoraConfig that change what an adapter computes, with the values that mean what ours does.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", PEFT_TYPE),
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "velora_config": (None,),
    "kasa_config": (None,),
    "use_bdlora": (None, False),
}


def save_adapter(folder: Path, model: nn.Module, plan: AdapterPlan, base: str, revision: str | None = None) -> None:
    """Write an adapter into a folder (made if it is not there).

    Args:
        model: adapted by ``plan``; may be merged at the moment.
        base: the base model's source, by which `open_adapted` and PEFT find it again.

    Raises:
        UserError: the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in plan.lora.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = layer.lora_A
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = layer.lora_B
    # A connector that the base does not have is saved in full, whether it learns or not.
    new_connector = _new_connector(model)
    for name, parameter in (new_connector | plan.full_parameters).items():
        tensors[_PREFIX + name] = parameter
    full_modules = plan.full_modules
    if new_connector and not any(is_within(CONNECTOR, module) for module in full_modules):
        full_modules = [*full_modules, CONNECTOR]
    section = plan.section
    assert section.rank is not None and section.alpha is not None
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": section.rank,
        "lora_alpha": int(section.alpha) if float(section.alpha).is_integer() else section.alpha,
        "lora_dropout": section.dropout,
        "use_rslora": section.rslora,
        # PEFT insists on a target; this is its own word for none.
        "target_modules": list(plan.lora) or "dummy-target-modules",
        "modules_to_save": full_modules or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        **_patterns(plan),
    }
    if new_connector:
        assert isinstance(model, VisionLanguageModel)
        config[CONFIG_KEY] = shape_to_json(model.connector.shape)
        if connector_is_exportable(model) is not None:
            config["peft_type"] = PEFT_TYPE
    for head, embedding in plan.module_map.tied.items():
        if embedding in plan.full_parameters:
            # PEFT ties the two on request, yet expects both in the file.
            config["ensure_weight_tying"] = True
            tensors[_PREFIX + head] = plan.full_parameters[embedding].detach().clone()
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        save_file(cpu, folder / WEIGHTS_FILE, {"format": "pt"})
    write_json(folder / CONFIG_FILE, config, indent=2)


def load_adapter(
    folder: Path, model: nn.Module, plan: AdapterPlan | None = None, *, family: str | None = None
) -> AdapterPlan:
    """Load an adapter written by `save_adapter` or by PEFT.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        model: plain (it is wrapped as the files say), or adapted already.
        plan: by which the model was adapted: values are replaced; None for a plain model.
        family: whose names the files may spell; None asks the model.

    Returns:
        The model's plan.

    Raises:
        AdapterError: files that are missing, do not belong to this model, or use methods we do not implement (DoRA …).
        WeightsError: a truncated or damaged file.
    """
    config = read_adapter_config(folder)
    _check_connector(folder, model)
    names = _names_of(model, family)
    low_rank, full = _split(folder, read_safetensors(folder / WEIGHTS_FILE), names)
    if plan is None:
        plan = _plan_from_files(folder, model, config, module_map_of(model, family), low_rank, full)
    full_parameters = _new_connector(model) | plan.full_parameters
    expected = {f"{n}.{leaf}": getattr(p, leaf).shape for n, p in plan.lora.items() for leaf in ("lora_A", "lora_B")}
    expected |= {name: parameter.shape for name, parameter in full_parameters.items()}
    in_files = {f"{name}.{leaf}": t.shape for name, pair in low_rank.items() for leaf, t in pair.items()}
    in_files |= {name: tensor.shape for name, tensor in full.items()}
    problems = [f"missing: {name} {list(shape)}" for name, shape in expected.items() if name not in in_files]
    problems += [f"extra: {name} {list(shape)}" for name, shape in in_files.items() if name not in expected]
    problems += [
        f"wrong shape: {name} is {list(in_files[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in in_files and in_files[name] != shape
    ]
    _refuse_misfit(folder, problems)
    with torch.inference_mode(False), torch.no_grad():
        for name, layer in plan.lora.items():
            layer.lora_A.copy_(low_rank[name]["lora_A"])
            layer.lora_B.copy_(low_rank[name]["lora_B"])
        for name, parameter in full_parameters.items():
            parameter.copy_(full[name])
        if plan.masters is not None:
            plan.masters.write_back()
    return plan


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / CONFIG_FILE).is_file()


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`, checked to describe plain LoRA. Raises AdapterError."""
    path = folder / CONFIG_FILE
    config = read_json(path, AdapterError, "Is this an adapter's folder? If so, copy it again.")
    for key, plain in _PLAIN.items():
        if key in config and config[key] not in plain:
            raise AdapterError(
                f"{path}: {key} is {config[key]!r}; only plain LoRA without biases is supported ({key}: {plain[0]!r}). "
                "Merge it with PEFT (merge_and_unload) and open the merged model."
            )
    return config


def read_shape(folder: Path) -> ConnectorShape | None:
    """The shape of the connector saved in an adapter's folder; None where it is the base's own. Raises AdapterError."""
    values = read_adapter_config(folder).get(CONFIG_KEY)
    return None if values is None else shape_from_json(values, folder / CONFIG_FILE)


def load_connector(folder: Path, connector: Connector) -> None:
    """Fill a connector, strictly, from the adapter it was saved with.

    Args:
        folder: an adapter's, whose connector was trained in full: one of `model.connector`, or the base's own.

    Raises:
        AdapterError: no adapter, no connector in it, or one of another shape.
    """
    saved = read_shape(folder)
    if saved is None and connector.shape == connector.replaced:
        saved = connector.shape  # the base's own, trained as a part
    start = f"{_PREFIX}{CONNECTOR}."
    tensors = {
        name.removeprefix(start): tensor
        for name, tensor in read_safetensors(folder / WEIGHTS_FILE).items()
        if name.startswith(start)
    }
    expected = {name: parameter.shape for name, parameter in connector.named_parameters()}
    if saved != connector.shape or {name: tensor.shape for name, tensor in tensors.items()} != expected:
        has = saved or ("no connector that was trained in full" if not tensors else "the base's own connector")
        raise AdapterError(
            f"{folder}: model.connector.start: the connector in it does not fit.\n  found: {has}\n"
            f"  expected: {connector.shape}\nGive model.connector the same keys as there."
        )
    with torch.no_grad():
        for name, parameter in connector.named_parameters():
            parameter.copy_(tensors[name])


def _new_connector(model: nn.Module) -> dict[str, nn.Parameter]:
    """name -> parameter of a connector that replaced the base's own; empty if none did."""
    if not isinstance(model, VisionLanguageModel) or model.connector.replaced is None:
        return {}
    return {f"{CONNECTOR}.{name}": parameter for name, parameter in model.connector.named_parameters()}


def _check_connector(folder: Path, model: nn.Module) -> None:
    """Whether the connector in the files is that of the model. Raises AdapterError."""
    saved = read_shape(folder)
    expected = model.connector.shape if _new_connector(model) and isinstance(model, VisionLanguageModel) else None
    if saved != expected:
        raise AdapterError(
            f"{folder}: this adapter does not fit the model, which has {expected or 'its own connector'}; the adapter "
            f"was trained with {saved or 'that of its base'}. Open the folder itself: its connector comes with it."
        )


def _names_of(model: nn.Module, family: str | None) -> NameTable:
    name = family or str(model.config_dict()["model_type"])  # type: ignore[operator]
    return FAMILIES[name].names


def _refuse_misfit(folder: Path, problems: list[str]) -> None:
    if problems:
        raise AdapterError(f"{folder}: this adapter does not fit the model:\n  " + "\n  ".join(sorted(problems)))


def _split(
    folder: Path, tensors: Mapping[str, Tensor], names: NameTable
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """(layer -> its lora_A and lora_B, parameter -> tensor trained in full), under our names."""
    low_rank: dict[str, dict[str, Tensor]] = {}
    full: dict[str, Tensor] = {}
    tied: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not key.startswith(_PREFIX):
            raise AdapterError(f"{folder / WEIGHTS_FILE}: '{key}' does not start with '{_PREFIX}': not a PEFT adapter.")
        match = re.fullmatch(r"(.+)\.(lora_[AB])\.weight", key.removeprefix(_PREFIX))
        if match:
            low_rank.setdefault(names.ours(match[1] + ".").removesuffix("."), {})[match[2]] = tensor
            continue
        name = names.ours(key.removeprefix(_PREFIX).replace(".base_layer.", "."))
        (tied if name in names.tied else full)[name] = tensor
    for name, tensor in tied.items():
        other = full.get(names.tied[name])
        if other is None or not torch.equal(other, tensor):
            raise AdapterError(f"{folder}: {name} was trained apart from {names.tied[name]}, to which it is tied here.")
    return low_rank, {name: tensor for name, tensor in full.items() if not names.is_dropped(name)}


def _plan_from_files(
    folder: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    module_map: ModuleMap,
    low_rank: Mapping[str, Mapping[str, Tensor]],
    full: Mapping[str, Tensor],
) -> AdapterPlan:
    """Wrap a plain model as the files say."""
    layers = linear_layers(model)
    parts = _parts_in_files(model, config.get("modules_to_save") or [], full, module_map)
    modules = [module for owners in parts.values() for module in owners]
    unmatched = _promised(config, layers) - set(low_rank)
    problems = [f"not a linear layer of this model: {name}" for name in low_rank if name not in layers]
    problems += [f"only one of lora_A and lora_B: {name}" for name, pair in low_rank.items() if len(pair) != 2]
    problems += [f"named by target_modules, but not in {WEIGHTS_FILE}: {name}" for name in unmatched]
    problems += [
        f"not in a module of modules_to_save: {name}"
        for name in full
        if not any(is_within(name, module) for module in modules)
    ]
    _refuse_misfit(folder, problems)
    rslora = bool(config.get("use_rslora"))
    rank, alpha = int(config["r"]), float(config.get("lora_alpha", config["r"]))
    specs: dict[str, LoraSpec] = {}
    matched: dict[str, list[str]] = {}
    for name in layers:
        if name not in low_rank:
            continue
        layer_rank = low_rank[name]["lora_A"].shape[0]
        layer_alpha = float(_by_pattern(config.get("alpha_pattern") or {}, name, alpha))
        specs[name] = LoraSpec(layer_rank, layer_alpha / (math.sqrt(layer_rank) if rslora else layer_rank))
        matched.setdefault(module_map.role_of(name) or name, []).append(name)
    section = AdapterSection(
        targets=list(matched),
        parts=list(parts),
        rank=rank,
        alpha=alpha,
        dropout=float(config.get("lora_dropout") or 0.0),
        rslora=rslora,
    )
    return build_plan(model, section, module_map, matched, specs, parts, None)


def _promised(config: Mapping[str, Any], layers: Mapping[str, nn.Module]) -> set[str]:
    """Layers that PEFT would adapt by this configuration, as far as names alone decide it."""
    targets = config.get("target_modules") or []
    if isinstance(targets, str) or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return set()
    if any(name in layers and "." in name for name in targets):  # full names: exactly these
        return {name for name in targets if name in layers}
    return {name for name in layers if any(is_suffix(name, target) for target in targets)}


def _parts_in_files(
    model: nn.Module, listed: list[str], full: Mapping[str, Tensor], module_map: ModuleMap
) -> dict[str, list[str]]:
    """part (or a module's own name, where no part covers it) -> modules trained in full."""
    present = [
        name
        for name, _ in model.named_modules()
        if any(is_suffix(name, entry) for entry in listed) and any(is_within(tensor, name) for tensor in full)
    ]
    parts: dict[str, list[str]] = {}
    for name in present:
        owners = (part for part, modules in module_map.parts.items() if any(is_within(name, m) for m in modules))
        parts.setdefault(next(owners, name), []).append(name)
    return parts


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """PEFT's `rank_pattern` and `alpha_pattern`: an expression matches the end of a name after a dot."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name)), default)


def _patterns(plan: AdapterPlan) -> dict[str, dict[str, Any]]:
    """Ranks and alphas that differ from the common ones (an adapter that was loaded with patterns)."""
    section = plan.section
    assert section.rank is not None and section.alpha is not None
    ranks: dict[str, Any] = {}
    alphas: dict[str, Any] = {}
    for name, layer in plan.lora.items():
        alpha = layer.scale * (math.sqrt(layer.rank) if section.rslora else layer.rank)
        if layer.rank != section.rank:
            ranks[re.escape(name)] = layer.rank
        if not math.isclose(alpha, section.alpha, rel_tol=1e-9):
            alphas[re.escape(name)] = alpha
    return {"rank_pattern": ranks, "alpha_pattern": alphas}
