"""One method a route: a request becomes a response.

The limits' middleware lets requests in whose bodies are whole and within bounds, and turns a `RefusedError` that a
method raises into its answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from vlmtune.serve.bodies import media_type, read_form, read_json
from vlmtune.serve.chat import Chat
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.openapi import FORM, JSON
from vlmtune.serve.prompts import TaskPrompt
from vlmtune.serve.response_format import check_labels
from vlmtune.serve.schema import ChatRequest, ClassifyForm, ClassifyRequest
from vlmtune.serve.service import Service, refusal_for


class Endpoints:
    """Answers requests by asking the service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._created = int(time.time())

    async def classify(self, request: Request) -> Response:
        """Exact probabilities of a closed set of labels for one image."""
        service = self._service
        options: ClassifyForm | ClassifyRequest
        if media_type(request) == FORM:
            options = await read_form(request)
            image = options.image
        else:
            options = await read_json(request, ClassifyRequest)
            image = await service.read_image(options.image, "image")
        labels, question, prompts = options.labels, options.question, service.prompts
        self._check_model(options.model)
        self._check_text((labels or []) + ([question] if question else []), labels)

        def find_prompt() -> TaskPrompt:
            prompt = prompts.classification(labels)
            return prompt if question is None else prompts.closed_question(prompt.labels or (), None)

        scores = await service.score(image, find_prompt, question)
        ranked = sorted(zip(map(math.exp, scores.log_probs), scores.labels, strict=True), key=lambda pair: -pair[0])
        probability, label = ranked[0]
        has_abstained = options.abstain_below is not None and probability < options.abstain_below
        return _json(
            {
                "model": service.name,
                "label": None if has_abstained else label,
                "probability": probability,
                "probabilities": [{"label": name, "probability": value} for value, name in ranked[: options.top_k]],
            }
        )

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat format; with `stream: true` server-sent events."""
        body = await read_json(request, ChatRequest)
        self._check_model(body.model)
        contents = [[m.content] if isinstance(m.content, str) else m.content for m in body.messages]
        texts = [part if isinstance(part, str) else getattr(part, "text", "") for parts in contents for part in parts]
        self._check_text(texts + (body.choices or []), body.choices)
        conversation = Chat(self._service, body)
        if body.stream:
            return await _stream(conversation.chunks())
        gone = asyncio.ensure_future(request.receive())
        try:
            return Response(await conversation.whole(gone.done), media_type=JSON)
        finally:
            gone.cancel()

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        prompts = self._service.prompts
        card = {
            "id": self._service.name,
            "object": "model",
            "created": self._created,
            "owned_by": "vlmtune",
            "labels": prompts.labels,
            "task": prompts.section.type,
        }
        return _json({"object": "list", "data": [card]})

    async def health(self, request: Request) -> Response:
        """Whether the server takes requests."""
        if self._service.is_stopping:
            raise RefusedError(503, "stopping", "The server is stopping.")
        return _json({"status": "ok", "model": self._service.name})

    async def metrics(self, request: Request) -> Response:
        """Counters and histograms for Prometheus."""
        metrics = self._service.metrics
        return Response(metrics.render(), media_type=metrics.content_type)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._service.name:
            raise RefusedError(
                404,
                "model_not_found",
                f"Found model '{name[:80]}'; this server has '{self._service.name}'.",
                param="model",
            )

    def _check_text(self, texts: list[str], labels: list[str] | None) -> None:
        """Limit the text and the number of labels, before a tokenizer sees them."""
        limits, total = self._service.settings, sum(map(len, texts))
        if total > limits.max_text_chars:
            raise RefusedError(400, "text_too_long", f"{total:,} characters; the limit is {limits.max_text_chars:,}.")
        if labels is not None:
            if len(labels) > limits.max_labels:
                raise RefusedError(
                    400, "too_many_labels", f"{len(labels):,} labels; the limit is {limits.max_labels:,}."
                )
            check_labels(labels, "labels")


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type=JSON)


async def _stream(chunks: AsyncIterator[bytes]) -> Response:
    """Server-sent events. The first one is awaited, so that a refusal still gets its own status."""
    first = await anext(chunks)

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        try:
            async for chunk in chunks:
                yield chunk
        except Exception as error:
            refusal = refusal_for(error)
            if not isinstance(refusal, RefusedError):
                raise
            yield b"data: " + orjson.dumps(refusal.body()) + b"\n\n"

    return StreamingResponse(all_of_them(), media_type="text/event-stream", headers={"cache-control": "no-cache"})
