"""The API's description: the OpenAPI document and the page at `/docs`.

In: the route table. Out: both are made from it and from the models of `schema.py`; nothing is declared twice.
Called by `app.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import getdoc
from pathlib import Path
from typing import Any, Literal

import jinja2
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlmtune import __version__
from vlmtune.serve import schema

Handler = Callable[[Request], Awaitable[Response]]

JSON, FORM = "application/json", "multipart/form-data"
ERRORS: Mapping[int, str] = {
    400: "A request that cannot be answered as it stands; `message` says why.",
    401: "A missing or wrong API key.",
    404: "The name of another model.",
    408: "The body took too long to arrive.",
    413: "A body or an image beyond the limits.",
    415: "Neither JSON nor a form, or a file that is not an image.",
    429: "As many requests as the server may hold; see `Retry-After`.",
    500: "A fault of the server.",
    503: "The server is stopping.",
    504: "Not answered in time.",
}
_REFERENCE = "#/components/schemas/"
_IMAGE_TYPES = "image/png, image/jpeg, image/webp, image/gif, image/bmp, image/avif"


@dataclass(frozen=True)
class Operation:
    """One documented route: what the router runs, and what the document says about it.

    Attributes:
        handler: the first line of its docstring is the summary.
        answers: media type -> model of the answer; None for text.
        bodies: media type -> model of the request's body, for routes that ask the model.
        errors: the possible statuses besides 200.
    """

    method: str
    path: str
    handler: Handler
    answers: Mapping[str, type[BaseModel] | None]
    bodies: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    errors: Sequence[int] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as an ASGI application: Starlette's wrapper around a function costs more than the routing."""
        response = await self.handler(Request(scope, receive, send))
        await response(scope, receive, send)


def openapi_document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes."""
    models: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    for operation in operations:
        models += [(model, "validation") for model in operation.bodies.values()]
        models += [(model, "serialization") for model in operation.answers.values() if model is not None]
    models.append((schema.ErrorAnswer, "serialization"))
    _, definitions = models_json_schema(models, ref_template=_REFERENCE + "{model}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, definitions["$defs"])
    summary = "A vision-language model of your own, over HTTP."
    return {
        "openapi": "3.1.0",
        "info": {"title": "vlmtune", "version": __version__, "summary": summary},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _describe(operation: Operation, schemas: Mapping[str, Any]) -> dict[str, Any]:
    answer = {"description": "Success", "content": {kind: _content(m) for kind, m in operation.answers.items()}}
    refused = {JSON: _content(schema.ErrorAnswer)}
    described: dict[str, Any] = {
        "summary": (getdoc(operation.handler) or "").partition("\n")[0],
        "responses": {"200": answer}
        | {str(status): {"description": ERRORS[status], "content": refused} for status in operation.errors},
    }
    if operation.bodies:
        content = {kind: _content(model) for kind, model in operation.bodies.items()}
        described["requestBody"] = {"required": True, "content": content}
        if FORM in content:
            properties = schemas[operation.bodies[FORM].__name__]["properties"]
            files = [name for name, value in properties.items() if value.get("format") == "binary"]
            content[FORM]["encoding"] = {name: {"contentType": _IMAGE_TYPES} for name in files}
    return described


def _content(model: type[BaseModel] | None) -> dict[str, Any]:
    return {"schema": {"type": "string"} if model is None else {"$ref": _REFERENCE + model.__name__}}


def render_docs(document: Mapping[str, Any]) -> str:
    """The page at `/docs`: the document as one HTML file without scripts."""
    template = Path(__file__).with_name("docs.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["type_of"] = _type_of
    return environment.from_string(template).render(document=document)


def _type_of(value: Mapping[str, Any]) -> str:
    """A short form of a JSON schema: `array of Message`, `"low" | "high" | null`."""
    if "$ref" in value:
        return str(value["$ref"]).removeprefix(_REFERENCE)
    if choices := value.get("anyOf", value.get("oneOf")):
        return " | ".join(_type_of(choice) for choice in choices)
    if "const" in value or "enum" in value:
        return " | ".join(f'"{choice}"' for choice in value.get("enum", [value.get("const")]))
    kind = str(value.get("type", "any"))
    return f"array of {_type_of(value['items'])}" if kind == "array" and "items" in value else kind
