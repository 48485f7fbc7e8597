"""A task's prompt as tokens: rendered by the chat template (or the family's own format, `formats.py`), the image's
placeholder spelled out, tokenized once.

Training, scoring and generation all take their tokens from here. A prompt's tokens are always a prefix of those of
prompt and answer together, and the prefix shared by all prompts of a task is known, so that it is run once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from vlmtune.config.schema import TaskSection
from vlmtune.errors import ConfigError, DataError, TokenizerError
from vlmtune.records import LabelSet, Turn
from vlmtune.text.defaults import (
    LABELS_PLACEHOLDER,
    QUESTION_PLACEHOLDER,
    fill_labels,
)
from vlmtune.text.tokenizer import Tokenizer

# Beginnings of every kind that pre-tokenizers distinguish: letters, digits, punctuation, other scripts.
_PROBES = ("What is it", "a", "0", "?", "(", "'s", "É", "漢", "—")
_IMAGE_START = "<|image_start|>"
_TILE_NAME = re.compile(r"<\|img_[^|]*\|>")


@dataclass(frozen=True)
class PromptTokens:
    """A whole prompt up to the answer.

    Attributes:
        ids: the tokens.
        image_token_id: the placeholder token of one image feature.
    """

    ids: list[int]
    image_token_id: int

    @property
    def image_mask(self) -> list[bool]:
        """True where an image feature replaces the token."""
        return [token == self.image_token_id for token in self.ids]


class PromptBuilder:
    """Builds the prompts of one task. Safe to use from several threads.

    Args:
        tokenizer: the checkpoint's.
        task: prompts, how labels are listed, and the image's position. The list is left out only if
            ``list_labels`` is "never".
        labels: the closed set, for `{labels}`; None for open answers.

    Raises:
        ConfigError: if a prompt lacks what the task needs or holds a special token, or a label does; if the image
            cannot be placed as configured.
        TokenizerError: if the chat template has no place for the image or for the system prompt.
    """

    def __init__(self, tokenizer: Tokenizer, task: TaskSection, labels: LabelSet | None) -> None:
        self.tokenizer = tokenizer
        self.task = task
        style = tokenizer.prompt_format
        is_listed = task.is_closed and not task.asks_from_data and not task.is_bool
        default_system = (style.classify if is_listed else style.vqa)[0]
        default_user = (style.vqa if task.asks_from_data else style.classify)[1]
        system = default_system if task.system_prompt is None else task.system_prompt
        user = default_user if task.user_prompt is None else task.user_prompt
        self.lists_labels = LABELS_PLACEHOLDER in system + user and task.list_labels != "never"
        """Whether the prompt holds the class list by `{labels}`; a handwritten list is not detected."""
        if self.lists_labels and labels is None:
            raise ConfigError(
                f"The prompt lists the labels ({LABELS_PLACEHOLDER}), but the task has none. Give task.labels, "
                "or set task.list_labels: never."
            )
        if task.asks_from_data and QUESTION_PLACEHOLDER not in user:
            raise ConfigError(
                f"task.user_prompt: with task.question_from: data it needs {QUESTION_PLACEHOLDER}; found {user!r}. "
                f"For example: 'Answer briefly: {QUESTION_PLACEHOLDER}'."
            )
        if style.is_image_first and task.image_position == "last":
            raise ConfigError(
                "task.image_position: found last, but this family of models takes the image first. Leave it out."
            )
        names = [forms[0] for forms in labels.shown] if labels is not None and self.lists_labels else None
        self.system = fill_labels(system, names)
        self.user = fill_labels(user, names)
        if not style.has_system:
            self.system, self.user = "", "\n".join(text for text in (self.system, self.user) if text)
        self.asks_question = QUESTION_PLACEHOLDER in self.user
        self._any_control_token = re.compile("|".join(map(re.escape, sorted(tokenizer.control_tokens))))
        for key, text in (("task.system_prompt", system), ("task.user_prompt", user)):
            if token := self._control_token(text):
                raise ConfigError(f"{key}: holds the special token '{token}', which the chat template adds by itself.")
        for form in (form for forms in labels.shown for form in forms) if labels is not None else ():
            if token := self._control_token(form):
                raise ConfigError(f"task.label_names: '{form}' holds the special token '{token}'. Show another name.")
        self._render = lru_cache(maxsize=4096)(self._render_around_image)
        self._rest = lru_cache(maxsize=4096)(self._after_prefix)
        self._system_content: str | list[dict[str, str]] = self.system
        self._check_template()

    def text(self, question: str | None, image_text: str, history: tuple[Turn, ...] = ()) -> str:
        """The prompt as the tokenizer sees it, image placeholders spelled out. Arguments as in `build`."""
        before, after = self._render(question, history)
        return before + image_text + after

    def build(self, question: str | None, image_text: str, history: tuple[Turn, ...] = ()) -> PromptTokens:
        """The whole prompt of one sample.

        Args:
            question: where the user prompt holds `{question}`, else None.
            image_text: the processor's placeholder for the image (`ProcessedImage.text`).
            history: earlier questions and answers; the image is with the first question.

        Raises:
            DataError: if a question is missing, has no place in the prompt, or holds a special token; if there is a
                history in a family that takes one question.
            TokenizerError: if the tokenizer lacks a token that names tiles.
        """
        self._check_tiles(image_text)
        text = self.text(question, image_text, history)
        return PromptTokens(self.tokenizer.encode(text), self.tokenizer.image_token_id)

    def rest(self, question: str | None, image_text: str, history: tuple[Turn, ...] = ()) -> list[int]:
        """The prompt's tokens after `prefix`, image placeholders included. Arguments and errors as those of `build`."""
        return list(self._rest(question, image_text, history))

    def _after_prefix(self, question: str | None, image_text: str, history: tuple[Turn, ...]) -> tuple[int, ...]:
        ids = self.build(question, image_text, history).ids
        assert ids[: len(self.prefix)] == self.prefix
        return tuple(ids[len(self.prefix) :])

    @cached_property
    def prefix(self) -> list[int]:
        """The result of `shared_prefix`, computed once: a batch runs these tokens once for all its images."""
        return self.shared_prefix()

    def shared_prefix(self) -> list[int]:
        """The leading tokens that every prompt of the task has, whatever the image and the question.

        Ends before the image's first token or before the question, whichever comes first; may be empty.
        """
        if self.tokenizer.prompt_format.is_image_first:
            return []
        images = [self.tokenizer.image_token]
        if _IMAGE_START in self.tokenizer.control_tokens:
            images.append(_IMAGE_START + self.tokenizer.image_token)
        questions = _PROBES if self.asks_question else (None,)
        prompts = [self.tokenizer.encode(self.text(q, p)) for q in questions for p in images]
        shared = _common_prefix(prompts)
        before_image = self.tokenizer.encode(self._render(questions[0])[0])
        # Where a question comes next and not the image, some word might still merge with the last token.
        return prompts[0][:shared] if shared == len(before_image) else prompts[0][: max(0, shared - 1)]

    def answer_tokens(self, answer: str) -> list[int]:
        """An answer's tokens after the prompt, the end token last.

        Raises:
            DataError: if the answer is empty, holds a special token, or merges with the end of the prompt.
        """
        if not answer.strip():
            raise DataError("An answer is empty. Every example needs one, and every label a name.")
        if token := self._control_token(answer):
            raise DataError(f"The answer {answer!r} holds the special token '{token}'. Write it in another way.")
        # Special tokens never merge with their neighbors: only the text after the last one matters.
        head = self.tokenizer.encode(self._tail)
        ids = self.tokenizer.encode(self._tail + answer + self.tokenizer.end_token)
        if ids[: len(head)] != head:
            raise DataError(
                f"The answer {answer!r} merges with the end of the prompt ({self._tail!r}) into other tokens, so it "
                "cannot be scored after the prompt. Take away the white space before it."
            )
        return ids[len(head) :]

    def check_answer_boundary(self, answer: str) -> str | None:
        """A sentence if the chat template writes this answer differently than it is trained and scored, else None.

        Raises DataError as `answer_tokens` does.
        """
        self.answer_tokens(answer)
        question = _PROBES[0] if self.asks_question else None
        prompt = self.text(question, self.tokenizer.image_token)
        expected = prompt + answer + self.tokenizer.end_token
        rendered = self.tokenizer.render(
            [*self._messages(question), {"role": "assistant", "content": answer}], add_generation_prompt=False
        )
        if rendered.startswith(expected):
            return None
        # The tail from where they diverge, with a little shared context.
        parted = max(0, _common_prefix([rendered, expected]) - 20)
        return (
            f"The chat template writes a finished turn as …{rendered[parted:]!r}, but the answer {answer!r} is trained "
            f"and scored as …{expected[parted:]!r}: not quite what the base model has seen."
        )

    def _messages(self, question: str | None, history: tuple[Turn, ...] = ()) -> list[dict[str, Any]]:
        if history:
            return self._conversation(question, history)
        if self.asks_question and (question is None or not question.strip()):
            raise DataError(f"The prompt asks a question ({QUESTION_PLACEHOLDER}), but this image has none.")
        if question is not None and not self.asks_question:
            raise DataError(
                f"The question {question!r} has no place in the prompt {self.user!r}. Put {QUESTION_PLACEHOLDER} into "
                "task.user_prompt, or set task.question_from: data."
            )
        if question is not None and (token := self._control_token(question)):
            raise DataError(f"The question {question!r} holds the special token '{token}'. Write it in another way.")
        user = self.user.replace(QUESTION_PLACEHOLDER, question.strip()) if question is not None else self.user
        content = [{"type": "image"}, {"type": "text", "text": user}]
        if self.task.image_position == "last":
            content.reverse()
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self._system_content})
        return messages

    def _conversation(self, question: str | None, history: tuple[Turn, ...]) -> list[dict[str, Any]]:
        """The image and the first question, then answers and questions in turn up to the current one."""
        if not self.tokenizer.prompt_format.has_turns:
            raise DataError(
                "This family of models takes one question and one answer, and the data holds conversations of several "
                "turns. Set data.turns: first to learn each one's first answer."
            )
        messages = self._messages(history[0][0])
        later_questions = [*(earlier for earlier, _ in history[1:]), question]
        for (_, answer), later in zip(history, later_questions, strict=True):
            if token := self._control_token(answer):
                raise DataError(f"The answer {answer!r} holds the special token '{token}'. Write it in another way.")
            content = self._messages(later)[-1]["content"]
            text = next(item["text"] for item in content if item["type"] == "text")
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": text}]
        return messages

    def _render_around_image(self, question: str | None, history: tuple[Turn, ...] = ()) -> tuple[str, str]:
        """The prompt's text before and after the image."""
        rendered = self.tokenizer.render(self._messages(question, history), add_generation_prompt=True)
        parts = rendered.split(self.tokenizer.image_token)
        if len(parts) != 2:
            raise TokenizerError(
                f"{self.tokenizer.origin}: the chat template wrote {len(parts) - 1} '{self.tokenizer.image_token}' for "
                "one image. It does not belong to a vision-language model of a known family."
            )
        return parts[0], parts[1]

    def _check_template(self) -> None:
        """Find how the template takes a system prompt, and the text right before an answer."""
        question = _PROBES[0] if self.asks_question else None
        text = self.text(question, "")
        if self.system.strip() not in text:
            self._system_content = [{"type": "text", "text": self.system}]
            self._render.cache_clear()
            text = self.text(question, "")
        if self.system.strip() not in text:
            raise TokenizerError(
                f"{self.tokenizer.origin}: the chat template drops the system prompt. Set task.system_prompt: '' and "
                "say everything in task.user_prompt."
            )
        self._tail = ""
        if self.tokenizer.prompt_format.is_answer_apart:
            return
        after = self._render(question)[1]
        ends = [after.rfind(token) + len(token) for token in self.tokenizer.control_tokens if token in after]
        self._tail = after[max(ends, default=0) :]

    def _check_tiles(self, image_text: str) -> None:
        missing = {name for name in _TILE_NAME.findall(image_text) if self.tokenizer.backend.token_to_id(name) is None}
        if missing:
            raise TokenizerError(
                f"{self.tokenizer.origin}: the vocabulary has no token {', '.join(sorted(missing))} for the tiles of a "
                "large image. Set model.do_image_splitting: false."
            )

    def _control_token(self, text: str) -> str | None:
        """A special token in user text: it would act in the prompt instead of being read."""
        match = self._any_control_token.search(text)
        return match[0] if match else None


def _common_prefix(sequences: Sequence[Sequence[Any]]) -> int:
    """How many leading items all sequences share."""
    shortest = min(map(len, sequences))
    first = sequences[0]
    return next((i for i in range(shortest) if any(other[i] != first[i] for other in sequences)), shortest)
