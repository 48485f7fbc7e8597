"""The one decoder loop: embeddings of new tokens, their tree and a cache to hidden states and the new cache.

A family subclasses `DecoderLayer` with its block and `Decoder` with its final norm; what its layers need of each other
(positions, masks, which tokens to compute) is the `DecodePlan` of the call. Called by `vlm.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlmtune.models.cache import Cache, LayerCache
from vlmtune.models.layers import GluMLP
from vlmtune.models.plan import DecodePlan, TokenSet
from vlmtune.models.tree import Level


@dataclass(frozen=True)
class Decoded:
    """What a decoder call returns.

    Attributes:
        hidden: float[N, D], the final (normalized) hidden states of the tokens marked `read`, in packed order.
        cache: the cache after the last level, if requested.
    """

    hidden: Tensor
    cache: Cache | None


class DecoderLayer(nn.Module):
    """A family's block: what the loop needs to know about it, and its forward pass.

    Attributes:
        is_attention: whether it mixes by attention, else by a short convolution over each token's own path.
        num_inputs: K-1, how many earlier inputs its convolution reads.
    """

    is_attention: bool = True
    num_inputs: int = 0

    def empty_cache(self, dtype: torch.dtype, device: torch.device) -> LayerCache:
        """The cache of one path without tokens."""
        raise NotImplementedError

    def forward(self, x: Tensor, plan: DecodePlan, tokens: TokenSet, cache: LayerCache) -> tuple[Tensor, LayerCache]:
        """float[R, D] -> float[R', D] of ``tokens``: all, or from the last attention layer on the needed ones."""
        raise NotImplementedError


class Decoder(nn.Module):
    """Embedding, layers, final norm and the head that is tied to the embedding.

    Args:
        embed_tokens: scales its output as the decoder expects.
        layers: in order; all convolutions have one kernel size.
        norm_name, norm: the final norm, and what the checkpoint calls it.
        logit_softcap: logits stay within ± this.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        layers: Iterable[DecoderLayer],
        norm_name: str,
        norm: nn.Module,
        logit_softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = nn.ModuleList(layers)
        self.add_module(norm_name, norm)
        self._norm_name, self.logit_softcap = norm_name, logit_softcap
        self.checkpoint_activations = False

    def empty_cache(self, dtype: torch.dtype, device: torch.device) -> Cache:
        """The cache before any token: one empty path."""
        layers = cast("list[DecoderLayer]", list(self.layers))
        return Cache.empty([layer.empty_cache(dtype, device) for layer in layers])

    def forward(self, embeddings: Tensor, levels: Sequence[Level], cache: Cache | None, want_cache: bool) -> Decoded:
        """See `VisionLanguageModel.decode`."""
        layers = cast("list[DecoderLayer]", list(self.layers))
        cache = cache or self.empty_cache(embeddings.dtype, embeddings.device)
        last_attention = max((index for index, layer in enumerate(layers) if layer.is_attention), default=-1)
        plan = DecodePlan(
            levels,
            cache,
            num_inputs=max(layer.num_inputs for layer in layers),
            num_convs_above=len(layers) - 1 - last_attention,
            want_cache=want_cache,
            device=embeddings.device,
        )
        x = embeddings if last_attention >= 0 else plan.narrow(embeddings, plan.needed)
        layer_caches: list[LayerCache] = []
        for index, (layer, layer_cache) in enumerate(zip(layers, cache.layers, strict=True)):
            # From the last attention layer on, only tokens that something needs are computed.
            tokens = plan.all if index < last_attention else plan.needed
            if self.checkpoint_activations and torch.is_grad_enabled():
                x, new_cache = checkpoint(layer, x, plan, tokens, layer_cache, use_reentrant=False)
            else:
                x, new_cache = layer(x, plan, tokens, layer_cache)
            if want_cache:
                layer_caches.append(new_cache)  # otherwise a layer's keys and values go with the layer
        hidden = self.get_submodule(self._norm_name)(x[plan.read])
        if not want_cache:
            return Decoded(hidden, None)
        return Decoded(hidden, Cache(layer_caches, plan.end_valid, plan.end_positions, plan.end_lengths))

    def logits(self, hidden: Tensor) -> Tensor:
        """float[N, D] -> float32[N, V], by the embedding table."""
        logits = F.linear(hidden, self.embed_tokens.weight).float()
        return logits if self.logit_softcap is None else (logits / self.logit_softcap).tanh() * self.logit_softcap

    def activation_bytes_per_token(self) -> int:
        """Approximate bytes that a token keeps for the backward pass, without checkpointing."""
        width = self.embed_tokens.embedding_dim
        hidden_sizes = [module.hidden_size for module in self.modules() if isinstance(module, GluMLP)]
        # Norms, gates, projections and residuals: about ten vectors of the width a layer, and three of the MLP's.
        per_token = 10 * width * len(self.layers) + 3 * sum(hidden_sizes)
        return per_token * self.embed_tokens.weight.element_size()
