"""The words of pretraining: prompts around a drawn image.

In: facts of an image. Out: `Lesson`s, texts in the chat format of `text.defaults`, cut where a prefix tree branches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from tiny.drawn.questions import class_list, questions
from vlmtune.data.drawn.scenes import Facts
from vlmtune.text import defaults


@dataclass(frozen=True, slots=True)
class Lesson:
    """One prompt about an image, with several questions that share everything up to the image's end.

    Attributes:
        head: text before the image's first token.
        branches: (text between the image's last token and the answer, the answer, its loss weight).
    """

    head: str
    branches: tuple[tuple[str, str, float], ...]


def head(system: str) -> str:
    """The chat up to the image."""
    return f"<|startoftext|><|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|image_start|>"


def branch(question: str) -> str:
    """The chat from the image's end to the answer."""
    return f"<|image_end|>{question}<|im_end|>\n<|im_start|>assistant\n"


END = "<|im_end|>"


def lessons(facts: Facts, seed: int, num_questions: int) -> list[Lesson]:
    """A classification with a class list (where the image has a name), and some questions about the image."""
    rng = Random(f"lessons {seed}")
    result = []
    listed = class_list(facts, rng)
    if listed is not None:
        labels, answer = listed
        listed_labels = None if facts.label == answer and rng.random() < 0.1 else labels
        system = defaults.fill_labels(defaults.CLASSIFY_SYSTEM_PROMPT, listed_labels)
        result.append(Lesson(head(system), ((branch(defaults.CLASSIFY_USER_PROMPT), answer, 2.0),)))
    chosen = questions(facts, seed)[:num_questions]
    result.append(
        Lesson(
            head(defaults.VQA_SYSTEM_PROMPT),
            # A caption has many easy tokens: it should not outweigh the answers.
            tuple((branch(q.question), q.answer, 0.4 if q.type == "caption" else 1.0) for q in chosen),
        )
    )
    return result


def texts(facts: Iterable[Facts]) -> Iterable[str]:
    """Training text of the tokenizer: the lessons' plain text, without special tokens."""
    for i, fact in enumerate(facts):
        for lesson in lessons(fact, i, num_questions=8):
            yield lesson.head.split("system\n")[1].split(END)[0]
            for prompt, answer, _ in lesson.branches:
                yield prompt.split("<|image_end|>")[1].split(END)[0]
                yield answer
                # Labels also occur inside a sentence, after a space.
                yield f"the {answer}, {answer}."
