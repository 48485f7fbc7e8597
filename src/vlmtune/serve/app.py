"""The HTTP application: routes, their documentation, and the page.

`create_app` is what `vlmtune serve` runs under uvicorn, and what tests call without a network.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from vlmtune import __version__
from vlmtune.serve import schema
from vlmtune.serve.chat import Chat
from vlmtune.serve.closed_answers import check_labels
from vlmtune.serve.gateway import App, Gateway
from vlmtune.serve.page import page_headers, render_page
from vlmtune.serve.pictures import check_media_type
from vlmtune.serve.refusals import RefusedError
from vlmtune.serve.service import Service, refusal_for

Model = TypeVar("Model", bound=BaseModel)

_REFUSALS = {
    400: "A request that cannot be answered as it stands; `message` says why.",
    401: "No or another API key.",
    404: "Another model's name.",
    408: "The body took too long to arrive.",
    413: "A body or a picture beyond the limits.",
    415: "Not JSON or a form, or a file that is no picture.",
    429: "As many requests as the server may hold; see `Retry-After`.",
    500: "A fault of the server.",
    503: "The server is stopping.",
    504: "Not answered in time.",
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": schema.ErrorAnswer, "description": _REFUSALS[status]} for status in statuses}


_ASKING = _refusals(*_REFUSALS)


def create_app(service: Service, examples: Sequence[str] = ()) -> App:
    """The whole server as an ASGI application.

    Args:
        service: started with the application and stopped with it.
        examples: data URIs of pictures to try on the page.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="vlmtune",
        version=__version__,
        summary="A vision-language model of your own, over HTTP.",
        lifespan=lifespan,
        redoc_url=None,
    )
    page = render_page(service, examples)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers=page_headers(page))

    @app.get("/healthz", response_model=schema.Health, responses=_refusals(503), tags=["server"])
    async def health() -> Response:
        """Whether the server takes requests."""
        status = "stopping" if service.is_stopping else "ok"
        return _json({"status": status, "model": service.name}, 503 if service.is_stopping else 200)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_refusals(401)},
        tags=["server"],
    )
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(service.metrics.render(), media_type=service.metrics.content_type)

    created = int(time.time())

    @app.get("/v1/models", response_model=schema.ModelList, responses=_refusals(401), tags=["model"])
    async def models() -> Response:
        """The one model there is."""
        tasks = service.tasks
        card = {
            "id": service.name,
            "object": "model",
            "created": created,
            "owned_by": "vlmtune",
            "labels": tasks.labels,
            "task": tasks.section.kind,
        }
        return _json({"object": "list", "data": [card]})

    @app.post(
        "/v1/classify",
        response_model=schema.ClassifyAnswer,
        responses=_ASKING,
        openapi_extra=_classify_body(),
        tags=["model"],
    )
    async def classify(request: Request) -> Response:
        """Exact probabilities of a closed set of labels for one picture."""
        return _json(await _classify(service, request))

    @app.post(
        "/v1/chat/completions",
        response_model=schema.ChatAnswer,
        responses=_ASKING,
        openapi_extra=_json_body(schema.ChatRequest),
        tags=["model"],
    )
    async def chat(request: Request) -> Response:
        """OpenAI's chat format; with `stream: true` server-sent events."""
        asked = await _read_json(request, schema.ChatRequest)
        _check_model(service, asked.model)
        _check_text(service, asked.messages, asked.choices)
        conversation = Chat(service, asked)
        if not asked.stream:
            return Response(await conversation.whole(request.is_disconnected), media_type="application/json")
        return await _stream(conversation.chunks())

    app.add_exception_handler(RefusedError, _on_refusal)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_fault)
    return cast(App, Gateway(app, service.settings, service.metrics))


async def _classify(service: Service, request: Request) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        picture, options = await _read_form(request)
    else:
        asked = await _read_json(request, schema.ClassifyRequest)
        picture, options = await service.read_image(asked.image, "image"), asked
    if options.model is not None:
        _check_model(service, options.model)
    labels, question = options.labels, options.question
    if labels is not None:
        check_labels(labels, "labels")
    _check_text(service, [], [*(labels or []), question or ""])
    tasks = service.tasks

    def find() -> Any:
        if question is None:
            return tasks.classification(labels)
        return tasks.closed_question(tasks.classification(labels).labels or (), None)

    task, log_probs, _ = await service.score(picture, find, question)
    assert task.labels is not None
    ranked = sorted(zip(map(math.exp, log_probs), task.labels, strict=True), key=lambda pair: -pair[0])
    probability, label = ranked[0]
    has_abstained = options.abstain_below is not None and probability < options.abstain_below
    return {
        "model": service.name,
        "label": None if has_abstained else label,
        "probability": probability,
        "probabilities": [{"label": name, "probability": value} for value, name in ranked[: options.top_k]],
    }


async def _read_form(request: Request) -> tuple[bytes, schema.ClassifyOptions]:
    """The picture and options of a form. Labels are a repeated field, or one with commas."""
    try:
        async with request.form(max_files=1, max_fields=2100, max_part_size=64 * 1024) as form:
            picture = form.get("image")
            if not isinstance(picture, UploadFile):
                raise RefusedError(400, "no_image", "The form has no file in the field 'image'.", param="image")
            check_media_type(picture.content_type, "image")
            values = _fields(form)
            return await picture.read(), _validated(schema.ClassifyOptions, values)
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", "")
        raise RefusedError(400, "invalid_form", f"The form cannot be read ({reason}).") from error


def _fields(form: FormData) -> dict[str, Any]:
    """The fields that are no files."""
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "image":
                raise RefusedError(400, "invalid_form", f"The file stands in '{name}'; expected 'image'.", param=name)
        elif name == "labels":
            values.setdefault(name, []).append(value)
        elif name in values:
            raise RefusedError(400, "invalid_form", f"The field '{name}' stands there twice.", param=name)
        else:
            values[name] = value
    if len(values.get("labels", [])) == 1:
        values["labels"] = [label.strip() for label in values["labels"][0].split(",")]
    return values


async def _read_json(request: Request, model: type[Model]) -> Model:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(
            415, "unsupported_media_type", f"Found content type '{kind[:80]}', expected application/json."
        )
    body = await request.body()
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from error


def _validated(model: type[Model], values: dict[str, Any]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from error


def _explain(error: ValidationError) -> RefusedError:
    """Every field that is wrong, the first three in words."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    where = [".".join(map(str, fault["loc"])) or "body" for fault in faults]
    said = "; ".join(f"{place}: {fault['msg']}" for place, fault in zip(where[:3], faults, strict=False))
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return RefusedError(400, "invalid_request", said + more, param=where[0])


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        raise RefusedError(
            404, "model_not_found", f"Found model '{name[:80]}'; this server has '{service.name}'.", param="model"
        )


def _check_text(service: Service, messages: list[Any], texts: list[str] | None) -> None:
    """Bound the text and the number of labels, before a tokenizer sees them."""
    total = sum(map(len, texts or ()))
    for message in messages:
        parts = [message.content] if isinstance(message.content, str) else message.content
        total += sum(len(part if isinstance(part, str) else getattr(part, "text", "")) for part in parts)
    limits = service.settings
    if total > limits.max_text_chars:
        raise RefusedError(400, "text_too_long", f"{total:,} characters of text; up to {limits.max_text_chars:,} go.")
    if texts is not None and len(texts) > limits.max_labels + 1:
        raise RefusedError(400, "too_many_labels", f"{len(texts):,} labels; up to {limits.max_labels:,} go.")


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


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return _json(error.body(), error.status, error.headers())


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    is_unknown = error.status_code == 404
    message = f"No such path: {request.url.path[:80]}. See /docs." if is_unknown else str(error.detail)
    refusal = RefusedError(error.status_code, "not_found" if is_unknown else "http_error", message)
    return _json(refusal.body(), error.status_code, dict(error.headers or {}))


async def _on_fault(_: Request, error: Exception) -> Response:
    """Logged with its traceback by Starlette; told to the client without."""
    return _json(
        RefusedError(500, "internal_error", "The server failed at this request. Its log says why.").body(), 500
    )


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _inlined(model)}}}}


def _classify_body() -> dict[str, Any]:
    form = _inlined(schema.ClassifyOptions)
    form["properties"] = {"image": {"type": "string", "format": "binary"}, **form["properties"]}
    form["required"] = ["image"]
    body = _json_body(schema.ClassifyRequest)
    body["requestBody"]["content"]["multipart/form-data"] = {
        "schema": form,
        "encoding": {"image": {"contentType": "image/png, image/jpeg, image/webp, image/gif, image/bmp, image/avif"}},
    }
    return body


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """A JSON schema without references, as a place in the OpenAPI page that has no definitions of its own needs it."""
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})

    def expand(node: Any) -> Any:
        if isinstance(node, list):
            return [expand(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return expand(definitions[node["$ref"].rpartition("/")[2]])
        # A discriminator's mapping would point at definitions that are not there.
        return {key: expand(value) for key, value in node.items() if key != "discriminator"}

    return cast(dict[str, Any], expand(whole))
