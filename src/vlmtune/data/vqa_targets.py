"""Which of a question's answers is learned in an epoch: a function of seed, example and epoch, so resuming is exact.

Called by training for every sample of a VQA task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Literal

from vlmtune.errors import DataError
from vlmtune.records import Example

AnswerRule = Literal["sample", "majority"]


def choose_target(
    example: Example, rule: AnswerRule, seed: int, epoch: int, closed: frozenset[str] | None = None
) -> str:
    """The answer that is learned.

    ``sample`` draws from the annotators' answers without replacement over epochs, each round of as many epochs as
    there are answers in a new order (PaliGemma's VQAv2 recipe): over a round every annotator is followed once.
    ``majority`` takes the most frequent answer, the first given among equals.

    Args:
        example: with its question's answers.
        seed: the experiment's.
        epoch: from 0.
        closed: the closed list, in whose words alone targets may be; None for open answers.

    Raises:
        DataError: if no answer is left to learn.
    """
    answers = usable_answers(example.answers, closed)
    if not answers:
        wanted = "in task.labels" if closed is not None else "with any text"
        raise DataError(
            f"{example.id}: none of its {len(example.answers)} answers is {wanted}. Leave the question out."
        )
    if rule == "majority":
        # Counter keeps the order of first occurrence, and so does max among equals.
        return max(Counter(answers).items(), key=lambda item: item[1])[0]
    round_, place = divmod(epoch, len(answers))
    order = list(range(len(answers)))
    Random(f"answer {seed} {example.id} {round_}").shuffle(order)
    return answers[order[place]]


def usable_answers(answers: Sequence[str], closed: frozenset[str] | None = None) -> list[str]:
    """The answers that can be learned: single spaces inside, not empty, and in the closed list if there is one."""
    cleaned = (" ".join(answer.split()) for answer in answers)
    return [answer for answer in cleaned if answer and (closed is None or answer in closed)]
