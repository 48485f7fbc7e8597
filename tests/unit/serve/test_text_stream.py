"""Text that is streamed in pieces: whole characters, and nothing of a stop sequence."""

from __future__ import annotations

import pytest

from vlmtune.serve.text_stream import TextStream

pytestmark = pytest.mark.unit


class _Letters:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(ids).decode("utf-8", "replace")


def stream(text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    pieces = TextStream(_Letters(), stops)  # type: ignore[arg-type]
    given = []
    for token in text.encode():
        given.append(pieces.push(token))
        if pieces.is_stopped:
            break
    return [*given, pieces.finish()], pieces


def test_streamed_pieces_hold_whole_characters_and_are_the_whole_text() -> None:
    pieces, _ = stream(" ein grüner 漢 Baum ")
    assert "".join(pieces) == "ein grüner 漢 Baum"
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_stop_is_hidden_and_a_false_start_shown() -> None:
    pieces, stopped = stream("one END of ENDING", stops=("ENDING",))
    assert "".join(pieces) == "one END of" and stopped.is_stopped
    pieces, going = stream("one END", stops=("ENDING",))
    assert "".join(pieces) == "one END" and not going.is_stopped
