"""A task's prompt as tokens: rendered by the chat template, the picture's placeholder spelled out, tokenised once.

Training, scoring and generation all take their tokens from here. The prompt's tokens and an answer's are made apart:
the answer starts a new turn line, so that a prompt's tokens are always a prefix of prompt-and-answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlmtune.config.schema import TaskSection
from vlmtune.errors import UserError
from vlmtune.records import LabelSet
from vlmtune.text.defaults import (
    CLASSIFY_SYSTEM_PROMPT,
    CLASSIFY_USER_PROMPT,
    QUESTION_PLACEHOLDER,
    VQA_SYSTEM_PROMPT,
    VQA_USER_PROMPT,
    fill_labels,
)
from vlmtune.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PromptTokens:
    """A whole prompt up to where the answer begins; image placeholders are `Tokenizer.image_token_id`."""

    ids: list[int]


class PromptBuilder:
    """Builds the prompts of one task.

    Args:
        tokenizer: the checkpoint's.
        task: prompts, how labels are listed, and where the picture stands.
        labels: the closed set, for `{labels}`; None for open answers.
    """

    def __init__(self, tokenizer: Tokenizer, task: TaskSection, labels: LabelSet | None) -> None:
        self.tokenizer = tokenizer
        self.task = task
        is_listed = task.list_labels != "never" and labels is not None
        names = [forms[0] for forms in labels.shown] if labels is not None and is_listed else None
        system, user = (
            (CLASSIFY_SYSTEM_PROMPT, CLASSIFY_USER_PROMPT)
            if task.kind == "classify"
            else (VQA_SYSTEM_PROMPT, VQA_USER_PROMPT)
        )
        self.system = fill_labels(system if task.system_prompt is None else task.system_prompt, names)
        self.user = fill_labels(user if task.user_prompt is None else task.user_prompt, names)
        if task.kind == "vqa" and QUESTION_PLACEHOLDER not in self.user:
            raise UserError(
                f"task.user_prompt: a question task needs {QUESTION_PLACEHOLDER} in it; found {self.user!r}."
            )

    def text(self, question: str | None, image_text: str) -> str:
        """The prompt as the tokenizer sees it, image placeholders spelled out."""
        user = self.user if question is None else self.user.replace(QUESTION_PLACEHOLDER, question)
        content: list[dict[str, Any]] = [{"type": "image"}, {"type": "text", "text": user}]
        if self.task.image_position == "last":
            content.reverse()
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        rendered = self.tokenizer.render(messages, add_generation_prompt=True)
        image_token = self.tokenizer.image_token
        if rendered.count(image_token) != 1:
            raise UserError(
                f"The prompt must hold one picture; found {rendered.count(image_token)} '{image_token}' in it. "
                f"Take '{image_token}' out of task.system_prompt and task.user_prompt."
            )
        return rendered.replace(image_token, image_text)

    def build(self, question: str | None, image_text: str) -> PromptTokens:
        """The whole prompt of one sample.

        Args:
            question: for question tasks.
            image_text: the processor's placeholder for the picture (`ProcessedImage.text`).
        """
        return PromptTokens(self.tokenizer.encode(self.text(question, image_text)))

    def shared_prefix(self) -> list[int]:
        """The leading tokens that every prompt of the task has, whatever the picture and the question."""
        # Two prompts as different as prompts can be: what they share, all share. The token before the first
        # difference might merge with what follows in a third prompt, unless it is special: so it is left out.
        first = self.build("0 ?", "\n").ids
        second = self.build("Aa!", "§").ids
        shared = 0
        while shared < min(len(first), len(second)) and first[shared] == second[shared]:
            shared += 1
        return first[: max(0, shared - 1)]

    def answer_tokens(self, answer: str) -> list[int]:
        """An answer's tokens, the end token last. Raises UserError for an empty answer."""
        if not answer.strip():
            raise UserError("An answer is empty. Every example needs one, and every label a name.")
        return [*self.tokenizer.encode(answer), self.tokenizer.end_id]

    def boundary_warning(self, answer: str, image_text: str) -> str | None:
        """A sentence if the tokenizer would merge the prompt's end with the answer's beginning, else None."""
        prompt = self.text("?", image_text)
        apart = self.tokenizer.encode(prompt) + self.tokenizer.encode(answer)
        together = self.tokenizer.encode(prompt + answer)
        if apart == together:
            return None
        return (
            f"The tokenizer merges the end of the prompt with the answer '{answer}': trained and scored apart, it is "
            "not what the base model has seen. End the prompt with a line break or a special token."
        )
