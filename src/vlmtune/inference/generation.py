"""Open-ended answers: greedy or sampled tokens, batched, on the same cache that scoring uses.

`generate` returns a whole batch at once; `Generation` yields every token as it is chosen, for streaming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmtune.inference.batch import Request, prompt_levels
from vlmtune.inference.token_log_probs import refuse_nan
from vlmtune.models.cache import Cache
from vlmtune.models.decoder import Decoded
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this (arXiv 1904.09751).
        max_new_tokens: longer answers are cut; at least 1.
        seed: of the random draws. A request's draws depend on its own seed, not on what else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One token of every request that was running.

    Attributes:
        requests: their numbers.
        tokens: the next token of each; a stop token ends its request.
        logits: float32[A, V], what the tokens were chosen from.
    """

    requests: list[int]
    tokens: list[int]
    logits: Tensor


class Generation:
    """A batch of answers being generated, one token at a time.

    Args:
        model: in evaluation mode.
        prefix_cache: the cache after the prompt that all requests share, or None.
        stop: tokens that end an answer.
        samplings: one per request.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        prefix_cache: Cache | None,
        requests: Sequence[Request],
        stop: Sequence[int],
        samplings: Sequence[Sampling],
    ) -> None:
        self.model = model
        self.running = list(range(len(requests)))
        self._prefix_cache = prefix_cache
        self._requests = requests
        self._stop = frozenset(stop)
        self._samplings = samplings
        self._draws = [torch.Generator(device=model.device).manual_seed(sampling.seed) for sampling in samplings]
        self._num_steps = 0
        self._cache: Cache | None = None
        self._in_cache: list[int] = []
        self._tokens: list[int] = []

    def drop(self, request: int) -> None:
        """Give up a request, as if it had ended."""
        if request in self.running:
            self.running.remove(request)

    @torch.inference_mode()
    def step(self) -> Step:
        """Choose the next token of every running request; there must be one. Afterwards `running` holds the rest."""
        decoded = self._prefill() if self._cache is None else self._continue(self._cache)
        assert decoded.cache is not None
        self._cache, self._in_cache = decoded.cache, self.running
        logits = self.model.logits(decoded.hidden)
        self._tokens = _choose(
            logits, [self._samplings[q] for q in self.running], [self._draws[q] for q in self.running]
        )
        self._num_steps += 1
        step = Step(self.running, self._tokens, logits)
        self.running = [
            request
            for request, token in zip(step.requests, step.tokens, strict=True)
            if token not in self._stop and self._num_steps < self._samplings[request].max_new_tokens
        ]
        return step

    def _prefill(self) -> Decoded:
        levels, prompts = prompt_levels(self.model, [self._requests[request] for request in self.running])
        return self.model.decode(prompts, levels, self._prefix_cache, want_cache=True)

    def _continue(self, cache: Cache) -> Decoded:
        slots = [self._in_cache.index(request) for request in self.running]
        tokens = torch.tensor([self._tokens[slot] for slot in slots], device=self.model.device)
        level = Level.chains([1] * len(slots), parent=range(len(slots)))
        return self.model.decode(self.model.embed(tokens, []), [level], cache.select(slots), want_cache=True)


def generate(
    model: VisionLanguageModel,
    prefix_cache: Cache | None,
    requests: Sequence[Request],
    stop: Sequence[int],
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Answer every request; arguments as in `Generation`.

    Args:
        sampling: of all requests; the i-th draws with its seed plus i.

    Returns:
        The answers' tokens, without the stop token.
    """
    sampling = sampling or Sampling()
    samplings = [replace(sampling, seed=sampling.seed + number) for number in range(len(requests))]
    generation = Generation(model, prefix_cache, requests, stop, samplings)
    answers: list[list[int]] = [[] for _ in requests]
    while generation.running:
        step = generation.step()
        for request, token in zip(step.requests, step.tokens, strict=True):
            if token not in stop:
                answers[request].append(token)
    return answers


def _choose(logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[torch.Generator]) -> list[int]:
    """float32[A, V] -> A tokens. Raises WeightsError where logits are not numbers."""
    refuse_nan(logits)
    tokens: list[int] = logits.argmax(-1).tolist()
    for row, (sampling, draw) in enumerate(zip(samplings, draws, strict=True)):
        if sampling.temperature == 0:
            continue
        # From the largest logit down, so that no temperature, however small, divides to infinity.
        probabilities = ((logits[row] - logits[row].max()) / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            ordered, index = probabilities.sort(descending=True)
            # A token stays while the mass before it is below top_p; the first one always does.
            beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
            beyond[0] = False
            probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered.masked_fill(beyond, 0))
        tokens[row] = int(torch.multinomial(probabilities, 1, generator=draw))
    return tokens
