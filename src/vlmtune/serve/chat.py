"""OpenAI's chat format: a request becomes a question to the model, its result an answer or a stream of chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from vlmtune.inference.generation import Sampling
from vlmtune.models.images import ProcessedImage
from vlmtune.serve.batching import Token
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.prompts import PromptState, TaskPrompt
from vlmtune.serve.response_format import ClosedAnswer, closed_answer
from vlmtune.serve.schema import ChatRequest, ImagePart, Message
from vlmtune.serve.service import Service
from vlmtune.serve.text_stream import TextStream

_DEFAULT_MAX_TOKENS = 128
# Smaller temperatures only overflow: the likeliest token has all the probability.
_GREEDY_BELOW = 1e-3


@dataclass(frozen=True)
class Turns:
    """The parts of a conversation.

    Attributes:
        system: all system messages together; None without any.
        question: the text of the one user message, None if the conversation is not a single question.
        urls: where the images are, in order.
        messages: in the chat template's format.
    """

    system: str | None
    question: str | None
    urls: list[str]
    messages: list[dict[str, Any]]

    @property
    def is_bare_image(self) -> bool:
        """Whether the user sent one image and no text, which a classifier answers with a label."""
        return self.question == "" and len(self.urls) == 1


def read_turns(messages: Sequence[Message]) -> Turns:
    """Split a conversation into its parts."""
    system: list[str] = []
    urls: list[str] = []
    plain: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message.content, str):
            parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}]
        else:
            parts = []
            for part in message.content:
                if isinstance(part, ImagePart):
                    urls.append(part.image_url.url)
                    parts.append({"type": "image"})
                else:
                    parts.append({"type": "text", "text": part.text})
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        if message.role in ("system", "developer"):
            system.append(text)
            continue
        plain.append({"role": message.role, "content": parts if message.role == "user" else text})
    if plain and plain[-1]["role"] == "assistant":
        raise RefusedError(400, "nothing_to_answer", "The last message is the assistant's own.", param="messages")
    is_single = len(plain) == 1
    question = None
    if is_single:
        question = "\n".join(part["text"] for part in plain[0]["content"] if part["type"] == "text").strip()
    together = "\n".join(system) if system else None
    turns = ([{"role": "system", "content": together}] if together else []) + plain
    return Turns(together, question, urls, turns)


class Chat:
    """One chat request. Create it, then await `whole` or iterate over `chunks`."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        self._service, self._request = service, request
        self._turns = read_turns(request.messages)
        self._closed = closed_answer(request)
        labels = service.prompts.labels
        if self._closed is None and labels is not None and self._turns.is_bare_image:
            self._closed = ClosedAnswer(labels)
        if len(self._turns.urls) > service.settings.max_images:
            raise RefusedError(
                400,
                "too_many_images",
                f"{len(self._turns.urls)} images; this server takes up to {service.settings.max_images} a request.",
                param="messages",
            )
        if not self._turns.messages:
            raise RefusedError(400, "nothing_to_answer", "There is no user message.", param="messages")
        if self._closed is not None and (self._turns.question is None or len(self._turns.urls) != 1):
            raise RefusedError(
                400,
                "not_a_single_question",
                "A closed set of answers needs exactly one user message with one image.",
                param="messages",
            )
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.name}

    async def whole(self, is_gone: Callable[[], bool]) -> bytes:
        """The whole answer as JSON. ``is_gone``: whether the client has disconnected, which stops the work."""
        text, finish = "", "stop"
        entries: list[dict[str, Any]] = []
        usage: dict[str, int] = {}
        async for piece in self._pieces():
            text += piece.text
            entries += piece.logprobs
            finish, usage = piece.finish or finish, piece.usage or usage
            if is_gone():
                break
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {"content": entries, "refusal": None} if self._request.logprobs else None,
            "finish_reason": finish,
        }
        return orjson.dumps({**self._head, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        is_first = True
        wants_usage = self._request.stream_options is not None and self._request.stream_options.include_usage
        usage: dict[str, int] = {}
        async for piece in self._pieces():
            delta: dict[str, Any] = {"role": "assistant"} if is_first else {}
            if piece.text or is_first:
                delta["content"] = piece.text
            usage = piece.usage or usage
            if not delta and not piece.finish and not piece.logprobs:
                continue
            is_first = False
            logprobs = {"content": piece.logprobs, "refusal": None} if self._request.logprobs else None
            choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": piece.finish}
            yield self._event(choices=[choice])
        if wants_usage:
            yield self._event(choices=[], usage=usage)
        yield b"data: [DONE]\n\n"

    def _event(self, **fields: Any) -> bytes:
        return b"data: " + orjson.dumps({**self._head, "object": "chat.completion.chunk", **fields}) + b"\n\n"

    async def _pieces(self) -> AsyncIterator[_Piece]:
        images = [
            await self._service.read_image(url, f"image {number}") for number, url in enumerate(self._turns.urls, 1)
        ]
        if self._closed is not None:
            yield await self._choose(images[0], self._closed)
        else:
            async for piece in self._write(images):
                yield piece

    async def _choose(self, image: bytes, closed: ClosedAnswer) -> _Piece:
        """The likeliest answer of a closed set, scored like a label."""
        prompts, turns = self._service.prompts, self._turns
        question = turns.question or None

        def find_prompt() -> TaskPrompt:
            find = prompts.classification if question is None else prompts.closed_question
            return find(closed.answers, turns.system)

        scores = await self._service.score(image, find_prompt, question)
        ranked = sorted(zip(scores.labels, scores.log_probs, strict=True), key=lambda pair: -pair[1])
        entries = []
        if self._request.logprobs:
            top = [_entry(label, log_prob) for label, log_prob in ranked[: self._request.top_logprobs or 0]]
            entries = [{**_entry(*ranked[0]), "top_logprobs": top}]
        return _Piece(closed.write(ranked[0][0]), entries, "stop", _usage(scores.num_prompt_tokens, 1))

    async def _write(self, images: Sequence[bytes]) -> AsyncIterator[_Piece]:
        """Generate free text, a token at a time."""
        request, tokenizer = self._request, self._service.opened.tokenizer
        stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
        stream = TextStream(tokenizer, stops)
        num_tokens = 0
        tokens = self._service.answer(
            images,
            self._prompt,
            self._sampling(),
            (request.top_logprobs or 0) if request.logprobs else None,
        )
        try:
            async for token in tokens:
                num_tokens += 1
                is_end = token.id == tokenizer.end_id
                text = "" if is_end else stream.push(token.id)
                entries = [self._token_entry(token)] if request.logprobs and not is_end else []
                if token.is_last or stream.is_stopped:
                    finish = "stop" if is_end or stream.is_stopped else "length"
                    usage = _usage(token.num_prompt_tokens, num_tokens)
                    yield _Piece(text + stream.finish(), entries, finish, usage)
                    return
                yield _Piece(text, entries)
        finally:
            await tokens.aclose()  # type: ignore[attr-defined]  # an async generator, although its type does not say so

    def _prompt(self, images: list[ProcessedImage]) -> tuple[PromptState, list[int]]:
        turns = self._turns
        if turns.question is not None and len(images) == 1:
            prompt = self._service.prompts.open_question(turns.system)
            if turns.is_bare_image and prompt.asks_question:
                raise RefusedError(
                    400,
                    "no_question",
                    "Found an image without text, but this model has no labels of its own. Write a question beside the "
                    "image, or give the answers there are as `choices`.",
                    param="messages",
                )
            return prompt, prompt.tokens(images[0], turns.question or None)
        conversation = self._service.prompts.conversation
        return conversation, conversation.tokens(turns.messages, images)

    def _sampling(self) -> Sampling:
        request, settings = self._request, self._service.settings
        max_tokens = request.max_completion_tokens or request.max_tokens or _DEFAULT_MAX_TOKENS
        temperature = request.temperature or 0.0
        seed = secrets.randbits(63) if request.seed is None else request.seed % 2**63
        return Sampling(
            temperature=0.0 if temperature < _GREEDY_BELOW else temperature,
            top_p=request.top_p or 1.0,
            max_new_tokens=min(max_tokens, settings.max_new_tokens),
            seed=seed,
        )

    def _token_entry(self, token: Token) -> dict[str, Any]:
        decode = self._service.opened.tokenizer.decode
        top = [_entry(decode([number]), log_prob) for number, log_prob in token.top]
        return {**_entry(decode([token.id]), token.log_prob), "top_logprobs": top}


@dataclass(frozen=True)
class _Piece:
    """A part of an answer: all of it, or what one token added."""

    text: str
    logprobs: list[dict[str, Any]]
    finish: str | None = None
    usage: dict[str, int] | None = None


def _entry(token: str, log_prob: float) -> dict[str, Any]:
    # -inf is not JSON; OpenAI writes -9999 for negligible probabilities.
    return {"token": token, "logprob": max(log_prob, -9999.0), "bytes": list(token.encode())}


def _usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }
