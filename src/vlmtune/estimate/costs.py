"""Memory and operations of a training step, from the shapes of a model on the meta device.

In: an adapted model on the meta device, and the shape of a sample. Out: bytes and FLOP. Called by `estimate.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from vlmtune.adapters.connector_swap import install_connector, wanted_shape
from vlmtune.adapters.plan import AdapterPlan, apply_adapter
from vlmtune.config.schema import Experiment
from vlmtune.models.registry import build_on_meta, choose_device, choose_dtype, family_of
from vlmtune.models.vlm import VisionLanguageModel

_ADAM_BYTES = 16  # a learning float32 parameter, its gradient and AdamW's two moments
_WORKSPACE = 0.75 * 2**30  # the runtime's memory, and buffers of single operations


@dataclass(frozen=True)
class SampleShape:
    """Token and patch counts of one sample.

    Attributes:
        prefix: prompt tokens that all samples share. own: the rest of a prompt, image tokens among them.
        answer: tokens of an answer, end token included.
        tiles: (rows, columns) of patches of each tile.
        known_from: source of the numbers, in words.
    """

    prefix: int
    own: int
    answer: float
    tiles: tuple[tuple[int, int], ...]
    known_from: str

    @property
    def num_patches(self) -> int:
        return sum(rows * columns for rows, columns in self.tiles)


@dataclass(frozen=True)
class Part:
    """A tower's parameters: all, those that learn, and those in linear layers (what each token is multiplied by)."""

    name: str
    total: int
    trainable: int
    linear: int


class Costs:
    """Memory and operations of a micro-batch, from the shapes of a model on the meta device."""

    def __init__(self, model: VisionLanguageModel, plan: AdapterPlan, shape: SampleShape, checkpointed: bool) -> None:
        self.model, self.shape, self.checkpointed = model, shape, checkpointed
        prefixes = {name: prefix + "." for name, prefix in plan.module_map.towers.items()}
        self.full_parameters = {name for name in plan.full_parameters if name in dict(model.named_parameters())}
        self.parts = []
        self._linear: dict[str, int] = {}
        self._learning_linear: dict[str, int] = {}
        self._lora: dict[str, int] = {}
        low_rank = {name for name in plan.parameters if name not in plan.full_parameters}
        for tower, prefix in prefixes.items():
            parameters = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}
            base = {name: p.numel() for name, p in parameters.items() if name not in low_rank}
            matrices = {
                f"{name}.weight": module.weight.numel()
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear) and name.startswith(prefix)
            }
            self._linear[tower] = sum(matrices.values())
            self._learning_linear[tower] = sum(
                count for name, count in matrices.items() if name in plan.full_parameters
            )
            self._lora[tower] = sum(parameters[name].numel() for name in low_rank & parameters.keys())
            learning = self._lora[tower] + sum(base[name] for name in plan.full_parameters.keys() & base.keys())
            self.parts.append(Part(tower, sum(base.values()), learning, self._linear[tower]))
        self._attention_width = {
            tower: sum(
                module.out_features
                for name, module in model.named_modules()
                if name.startswith(prefix) and name.endswith("q_proj") and isinstance(module, nn.Linear)
            )
            for tower, prefix in prefixes.items()
        }
        embedding = next(
            m for m in model.modules() if isinstance(m, nn.Embedding) and len(m.weight) == model.vocab_size
        )
        self.vocab_size, self.width = embedding.num_embeddings, embedding.embedding_dim
        self.element_size = embedding.weight.element_size()
        layers = model.get_submodule(f"{plan.module_map.towers['decoder']}.layers")
        assert isinstance(layers, nn.ModuleList)
        self.num_layers = len(layers)
        self._learns = {part.name: part.trainable > 0 for part in self.parts}

    def num_tokens(self, batch: int) -> float:
        """Tokens of a micro-batch that go through the decoder."""
        shared = self.shape.prefix * (batch if self.model.bidirectional_prompt else 1)
        return shared + batch * (self.shape.own + self.shape.answer - 1)

    def flops(self, batch: int) -> float:
        """Floating-point operations of training on one sample, in a micro-batch of ``batch``."""
        shape = self.shape
        patches = shape.num_patches * batch
        tower = self._linear_flops("vision tower", patches, is_reached=self._learns["vision tower"])
        squares = sum((rows * columns) ** 2 for rows, columns in shape.tiles) * batch
        tower += 4 * self._attention_width["vision tower"] * squares * (3 if self._learns["vision tower"] else 1)
        tokens = batch * shape.num_patches / max(1, self._patches_per_token())
        before = self._learns["vision tower"] or self._learns["connector"]
        connector = self._linear_flops("connector", tokens, is_reached=before)

        rows = self.num_tokens(batch)
        decoder = self._linear_flops("decoder", rows, is_reached=True)
        unshared = shape.own + shape.answer - 1
        seen = shape.prefix**2 / 2 + batch * unshared * (shape.prefix + unshared / 2)
        decoder += 3 * 4 * self._attention_width["decoder"] * seen
        if self.checkpointed:
            decoder += 2 * self._linear["decoder"] * rows
        head = 2 * 2 * self.vocab_size * self.width * batch * shape.answer
        return float(tower + connector + decoder + head) / batch

    def _linear_flops(self, tower: str, rows: float, *, is_reached: bool) -> float:
        """FLOP of linear layers: forward, gradients of inputs, of weights trained in full, and LoRA's."""
        total = 2 * self._linear[tower] * rows * (2 if is_reached else 1)
        return total + 2 * self._learning_linear[tower] * rows + 3 * 2 * self._lora[tower] * rows

    def _patches_per_token(self) -> float:
        grid = self.shape.tiles[0]
        return grid[0] * grid[1] / self.model.connector.num_tokens(grid)

    def memory(self, batch: int, *, is_float32: bool = False) -> float:
        """Peak bytes of a step with a micro-batch of ``batch``; ``is_float32`` overrides the experiment's type."""
        element_size = 4 if is_float32 else self.element_size
        total = sum(part.total for part in self.parts) * element_size
        learning = sum(part.trainable for part in self.parts) * _ADAM_BYTES
        per_token = self.model.activation_bytes_per_token() * element_size // self.element_size
        if self.checkpointed:
            per_token = self.num_layers * self.width * element_size + per_token // self.num_layers
        patches = self.shape.num_patches * batch
        vision = self.parts[0].linear // max(1, self.model.num_tower_layers)  # about 12 widths squared
        per_patch = 16 * math.isqrt(vision // 12) * element_size
        kept_layers = self.model.num_tower_layers if self._learns["vision tower"] else 1
        logits = 2 * 4 * min(batch * self.shape.answer * self.vocab_size, 2.0**24)
        vision_activations = per_patch * patches * kept_layers
        return float(total + learning + per_token * self.num_tokens(batch) + vision_activations + logits + _WORKSPACE)


def adapted(config: dict[str, Any], experiment: Experiment) -> tuple[VisionLanguageModel, AdapterPlan]:
    """The experiment's model with its adapter, on the meta device, in the type it would have."""
    model = build_on_meta(config, experiment.model.base)
    num = sum(parameter.numel() for parameter in model.parameters())
    model.to(choose_dtype(experiment.model.dtype, choose_device(experiment.model.device), num))
    if experiment.model.connector is not None:
        install_connector(model, wanted_shape(experiment.model.connector, model))
    return model, apply_adapter(model, experiment.adapter, family=family_of(config, experiment.model.base).name)
