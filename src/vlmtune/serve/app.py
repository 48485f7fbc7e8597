"""The HTTP application: the route table and what surrounds it.

`create_app` is what `vlmtune serve` runs under uvicorn, and what tests call without a network. A request passes
`limits.Limits`, Starlette's router, one method of `endpoints.Endpoints`, and `Service`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from vlmtune.serve import schema
from vlmtune.serve.endpoints import Endpoints
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.limits import Limits
from vlmtune.serve.openapi import ERRORS, FORM, JSON, Handler, Operation, openapi_document, render_docs
from vlmtune.serve.page import page_headers, render_page
from vlmtune.serve.service import Service


def create_app(service: Service, examples: Sequence[str] = ()) -> Starlette:
    """The whole server as an ASGI application.

    Args:
        service: started with the application and stopped with it.
        examples: data URIs of images to try on the page.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    operations = _operations(Endpoints(service))
    document = openapi_document(operations)
    pages = {
        "/": _page(render_page(service, examples)),
        "/docs": _page(render_docs(document)),
        "/openapi.json": _fixed(Response(orjson.dumps(document), media_type=JSON)),
    }
    routes = [Route(operation.path, operation, methods=[operation.method]) for operation in operations]
    routes += [Route(path, handler) for path, handler in pages.items()]
    limits = Middleware(
        Limits,
        settings=service.settings,
        metrics=service.metrics,
        paths=frozenset(route.path for route in routes),
        work=frozenset(operation.path for operation in operations if operation.bodies),
    )
    return Starlette(
        routes=routes, middleware=[limits], exception_handlers={HTTPException: _on_http_exception}, lifespan=lifespan
    )


def _operations(endpoints: Endpoints) -> tuple[Operation, ...]:
    """The route table, with its documentation."""
    text = {"text/plain": None}
    return (
        Operation(
            "POST",
            "/v1/classify",
            endpoints.classify,
            {JSON: schema.ClassifyAnswer},
            bodies={JSON: schema.ClassifyRequest, FORM: schema.ClassifyForm},
            errors=tuple(ERRORS),
        ),
        Operation(
            "POST",
            "/v1/chat/completions",
            endpoints.chat,
            {JSON: schema.ChatAnswer, "text/event-stream": None},
            bodies={JSON: schema.ChatRequest},
            errors=tuple(ERRORS),
        ),
        Operation("GET", "/v1/models", endpoints.models, {JSON: schema.ModelList}, errors=(401,)),
        Operation("GET", "/healthz", endpoints.health, {JSON: schema.Health}, errors=(503,)),
        Operation("GET", "/metrics", endpoints.metrics, text, errors=(401,)),
    )


def _page(html: str) -> Handler:
    return _fixed(HTMLResponse(html, headers=page_headers(html)))


def _fixed(response: Response) -> Handler:
    """A handler that always gives the same response."""

    async def handler(request: Request) -> Response:
        return response

    return handler


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals (no such path, another method) in the envelope of the others."""
    assert isinstance(error, HTTPException)
    is_unknown = error.status_code == 404
    message = f"No such path: {request.url.path[:80]}. See /docs." if is_unknown else str(error.detail)
    refusal = RefusedError(error.status_code, "not_found" if is_unknown else "http_error", message)
    return Response(orjson.dumps(refusal.body()), error.status_code, dict(error.headers or {}), JSON)
