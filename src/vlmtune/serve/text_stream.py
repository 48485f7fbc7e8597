"""Tokens to text as they arrive: no half characters, and nothing of a stop sequence."""

from __future__ import annotations

from collections.abc import Sequence

from vlmtune.text.tokenizer import Tokenizer

_HALF = "\ufffd"  # what a decoder writes for the first bytes of a character


class TextStream:
    """The text of one answer, a token at a time.

    Args:
        tokenizer: the model's.
        stops: texts that end the answer and are not part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._given = 0
        self.is_stopped = False

    def push(self, token: int) -> str:
        """The text that can be sent after this token."""
        self._ids.append(token)
        text = self._text()
        places = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            return self._give(text[: min(places)].rstrip())
        return self._give(text[: len(text) - self._held_back(text)])

    def finish(self) -> str:
        """The text that was held back, at the end of the answer."""
        return "" if self.is_stopped else self._give(self._text().rstrip())

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special_tokens=True).lstrip()

    def _held_back(self, text: str) -> int:
        """Trailing characters that the next tokens may change: half characters, white space, partial stops."""
        begun = (length for stop in self._stops for length in range(len(stop), 0, -1) if text.endswith(stop[:length]))
        stable = text[: len(text) - max(begun, default=0)].rstrip(_HALF).rstrip()
        return len(text) - len(stable)

    def _give(self, text: str) -> str:
        new = text[self._given :]
        self._given = max(self._given, len(text))
        return new
