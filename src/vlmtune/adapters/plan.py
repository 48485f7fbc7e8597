"""What of a model learns: LoRA on linear layers, whole parts, nothing else.

In: a model and an `AdapterSection`. Out: the model changed in place, and a plan that says which layers were matched
(for `preflight`), which parameters the optimizer gets, and what `files.py` has to save.
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
from vlmtune.adapters.module_map import Anatomy
from vlmtune.adapters.targets import (
    anatomy_of,
    count_by_tower,
    is_within,
    linear_layers,
    match_targets,
    role_of,
    whole_modules,
)
from vlmtune.config.schema import ROLES, AdapterSection, ConnectorSection
from vlmtune.errors import AdapterError, unknown_name
from vlmtune.models.registry import build_on_meta, family_of
from vlmtune.models.vlm import CONNECTOR, VisionLanguageModel

DEFAULT_RANK = 16


@dataclass(frozen=True)
class Match:
    """What one entry of `adapter.targets` or `adapter.parts` reached.

    Attributes:
        pattern: as it stands in the file.
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


@dataclass
class AdapterPlan:
    """What learns in a model, as `apply_adapter` or `files.load_adapter` arranged it.

    Attributes:
        section: with rank and alpha decided.
        matches: one for each target and part.
        lora: name -> layer, in the model's order.
        whole_modules: modules trained whole (PEFT's `modules_to_save`).
        whole: name -> parameter trained whole: the model's own in float32, else its master.
        groups: role, raw name or part -> names of its trainable parameters.
        num_total: parameters of the model, LoRA's not counted.
    """

    section: AdapterSection
    matches: list[Match]
    lora: dict[str, LoraLinear]
    whole_modules: list[str]
    whole: dict[str, nn.Parameter]
    groups: dict[str, list[str]]
    num_total: int
    anatomy: Anatomy
    masters: MasterWeights | None = field(default=None, repr=False)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """name -> every float32 parameter that the optimizer steps."""
        low_rank = {f"{name}.{leaf}": getattr(layer, leaf) for name, layer in self.lora.items() for leaf in _LEAVES}
        return low_rank | self.whole

    @property
    def num_trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters.values())

    def role_of_group(self, group: str) -> str | None:
        """The role of a group's LoRA layers; None for a part."""
        layer = self.groups[group][0].rpartition(".")[0]
        return role_of(layer, self.anatomy) if layer in self.lora else None

    @property
    def touches_vision(self) -> bool:
        """Whether anything before the connector learns: then image features cannot be cached."""
        prefix = self.anatomy.towers["vision tower"] + "."
        return any(name.startswith(prefix) for name in self.parameters)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Call once after making the optimizer: whole parts under bfloat16 are written back after each step."""
        if self.masters is not None:
            self.masters.attach(optimizer)

    def summary(self) -> list[dict[str, Any]]:
        """For preflight.json and run.json: what each target and part reached, how much of it learns."""
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


_LEAVES = ("lora_A", "lora_B")
_PLAN = "_adapter_plan"


def apply_adapter(
    model: nn.Module, section: AdapterSection, *, family: str | None = None, seed: int = 0
) -> AdapterPlan:
    """Freeze a model but for LoRA on the targets and for whole parts, in place.

    Args:
        model: layers are wrapped where they stand; state names of the model's own parameters do not change.
        section: rank None is 16, alpha None twice the rank.
        family: whose roles and parts are meant; None asks the model.
        seed: of LoRA's start.

    Raises:
        AdapterError: a target that matches no linear layer (the message names those that exist), an unknown part, a
            learning-rate factor for something that does not learn, a target inside a part, nothing to train.
    """
    anatomy = anatomy_of(model, family)
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise AdapterError("This model already has an adapter. Open it again to apply another.")
    section = section.model_copy(deep=True)
    section.rank = section.rank or DEFAULT_RANK
    section.alpha = section.alpha or 2.0 * section.rank
    reached = match_targets(model, section.targets or [], anatomy)
    modules = whole_modules(model, section.parts or [], anatomy)
    if not any(reached.values()) and not modules:
        raise AdapterError(
            "adapter: nothing to train: targets and parts reach nothing. Name roles in targets "
            f"({', '.join(anatomy.roles)}) or parts ({', '.join(anatomy.parts)})."
        )
    scale = section.alpha / (math.sqrt(section.rank) if section.rslora else section.rank)
    generator = torch.Generator().manual_seed(seed)
    names = {name for layers in reached.values() for name in layers}
    specs = {name: LoraSpec(section.rank, scale) for name in linear_layers(model) if name in names}
    return arrange(model, section, anatomy, reached, specs, modules, generator)


@dataclass(frozen=True)
class LoraSpec:
    """Rank and scale of one layer."""

    rank: int
    scale: float


def arrange(
    model: nn.Module,
    section: AdapterSection,
    anatomy: Anatomy,
    reached: Mapping[str, list[str]],
    specs: Mapping[str, LoraSpec],
    modules: Mapping[str, list[str]],
    generator: torch.Generator | None,
) -> AdapterPlan:
    """Wrap, freeze and free as decided. Used by `apply_adapter` and `files.load_adapter`.

    Args:
        reached: target -> linear layers.
        specs: linear layer -> rank and scale.
        modules: part -> modules.
        generator: for LoRA's start; None leaves A unset.
    """
    inside = [
        (layer, part)
        for layer in specs
        for part, owners in modules.items()
        if any(is_within(layer, owner) for owner in owners)
    ]
    if inside:
        layer, part = inside[0]
        raise AdapterError(
            f"adapter: {len(inside)} layers, '{layer}' first, are LoRA targets and lie in '{part}', which is trained "
            "whole. Take them out of adapter.targets or the part out of adapter.parts."
        )
    placed = [layer for layer in specs if is_within(layer, CONNECTOR)]
    if placed and isinstance(model, VisionLanguageModel) and model.connector.replaced is not None:
        raise AdapterError(
            f"adapter: '{placed[0]}' is a LoRA target in a connector that model.connector put there, which "
            "is trained whole: take it out of adapter.targets and put 'connector' into adapter.parts."
        )
    num_total = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(False)
    lora = {}
    for name, spec in specs.items():
        owner, _, leaf = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        lora[name] = LoraLinear(linear, spec.rank, spec.scale, section.dropout, generator)
        setattr(model.get_submodule(owner), leaf, lora[name])

    part_parameters: dict[str, list[str]] = {}
    taken: set[str] = set()
    for part, owners in modules.items():
        part_parameters[part] = [
            name
            for name, _ in model.named_parameters()
            if any(is_within(name, owner) for owner in owners) and name not in taken
        ]
        taken.update(part_parameters[part])
    own = {name: parameter for name, parameter in model.named_parameters() if name in taken}
    for parameter in own.values():
        parameter.requires_grad_(True)
    narrow = {name: parameter for name, parameter in own.items() if parameter.dtype != torch.float32}
    masters = MasterWeights(narrow) if narrow else None
    whole = own | (masters.masters if masters else {})

    matches, groups = _tally(reached, lora, part_parameters, whole, anatomy)
    plan = AdapterPlan(
        section=section,
        matches=matches,
        lora=lora,
        whole_modules=list(dict.fromkeys(module for owners in modules.values() for module in owners)),
        whole=whole,
        groups=groups,
        num_total=num_total,
        anatomy=anatomy,
        masters=masters,
    )
    _check_factors(section.learning_rate_factors, plan)
    # The plan travels with the model: whoever loads or saves an adapter later needs the masters.
    setattr(model, _PLAN, plan)
    return plan


def plan_of(model: nn.Module) -> AdapterPlan | None:
    """The plan of a model that has an adapter."""
    return getattr(model, _PLAN, None)


def forget_plan(model: nn.Module) -> None:
    """For a model whose adapter has become part of its weights."""
    delattr(model, _PLAN)


def is_low_rank(name: str) -> bool:
    """Whether a parameter is LoRA's."""
    return name.rpartition(".")[2] in _LEAVES


def parameter_groups(
    model: nn.Module, plan: AdapterPlan, learning_rate: float, factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Optimizer groups: one for each role or part with its learning rate; vectors (norms, biases) never decay.

    Args:
        model: the adapted model.
        learning_rate: where no factor is given.
        factors: role or part -> factor; None takes the plan's.

    Returns:
        Groups with ``name``. The optimizer made of them must be given to `plan.attach`.
    """
    assert plan_of(model) is plan
    factors = plan.section.learning_rate_factors if factors is None else factors
    _check_factors(factors, plan)
    parameters = plan.parameters
    groups: list[dict[str, Any]] = []
    for name, members in plan.groups.items():
        rate = learning_rate * factors.get(name, factors.get(plan.role_of_group(name) or name, 1.0))
        matrices = [parameters[member] for member in members if parameters[member].dim() > 1]
        vectors = [parameters[member] for member in members if parameters[member].dim() <= 1]
        if matrices:
            groups.append({"params": matrices, "lr": rate, "name": name})
        if vectors:
            groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0, "name": name})
    return groups


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


def _tally(
    reached: Mapping[str, list[str]],
    lora: Mapping[str, LoraLinear],
    part_parameters: Mapping[str, list[str]],
    whole: Mapping[str, nn.Parameter],
    anatomy: Anatomy,
) -> tuple[list[Match], dict[str, list[str]]]:
    matches: list[Match] = []
    groups: dict[str, list[str]] = {}
    counted: set[str] = set()
    for target, names in reached.items():
        new = [name for name in names if name not in counted]
        counted.update(new)
        num = sum(p.numel() for name in new for p in (lora[name].lora_A, lora[name].lora_B))
        kind: Literal["role", "name"] = "role" if target in ROLES else "name"
        matches.append(Match(target, kind, tuple(names), count_by_tower(names, anatomy), num))
        for name in new:
            # A raw name may reach several roles (q_proj is in the decoder and in the tower): each has its own rate.
            group = target if kind == "role" else f"{target} ({role_of(name, anatomy) or 'other'})"
            groups.setdefault(group, []).extend(f"{name}.{leaf}" for leaf in _LEAVES)
    for part, names in part_parameters.items():
        num = sum(whole[name].numel() for name in names)
        matches.append(Match(part, "part", tuple(names), count_by_tower(names, anatomy), num))
        if names:
            # LoRA on `connector` and the part `connector` cannot both be there, so names do not clash.
            groups[part] = names
    return matches, groups


def _check_factors(factors: Mapping[str, float], plan: AdapterPlan) -> None:
    known = set(plan.groups) | {role for name in plan.groups if (role := plan.role_of_group(name))}
    for name in factors:
        if name not in known:
            raise AdapterError(
                f"adapter.learning_rate_factors: {unknown_name('role or part that learns', name, known)}"
            )
