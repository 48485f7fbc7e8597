"""Which layers a role, a part or a name means in each family, and in which tower they lie.

In: entries of `adapter.targets` and `adapter.parts`. Out: names of layers, or an error that lists those that exist.
Called by `plan.py` and `peft_files.py`. A new family adds an entry to `MODULE_MAPS`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from vlmtune.config.schema import ROLES
from vlmtune.errors import AdapterError, unknown_name
from vlmtune.models.vlm import CONNECTOR

_EMBEDDING = "model.language_model.embed_tokens"
_VISION_ROLES = {
    "vision_attention": r"model\.vision_tower\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",
    "vision_mlp": r"model\.vision_tower\.encoder\.layers\.\d+\.mlp\.fc[12]",
}


@dataclass(frozen=True)
class ModuleMap:
    """A family's layers by what they do.

    Attributes:
        roles: role -> regular expression that fully matches names of linear layers.
        parts: part -> modules that are trained in full. They are modules (or lists of modules), so that PEFT's
            `modules_to_save` can express them.
        towers: name as users see it -> prefix of the modules in it. All families call them by the same names.
        tied: the output head's weight -> the embedding that it is, in files that hold both.
    """

    roles: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]
    towers: Mapping[str, str] = field(
        default_factory=lambda: {
            "vision tower": "model.vision_tower",
            "connector": CONNECTOR,
            "decoder": "model.language_model",
        }
    )
    tied: Mapping[str, str] = field(default_factory=lambda: {"lm_head.weight": f"{_EMBEDDING}.weight"})

    def role_of(self, name: str) -> str | None:
        """The role of a linear layer."""
        return next((role for role in self.roles if self.is_target(name, role)), None)

    def is_target(self, name: str, target: str) -> bool:
        """Whether a role or a raw name selects a linear layer."""
        if target in self.roles:
            return re.fullmatch(self.roles[target], name) is not None
        return is_suffix(name, target)

    def count_by_tower(self, names: Iterable[str]) -> dict[str, int]:
        """tower -> how many of the layers lie in it."""
        return dict(Counter(self._tower_of(name) for name in names))

    def list_layers(self, layers: Iterable[str]) -> str:
        """Leaf names with their counts, tower by tower, for messages."""
        by_tower: dict[str, Counter[str]] = {}
        for name in layers:
            by_tower.setdefault(self._tower_of(name), Counter())[name.rpartition(".")[2]] += 1
        return "; ".join(
            f"{tower}: " + ", ".join(f"{leaf} ({count})" for leaf, count in sorted(leaves.items()))
            for tower, leaves in by_tower.items()
        )

    def _tower_of(self, name: str) -> str:
        return next((tower for tower, prefix in self.towers.items() if is_within(name, prefix)), "other")


def _parts(*decoder: str) -> dict[str, tuple[str, ...]]:
    # Not the tower as one module: files may hold a pooling head in it, which nothing reads and nothing saves.
    vision = tuple(f"model.vision_tower.{name}" for name in ("embeddings", "encoder", "post_layernorm"))
    return {
        "connector": (CONNECTOR,),
        "vision_tower": vision,
        "embeddings": (_EMBEDDING,),
        "language_model": decoder,
        "everything": (*vision, CONNECTOR, _EMBEDDING, *decoder),
    }


MODULE_MAPS: Mapping[str, ModuleMap] = {
    "lfm2_vl": ModuleMap(
        roles={
            "attention": r"model\.language_model\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",
            "mlp": r"model\.language_model\.layers\.\d+\.feed_forward\.w[123]",
            "conv": r"model\.language_model\.layers\.\d+\.conv\.(in|out)_proj",
            "connector": r"model\.multi_modal_projector\.linear_[12]",
            **_VISION_ROLES,
        },
        parts=_parts("model.language_model.layers", "model.language_model.embedding_norm"),
    ),
    "paligemma": ModuleMap(
        roles={
            "attention": r"model\.language_model\.layers\.\d+\.self_attn\.[qkvo]_proj",
            "mlp": r"model\.language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj",
            "connector": r"model\.multi_modal_projector\.linear",
            **_VISION_ROLES,
        },
        parts=_parts("model.language_model.layers", "model.language_model.norm"),
    ),
}
"""Family -> its map."""


def module_map_of(model: nn.Module, family: str | None = None) -> ModuleMap:
    """The map of a model's family; None asks the model. Raises AdapterError for a family without one."""
    if family is None:
        describe = getattr(model, "config_dict", None)
        assert describe is not None, "a model that does not name its family needs `family`"
        family = str(describe()["model_type"])
    if family not in MODULE_MAPS:
        raise AdapterError(unknown_name("family for adapters", family, MODULE_MAPS))
    return MODULE_MAPS[family]


def match_targets(model: nn.Module, targets: Iterable[str], module_map: ModuleMap) -> dict[str, list[str]]:
    """target -> names of the linear layers it means. Raises AdapterError for every target that means none.

    A role is looked up first; any other word matches as PEFT's list form does: the whole name, or its end after a dot.
    A role that only other families have (`conv`) is not an error: it is ignored, so that one file serves all.
    """
    layers = linear_layers(model)
    matched = {target: [name for name in layers if module_map.is_target(name, target)] for target in targets}
    of_other_families = {role for role in ROLES if role not in module_map.roles}
    empty = [target for target, names in matched.items() if not names and target not in of_other_families]
    if not empty:
        return matched
    others = {name.rpartition(".")[2]: type(module).__name__ for name, module in model.named_modules()}
    notes = [
        f"'{target}' is not a linear layer but {others[target]}; train it in full through adapter.parts."
        for target in empty
        if target in others
    ]
    quoted = ", ".join(f"'{target}'" for target in empty)
    raise AdapterError(
        f"adapter.targets: {quoted} match{'es' if len(empty) == 1 else ''} no layer of this model.\n"
        f"  Roles: {', '.join(module_map.roles)}\n  Layers: {module_map.list_layers(layers)}"
        + "".join(f"\n  {note}" for note in notes)
    )


def match_parts(model: nn.Module, parts: Iterable[str], module_map: ModuleMap) -> dict[str, list[str]]:
    """part -> modules trained in full; a list of layers is spelled out. Raises AdapterError for an unknown part."""
    modules: dict[str, list[str]] = {}
    for part in parts:
        if part not in module_map.parts:
            raise AdapterError(f"adapter.parts: {unknown_name('part', part, module_map.parts)}")
        modules[part] = []
        for name in module_map.parts[part]:
            module = model.get_submodule(name)
            # A ModuleList has no forward of its own; PEFT can only save the modules in it.
            inner = [f"{name}.{index}" for index in range(len(module))] if isinstance(module, nn.ModuleList) else [name]
            modules[part] += inner
    return modules


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """name -> linear layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def is_suffix(name: str, suffix: str) -> bool:
    """PEFT's match of a listed name: the whole name, or its end after a dot."""
    return name == suffix or name.endswith("." + suffix)


def is_within(name: str, module: str) -> bool:
    """Whether a name is a module or lies in it."""
    return name == module or name.startswith(module + ".")
