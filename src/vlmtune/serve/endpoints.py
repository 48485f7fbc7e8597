"""The two paths that ask the model: a request's body becomes a response.

`gateway.py` calls them with bodies that are whole and within their limits; a `RefusedError` becomes its answer there.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive

from vlmtune.serve.chat import Chat
from vlmtune.serve.closed_answers import check_labels
from vlmtune.serve.forms import read_form
from vlmtune.serve.images import check_media_type
from vlmtune.serve.refusals import RefusedError
from vlmtune.serve.schema import ChatRequest, ClassifyOptions, ClassifyRequest
from vlmtune.serve.service import Service, refusal_for
from vlmtune.serve.tasks import ServedTask

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Call:
    """A request that passed the gateway.

    Attributes:
        content_type: as sent; empty without one.
        body: all of it.
        receive: tells when the client has gone.
    """

    content_type: str
    body: bytes
    receive: Receive

    @property
    def media_type(self) -> str:
        """The content type without parameters."""
        return self.content_type.partition(";")[0].strip().lower()


class Endpoints:
    """Answers calls by asking the service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def classify(self, call: Call) -> Response:
        """`POST /v1/classify`."""
        service = self._service
        if call.media_type == "multipart/form-data":
            image, options = _read_form(call)
        else:
            asked = _read_json(call, ClassifyRequest)
            image, options = await service.read_image(asked.image, "image"), asked
        labels, question, tasks = options.labels, options.question, service.tasks
        self._check_model(options.model)
        self._check_text((labels or []) + ([question] if question else []), labels)

        def find_task() -> ServedTask:
            task = tasks.classification(labels)
            return task if question is None else tasks.closed_question(task.labels or (), None)

        task, log_probs, _ = await service.score(image, find_task, question)
        assert task.labels is not None
        ranked = sorted(zip(map(math.exp, log_probs), task.labels, strict=True), key=lambda pair: -pair[0])
        probability, label = ranked[0]
        has_abstained = options.abstain_below is not None and probability < options.abstain_below
        answer = {
            "model": service.name,
            "label": None if has_abstained else label,
            "probability": probability,
            "probabilities": [{"label": name, "probability": value} for value, name in ranked[: options.top_k]],
        }
        return Response(orjson.dumps(answer), media_type="application/json")

    async def chat(self, call: Call) -> Response:
        """`POST /v1/chat/completions`."""
        asked = _read_json(call, ChatRequest)
        self._check_model(asked.model)
        contents = [[m.content] if isinstance(m.content, str) else m.content for m in asked.messages]
        texts = [part if isinstance(part, str) else getattr(part, "text", "") for parts in contents for part in parts]
        self._check_text(texts + (asked.choices or []), asked.choices)
        conversation = Chat(self._service, asked)
        if asked.stream:
            return await _stream(conversation.chunks())
        gone = asyncio.ensure_future(call.receive())
        try:
            return Response(await conversation.whole(gone.done), media_type="application/json")
        finally:
            gone.cancel()

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._service.name:
            raise RefusedError(
                404,
                "model_not_found",
                f"Found model '{name[:80]}'; this server has '{self._service.name}'.",
                param="model",
            )

    def _check_text(self, texts: list[str], labels: list[str] | None) -> None:
        """Bound the text and the number of labels, before a tokenizer sees them."""
        limits, total = self._service.settings, sum(map(len, texts))
        if total > limits.max_text_chars:
            raise RefusedError(400, "text_too_long", f"{total:,} characters; up to {limits.max_text_chars:,} go.")
        if labels is not None:
            if len(labels) > limits.max_labels:
                raise RefusedError(400, "too_many_labels", f"{len(labels):,} labels; up to {limits.max_labels:,} go.")
            check_labels(labels, "labels")


def _read_form(call: Call) -> tuple[bytes, ClassifyOptions]:
    """The image and options of a form. Labels are a repeated field, or one with commas."""
    form = read_form(call.content_type, call.body, "image")
    if form.file is None:
        raise RefusedError(400, "no_image", "The form has no file in the field 'image'.", param="image")
    check_media_type(form.media_type, "image")
    values: dict[str, Any] = {}
    for name, value in form.fields:
        if name == "labels":
            values.setdefault(name, []).append(value)
        elif name in values:
            raise RefusedError(400, "invalid_form", f"The field '{name[:80]}' stands there twice.", param=name[:80])
        else:
            values[name] = value
    if len(values.get("labels", [])) == 1:
        values["labels"] = [label.strip() for label in values["labels"][0].split(",")]
    try:
        return form.file, ClassifyOptions.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from error


def _read_json(call: Call, model: type[Model]) -> Model:
    if call.media_type != "application/json":
        found = call.media_type[:80]
        raise RefusedError(415, "unsupported_media_type", f"Found '{found}', expected application/json.")
    try:
        return model.model_validate_json(call.body)
    except ValidationError as error:
        raise _explain(error) from error


def _explain(error: ValidationError) -> RefusedError:
    """Every field that is wrong, the first three in words."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    where = [".".join(map(str, fault["loc"])) or "body" for fault in faults]
    said = "; ".join(f"{place}: {fault['msg']}" for place, fault in zip(where[:3], faults, strict=False))
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return RefusedError(400, "invalid_request", said + more, param=where[0])


async def _stream(chunks: AsyncIterator[bytes]) -> Response:
    """Server-sent events. The first one is awaited, so that a refusal still has its own status."""
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
