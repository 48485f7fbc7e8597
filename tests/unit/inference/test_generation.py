"""Open answers: one token at a time equals all at once, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_model import random_model
from vlmtune.errors import WeightsError
from vlmtune.inference.batch import Request
from vlmtune.inference.generation import Generation, Sampling, generate

pytestmark = pytest.mark.unit

MODEL = random_model()
QUESTIONS = [Request([15, 16, 17, 18], []), Request([19, 14], []), Request([17, 17, 13, 18, 19, 20], [])]


def write(
    questions: list[Request], samplings: list[Sampling], dropped: dict[int, int] | None = None
) -> list[list[int]]:
    """The answers, question ``q`` dropped after ``dropped[q]`` tokens."""
    generation = Generation(MODEL, None, questions, [], samplings)
    answers: list[list[int]] = [[] for _ in questions]
    while generation.running:
        step = generation.step()
        for question, token in zip(step.requests, step.tokens, strict=True):
            answers[question].append(token)
        for question, length in (dropped or {}).items():
            if len(answers[question]) == length:
                generation.drop(question)
    return answers


def test_a_question_is_answered_the_same_alone_and_among_others() -> None:
    samplings = [
        Sampling(temperature=0.0 if n == 1 else 1.0, top_p=0.9, max_new_tokens=5 + n, seed=n) for n in range(3)
    ]
    together = write(QUESTIONS, samplings)
    alone = [write([question], [sampling])[0] for question, sampling in zip(QUESTIONS, samplings, strict=True)]
    assert together == alone
    assert [len(answer) for answer in together] == [5, 6, 7]


def test_a_dropped_question_ends_and_the_others_go_on() -> None:
    samplings = [Sampling(max_new_tokens=6)] * 3
    whole = write(QUESTIONS, samplings)
    parts = write(QUESTIONS, samplings, dropped={1: 2})
    assert parts == [whole[0], whole[1][:2], whole[2]]


def test_generate_is_the_same_without_the_stop_token() -> None:
    (whole,) = write(QUESTIONS[:1], [Sampling(max_new_tokens=6)])
    stop = whole[3]
    (answer,) = generate(MODEL, None, QUESTIONS[:1], [stop], Sampling(max_new_tokens=6))
    assert answer == whole[: whole.index(stop)]


def test_the_seed_decides_a_sampled_answer() -> None:
    def answer(seed: int) -> list[int]:
        return write(QUESTIONS[:1], [Sampling(temperature=2.0, max_new_tokens=12, seed=seed)])[0]

    assert answer(1) == answer(1) != answer(2)


@pytest.mark.parametrize("sampling", [Sampling(temperature=1e-42), Sampling(temperature=3.0, top_p=0.0)])
def test_the_ends_of_what_sampling_allows_are_greedy(sampling: Sampling) -> None:
    assert generate(MODEL, None, QUESTIONS, [], sampling) == generate(MODEL, None, QUESTIONS, [], Sampling())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    logits = MODEL.logits
    monkeypatch.setattr(MODEL, "logits", lambda hidden: logits(hidden).index_fill_(1, torch.tensor([7]), float("nan")))
    with pytest.raises(WeightsError, match="not numbers"):
        generate(MODEL, None, QUESTIONS, [], Sampling(temperature=temperature))


def test_log_probabilities_come_from_the_logits_of_the_step() -> None:
    step = Generation(MODEL, None, QUESTIONS, [], [Sampling()] * 3).step()
    assert step.logits.shape == (3, MODEL.vocab_size)
    assert torch.equal(step.logits.argmax(-1), torch.tensor(step.tokens))
