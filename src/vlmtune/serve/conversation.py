"""Chats beyond one image and one question: several turns, several images, or none, through the chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vlmtune.models.images import ProcessedImage
from vlmtune.models.registry import OpenedModel
from vlmtune.serve.errors import RefusedError


class ConversationTask:
    """Prompts written out as the client sent them; they share no prefix that is known beforehand."""

    def __init__(self, opened: OpenedModel) -> None:
        self.prefix: list[int] = []
        self.scorer = None
        self.num_label_rows = 0
        self._tokenizer = opened.tokenizer
        self._control_token = re.compile("|".join(map(re.escape, sorted(opened.tokenizer.control_tokens))))

    def prefix_cache(self) -> None:
        return None

    def tokens(self, messages: Sequence[dict[str, Any]], images: Sequence[ProcessedImage]) -> list[int]:
        """The whole prompt.

        Args:
            messages: {"role", "content"} with content as text or a list of {"type": "image"} and {"type": "text"}.
            images: prepared, in the order of the messages.

        Raises:
            RefusedError: for a special token in somebody's text. UserError: if the chat template refuses the messages.
        """
        for message in messages:
            content = message["content"]
            for text in [content] if isinstance(content, str) else [part.get("text", "") for part in content]:
                if found := self._control_token.search(text):
                    raise RefusedError(
                        400,
                        "special_token",
                        f"A message holds the special token '{found[0]}'. Write it in another way.",
                        param="messages",
                    )
        rendered = self._tokenizer.render(messages, add_generation_prompt=True)
        parts = rendered.split(self._tokenizer.image_token)
        if len(parts) != len(images) + 1:
            raise RefusedError(
                400,
                "too_many_images",
                f"This model's chat template has room for {len(parts) - 1} images, but {len(images)} were sent.",
                param="messages",
            )
        text = parts[0] + "".join(p.text + after for p, after in zip(images, parts[1:], strict=True))
        return self._tokenizer.encode(text)
