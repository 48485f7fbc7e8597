"""Open-ended answers: greedy or sampled tokens, batched, on the same state that scoring uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlmtune.inference.scoring import Question, prompt_rows
from vlmtune.models.interface import VisionLanguageModel
from vlmtune.models.tree import Rows, State


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this (arXiv 1904.09751).
        max_new_tokens: an answer is cut there.
        seed: of the random draws; the same seed, batch and model give the same answers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    seed: int = 0


@torch.inference_mode()
def generate(
    model: VisionLanguageModel,
    prefix_state: State | None,
    questions: Sequence[Question],
    stop: Sequence[int],
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Answer every question.

    Args:
        model: in evaluation mode.
        prefix_state: the state after the prompt that all questions share, or None.
        stop: tokens that end an answer; they are not part of it.

    Returns:
        The answers' tokens.
    """
    sampling = sampling or Sampling()
    generator = torch.Generator(device=model.device).manual_seed(sampling.seed)
    ids = torch.tensor([token for question in questions for token in question.ids], device=model.device)
    embeddings = model.embed(ids, [features for question in questions for features in question.features])
    decoded = model.decode(embeddings, [prompt_rows(model, questions)], prefix_state, want_state=True)
    answers: list[list[int]] = [[] for _ in questions]
    running = list(range(len(questions)))
    for step in range(sampling.max_new_tokens):
        tokens = _choose(model.logits(decoded.hidden), sampling, generator).tolist()
        going = [slot for slot, token in enumerate(tokens) if token not in stop]
        for slot in going:
            answers[running[slot]].append(tokens[slot])
        if not going or step + 1 == sampling.max_new_tokens:
            break
        assert decoded.state is not None
        state = decoded.state.select(going)
        running = [running[slot] for slot in going]
        embedded = model.embed(torch.tensor([tokens[slot] for slot in going], device=model.device), [])
        rows = Rows.chains([1] * len(going), parent=range(len(going)))
        decoded = model.decode(embedded, [rows], state, want_state=True)
    return answers


def _choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """float32[B, V] -> int64[B]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        ordered, index = probabilities.sort(-1, descending=True)
        # A token stays while the mass before it is below top_p: the first one always does.
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered.masked_fill(beyond, 0))
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
