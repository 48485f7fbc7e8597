"""Which layers an entry of `adapter.targets` or `adapter.parts` means.

In: a model and the table of its family (`roles.py`). Out: names of layers, or an error that lists those that exist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from torch import nn

from vlmtune.adapters.module_map import ANATOMIES, Anatomy
from vlmtune.config.schema import ROLES
from vlmtune.errors import AdapterError, unknown_name


def match_targets(model: nn.Module, targets: Iterable[str], anatomy: Anatomy) -> dict[str, list[str]]:
    """target -> names of the linear layers it means. Raises AdapterError for every target that means none.

    A role is looked up first; any other word matches as PEFT's list form does: the whole name, or its end after a dot.
    A role that only other families have (`conv`) is no mistake: it means nothing here, so that one file serves all.
    """
    layers = linear_layers(model)
    reached = {target: [name for name in layers if is_target(name, target, anatomy)] for target in targets}
    known = {role for role in ROLES if role not in anatomy.roles}
    empty = [target for target, names in reached.items() if not names and target not in known]
    if not empty:
        return reached
    others = {name.rpartition(".")[2]: type(module).__name__ for name, module in model.named_modules()}
    notes = [
        f"'{target}' is not a linear layer but {others[target]}; train it whole through adapter.parts."
        for target in empty
        if target in others
    ]
    quoted = ", ".join(f"'{target}'" for target in empty)
    raise AdapterError(
        f"adapter.targets: {quoted} match{'es' if len(empty) == 1 else ''} no layer of this model.\n"
        f"  Roles: {', '.join(anatomy.roles)}\n  Layers: {_list_layers(layers, anatomy)}"
        + "".join(f"\n  {n}" for n in notes)
    )


def whole_modules(model: nn.Module, parts: Iterable[str], anatomy: Anatomy) -> dict[str, list[str]]:
    """part -> modules trained whole; a list of layers is spelled out. Raises AdapterError for an unknown part."""
    modules: dict[str, list[str]] = {}
    for part in parts:
        if part not in anatomy.parts:
            raise AdapterError(f"adapter.parts: {unknown_name('part', part, anatomy.parts)}")
        modules[part] = []
        for name in anatomy.parts[part]:
            module = model.get_submodule(name)
            # A ModuleList has no forward of its own; PEFT can only save the modules in it.
            inner = [f"{name}.{index}" for index in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
            modules[part] += inner
    return modules


def anatomy_of(model: nn.Module, family: str | None) -> Anatomy:
    """The layers' table of a model's family."""
    if family is None:
        describe = getattr(model, "config_dict", None)
        assert describe is not None, "a model that does not tell its family needs `family`"
        family = str(describe()["model_type"])
    if family not in ANATOMIES:
        raise AdapterError(unknown_name("family for adapters", family, ANATOMIES))
    return ANATOMIES[family]


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """name -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def role_of(name: str, anatomy: Anatomy) -> str | None:
    """The role of a linear layer."""
    return next((role for role in anatomy.roles if is_target(name, role, anatomy)), None)


def is_target(name: str, target: str, anatomy: Anatomy) -> bool:
    """Whether a linear layer is meant by a role or raw name."""
    if target in anatomy.roles:
        return re.fullmatch(anatomy.roles[target], name) is not None
    return is_suffix(name, target)


def is_suffix(name: str, suffix: str) -> bool:
    """PEFT's match of a listed name: the whole name, or its end after a dot."""
    return name == suffix or name.endswith("." + suffix)


def is_within(name: str, module: str) -> bool:
    """Whether a name is a module or lies in it."""
    return name == module or name.startswith(module + ".")


def count_by_tower(names: Iterable[str], anatomy: Anatomy) -> dict[str, int]:
    """tower -> how many of the layers lie in it."""
    return dict(Counter(_tower_of(name, anatomy) for name in names))


def _tower_of(name: str, anatomy: Anatomy) -> str:
    return next((tower for tower, prefix in anatomy.towers.items() if is_within(name, prefix)), "other")


def _list_layers(layers: Iterable[str], anatomy: Anatomy) -> str:
    """Leaf names with their counts, tower by tower."""
    by_tower: dict[str, Counter[str]] = {}
    for name in layers:
        by_tower.setdefault(_tower_of(name, anatomy), Counter())[name.rpartition(".")[2]] += 1
    return "; ".join(
        f"{tower}: " + ", ".join(f"{leaf} ({count})" for leaf, count in sorted(leaves.items()))
        for tower, leaves in by_tower.items()
    )
