"""The HTTP application: routes, their documentation, and the page.

`create_app` is what `vlmtune serve` runs under uvicorn, and what tests call without a network.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from vlmtune import __version__
from vlmtune.serve import schema
from vlmtune.serve.endpoints import Endpoints
from vlmtune.serve.gateway import App, Gateway
from vlmtune.serve.page import page_headers, render_page
from vlmtune.serve.refusals import RefusedError
from vlmtune.serve.service import Service

_REFUSALS = {
    400: "A request that cannot be answered as it stands; `message` says why.",
    401: "No or another API key.",
    404: "Another model's name.",
    408: "The body took too long to arrive.",
    413: "A body or an image beyond the limits.",
    415: "Not JSON or a form, or a file that is no image.",
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
        examples: data URIs of images to try on the page.
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
            "task": tasks.section.type,
        }
        return _json({"object": "list", "data": [card]})

    @app.post(
        "/v1/classify",
        response_model=schema.ClassifyAnswer,
        responses=_ASKING,
        openapi_extra=_classify_body(),
        tags=["model"],
    )
    async def classify() -> None:
        """Exact probabilities of a closed set of labels for one image."""

    @app.post(
        "/v1/chat/completions",
        response_model=schema.ChatAnswer,
        responses=_ASKING,
        openapi_extra=_json_body(schema.ChatRequest),
        tags=["model"],
    )
    async def chat() -> None:
        """OpenAI's chat format; with `stream: true` server-sent events."""

    app.add_exception_handler(HTTPException, _on_http_exception)
    # FastAPI documents the two working paths, but the gateway answers them itself: FastAPI's layers take more time than
    # an image in a full batch does (bench/README.md).
    endpoints = Endpoints(service)
    work = {"/v1/classify": endpoints.classify, "/v1/chat/completions": endpoints.chat}
    return Gateway(cast(App, app), work, service.settings, service.metrics)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, "application/json")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    is_unknown = error.status_code == 404
    message = f"No such path: {request.url.path[:80]}. See /docs." if is_unknown else str(error.detail)
    refusal = RefusedError(error.status_code, "not_found" if is_unknown else "http_error", message)
    return _json(refusal.body(), error.status_code, dict(error.headers or {}))


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
