"""What learns in a model: LoRA on linear layers, parts in full, nothing else.

In: a model and an `AdapterSection`. Out: the model changed in place, and a plan that says which layers were matched
(for `preflight`), which parameters the optimizer gets, and what `peft_files.py` has to save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from vlmtune.adapters.connector_swap import install_connector, wanted_shape
from vlmtune.adapters.layer import LoraLinear, MasterWeights
from vlmtune.adapters.module_map import (
    ModuleMap,
    is_within,
    linear_layers,
    match_parts,
    match_targets,
    module_map_of,
)
from vlmtune.config.schema import ROLES, AdapterSection, ConnectorSection
from vlmtune.errors import AdapterError, unknown_name
from vlmtune.models.registry import build_on_meta, family_of
from vlmtune.models.vlm import CONNECTOR, VisionLanguageModel

DEFAULT_RANK = 16
_LEAVES = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Match:
    """What one entry of `adapter.targets` or `adapter.parts` matched.

    Attributes:
        pattern: as written in the file.
        kind: a role, a raw layer name, or a part.
        layers: names of the linear layers (of a part: of its parameters).
        towers: how many of those lie in which tower.
        num_trainable: parameters that learn because of it (a layer that two entries match counts for the first).
    """

    pattern: str
    kind: Literal["role", "name", "part"]
    layers: tuple[str, ...]
    towers: dict[str, int]
    num_trainable: int


@dataclass(frozen=True)
class LoraSpec:
    """Rank and scale of one layer."""

    rank: int
    scale: float


@dataclass
class AdapterPlan:
    """What learns in a model, as `apply_adapter` or `peft_files.load_adapter` built it.

    Attributes:
        section: with rank and alpha decided.
        module_map: of the model's family.
        matches: one for each target and part.
        lora: name -> layer, in the model's order.
        full_modules: modules trained in full (PEFT's `modules_to_save`).
        full_parameters: name -> parameter trained in full: the model's own in float32, else its master.
        groups: role, raw name or part -> names of its trainable parameters.
        num_total: parameters of the model, LoRA's not counted.
        masters: of the full parameters that are not float32.
    """

    section: AdapterSection
    module_map: ModuleMap
    matches: list[Match]
    lora: dict[str, LoraLinear]
    full_modules: list[str]
    full_parameters: dict[str, nn.Parameter]
    groups: dict[str, list[str]]
    num_total: int
    masters: MasterWeights | None = field(default=None, repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """name -> every float32 parameter that the optimizer steps."""
        low_rank = {f"{name}.{leaf}": getattr(layer, leaf) for name, layer in self.lora.items() for leaf in _LEAVES}
        return low_rank | self.full_parameters

    @property
    def num_trainable(self) -> int:
        """Parameters that learn."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def touches_vision(self) -> bool:
        """Whether anything before the connector learns: then image features cannot be cached."""
        return any(is_within(name, self.module_map.towers["vision tower"]) for name in self.parameters)

    def role_of_group(self, group: str) -> str | None:
        """The role of a group's LoRA layers; None for a part."""
        layer = self.groups[group][0].rpartition(".")[0]
        return self.module_map.role_of(layer) if layer in self.lora else None

    def parameter_groups(
        self, learning_rate: float, factors: Mapping[str, float] | None = None
    ) -> list[dict[str, Any]]:
        """Optimizer groups: one for each role or part with its learning rate; vectors (norms, biases) never decay.

        Args:
            learning_rate: where no factor is given.
            factors: role or part -> factor; None takes the section's.

        Returns:
            Groups with ``name``. The optimizer made of them must be given to `attach`. Raises AdapterError for a factor
            of something that does not learn.
        """
        factors = self.section.learning_rate_factors if factors is None else factors
        self.check_factors(factors)
        parameters = self.parameters
        groups: list[dict[str, Any]] = []
        for name, members in self.groups.items():
            rate = learning_rate * factors.get(name, factors.get(self.role_of_group(name) or name, 1.0))
            matrices = [parameters[member] for member in members if parameters[member].dim() > 1]
            vectors = [parameters[member] for member in members if parameters[member].dim() <= 1]
            if matrices:
                groups.append({"params": matrices, "lr": rate, "name": name})
            if vectors:
                groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0, "name": name})
        return groups

    def check_factors(self, factors: Mapping[str, float]) -> None:
        """Raises AdapterError for a learning-rate factor of something that does not learn."""
        known = set(self.groups) | {role for name in self.groups if (role := self.role_of_group(name))}
        for name in factors:
            if name not in known:
                raise AdapterError(
                    f"adapter.learning_rate_factors: {unknown_name('role or part that learns', name, known)}"
                )

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Call once after making the optimizer: full parameters under bfloat16 are written back after each step."""
        if self.masters is not None:
            self.masters.attach(optimizer)

    def summary(self) -> list[dict[str, Any]]:
        """For preflight.json and run.json: what each target and part matched, how much of it learns."""
        return [
            {
                "pattern": match.pattern,
                "kind": match.kind,
                "layers": len(match.layers),
                "towers": match.towers,
                "trainable": match.num_trainable,
            }
            for match in self.matches
        ]


def apply_adapter(
    model: nn.Module, section: AdapterSection, *, family: str | None = None, seed: int = 0
) -> AdapterPlan:
    """Freeze a model except for LoRA on the targets and parts trained in full, in place.

    Args:
        model: layers are wrapped in place; state names of the model's own parameters do not change.
        section: rank None is 16, alpha None twice the rank.
        family: whose roles and parts are meant; None asks the model.
        seed: of LoRA's initialization.

    Raises:
        AdapterError: a target that matches no linear layer (the message names those that exist), an unknown part, a
            learning-rate factor for something that does not learn, a target inside a part, nothing to train.
    """
    module_map = module_map_of(model, family)
    section = section.model_copy(deep=True)
    section.rank = section.rank or DEFAULT_RANK
    section.alpha = section.alpha or 2.0 * section.rank
    matched = match_targets(model, section.targets or [], module_map)
    parts = match_parts(model, section.parts or [], module_map)
    if not any(matched.values()) and not parts:
        raise AdapterError(
            "adapter: nothing to train: targets and parts match nothing. Name roles in targets "
            f"({', '.join(module_map.roles)}) or parts ({', '.join(module_map.parts)})."
        )
    scale = section.alpha / (math.sqrt(section.rank) if section.rslora else section.rank)
    names = {name for layers in matched.values() for name in layers}
    specs = {name: LoraSpec(section.rank, scale) for name in linear_layers(model) if name in names}
    return build_plan(model, section, module_map, matched, specs, parts, torch.Generator().manual_seed(seed))


def build_plan(
    model: nn.Module,
    section: AdapterSection,
    module_map: ModuleMap,
    matched: Mapping[str, list[str]],
    specs: Mapping[str, LoraSpec],
    parts: Mapping[str, list[str]],
    generator: torch.Generator | None,
) -> AdapterPlan:
    """Freeze the model, wrap its layers and free its parts, as decided by `apply_adapter` or by an adapter's files.

    Args:
        matched: target -> linear layers.
        specs: linear layer -> rank and scale.
        parts: part -> modules.
        generator: for LoRA's initialization; None leaves A unset.
    """
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise AdapterError("This model already has an adapter. Open it again to apply another.")
    _check_overlap(model, specs, parts)
    num_total = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(False)
    lora = _wrap_layers(model, specs, section.dropout, generator)
    names_by_part = _parameters_by_part(model, parts)
    full_parameters, masters = _free(model, [name for names in names_by_part.values() for name in names])
    matches = _list_matches(matched, lora, names_by_part, full_parameters, module_map)
    plan = AdapterPlan(
        section=section,
        module_map=module_map,
        matches=matches,
        lora=lora,
        full_modules=list(dict.fromkeys(module for modules in parts.values() for module in modules)),
        full_parameters=full_parameters,
        groups=_group(matches, module_map),
        num_total=num_total,
        masters=masters,
    )
    plan.check_factors(section.learning_rate_factors)
    return plan


def fold(model: nn.Module, plan: AdapterPlan) -> None:
    """Merge for good: plain linear layers again, nothing set aside, nothing learns. For inference only."""
    for name, layer in plan.lora.items():
        if not layer.is_merged:
            layer.merge()
        _replace(model, name, layer.plain())
    model.requires_grad_(False)


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """name -> the model's own parameters without LoRA's: inside `merged`, what an export saves."""
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[2] not in _LEAVES}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """name -> every parameter of the network that gets a gradient (masters are in the plan, not here)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_trainable(
    config: dict[str, Any], section: AdapterSection, connector: ConnectorSection | None = None
) -> tuple[int, int]:
    """(trainable, total) parameters for a config.json, without memory for either. Raises as `apply_adapter` does."""
    family = family_of(config, "config.json").name
    model = build_on_meta(config)
    if connector is not None:
        install_connector(model, wanted_shape(connector, model))
    plan = apply_adapter(model, section, family=family)
    return plan.num_trainable, plan.num_total


def _check_overlap(model: nn.Module, specs: Mapping[str, LoraSpec], parts: Mapping[str, list[str]]) -> None:
    """Raises AdapterError for LoRA on a layer that is trained in full, or has to be."""
    inside = [
        (layer, part)
        for layer in specs
        for part, modules in parts.items()
        if any(is_within(layer, module) for module in modules)
    ]
    if inside:
        layer, part = inside[0]
        raise AdapterError(
            f"adapter: {len(inside)} layers, '{layer}' first, are LoRA targets and lie in '{part}', which is trained "
            "in full. Take them out of adapter.targets or the part out of adapter.parts."
        )
    in_connector = [layer for layer in specs if is_within(layer, CONNECTOR)]
    if in_connector and isinstance(model, VisionLanguageModel) and model.connector.replaced is not None:
        raise AdapterError(
            f"adapter: '{in_connector[0]}' is a LoRA target in a connector that model.connector put there, which "
            "is trained in full: take it out of adapter.targets and put 'connector' into adapter.parts."
        )


def _wrap_layers(
    model: nn.Module, specs: Mapping[str, LoraSpec], dropout: float, generator: torch.Generator | None
) -> dict[str, LoraLinear]:
    lora = {}
    for name, spec in specs.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        lora[name] = LoraLinear(linear, spec.rank, spec.scale, dropout, generator)
        _replace(model, name, lora[name])
    return lora


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def _parameters_by_part(model: nn.Module, parts: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """part -> names of its parameters; one that lies in two parts counts for the first."""
    names_by_part: dict[str, list[str]] = {}
    taken: set[str] = set()
    for part, modules in parts.items():
        names_by_part[part] = [
            name
            for name, _ in model.named_parameters()
            if any(is_within(name, module) for module in modules) and name not in taken
        ]
        taken.update(names_by_part[part])
    return names_by_part


def _free(model: nn.Module, names: list[str]) -> tuple[dict[str, nn.Parameter], MasterWeights | None]:
    """Let parameters learn: (name -> what the optimizer steps, in the model's order; the masters among them)."""
    chosen = set(names)
    full = {name: parameter for name, parameter in model.named_parameters() if name in chosen}
    for parameter in full.values():
        parameter.requires_grad_(True)
    narrow = {name: parameter for name, parameter in full.items() if parameter.dtype != torch.float32}
    masters = MasterWeights(narrow) if narrow else None
    return full | (masters.masters if masters else {}), masters


def _list_matches(
    matched: Mapping[str, list[str]],
    lora: Mapping[str, LoraLinear],
    names_by_part: Mapping[str, list[str]],
    full_parameters: Mapping[str, nn.Parameter],
    module_map: ModuleMap,
) -> list[Match]:
    matches: list[Match] = []
    counted: set[str] = set()
    for target, names in matched.items():
        new = [name for name in names if name not in counted]
        counted.update(new)
        num_trainable = sum(p.numel() for name in new for p in (lora[name].lora_A, lora[name].lora_B))
        kind: Literal["role", "name"] = "role" if target in ROLES else "name"
        matches.append(Match(target, kind, tuple(names), module_map.count_by_tower(names), num_trainable))
    for part, names in names_by_part.items():
        num_trainable = sum(full_parameters[name].numel() for name in names)
        matches.append(Match(part, "part", tuple(names), module_map.count_by_tower(names), num_trainable))
    return matches


def _group(matches: list[Match], module_map: ModuleMap) -> dict[str, list[str]]:
    """Optimizer group -> names of its parameters. A layer that two targets match belongs to the first."""
    groups: dict[str, list[str]] = {}
    counted: set[str] = set()
    for match in matches:
        if match.kind == "part":
            if match.layers:
                # LoRA on `connector` and the part `connector` cannot both be there, so names do not clash.
                groups[match.pattern] = list(match.layers)
            continue
        for name in match.layers:
            if name in counted:
                continue
            counted.add(name)
            # A raw name may match several roles (q_proj is in the decoder and in the tower): each has its own rate.
            is_role = match.kind == "role"
            group = match.pattern if is_role else f"{match.pattern} ({module_map.role_of(name) or 'other'})"
            groups.setdefault(group, []).extend(f"{name}.{leaf}" for leaf in _LEAVES)
    return groups
