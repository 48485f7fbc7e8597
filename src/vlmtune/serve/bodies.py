"""A request's body, checked: JSON or a form as one of the models of `schema.py`.

In: requests whose bodies are already within the limits. Out: models, or a `RefusedError` that names what is wrong.
Called by `endpoints.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vlmtune.serve.errors import RefusedError
from vlmtune.serve.images import check_media_type
from vlmtune.serve.openapi import JSON
from vlmtune.serve.schema import ClassifyForm

Model = TypeVar("Model", bound=BaseModel)

_MAX_FIELDS = 2100
_MAX_FIELD_BYTES = 64 * 1024


def media_type(request: Request) -> str:
    """The content type without its parameters; empty without one."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Model]) -> Model:
    """A JSON body as ``model``. Raises RefusedError: 415 for another content type, 400 for a body that does not fit."""
    if (content_type := media_type(request)) != JSON:
        raise RefusedError(415, "unsupported_media_type", f"Found '{content_type[:80]}', expected {JSON}.")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise _explain(error) from error


class _FormParser(MultiPartParser):
    """Starlette's parser, but no file reaches the disk, text must be UTF-8, and the last boundary must be there."""

    spool_max_size = 2**63  # the limits' middleware has bounded the whole body already
    is_complete = False

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode()
            except UnicodeDecodeError as error:
                raise MultiPartException(f"The field '{self._current_part.field_name[:80]}' is not UTF-8.") from error
        super().on_part_end()

    def on_end(self) -> None:
        self.is_complete = True


async def read_form(request: Request) -> ClassifyForm:
    """An image with options. Labels: a repeated or comma-separated field. Raises RefusedError (400, 415)."""
    parser = _FormParser(
        request.headers,
        _once(await request.body()),
        max_files=1,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _bad_form(error.message) from error
    if not parser.is_complete:
        raise _bad_form("It ends before its last boundary.")
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in values and name != "labels":
            raise _bad_form(f"The field '{name[:80]}' appears twice.", param=name[:80])
        if isinstance(value, UploadFile):
            if name != "image":
                raise _bad_form(f"There is a file in '{name[:80]}'; expected one, in 'image'.")
            check_media_type(value.content_type, name)
            values[name] = value.file.read()  # in memory: it does not block
            value.file.close()
        elif name == "labels":
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    if not isinstance(values.get("image"), bytes):
        raise RefusedError(400, "no_image", "The form has no file in the field 'image'.", param="image")
    if len(values.get("labels", [])) == 1:
        values["labels"] = [label.strip() for label in values["labels"][0].split(",")]
    try:
        return ClassifyForm.model_validate(values)
    except ValidationError as error:
        raise _explain(error) from error


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _bad_form(reason: str, param: str | None = None) -> RefusedError:
    return RefusedError(400, "invalid_form", f"The form cannot be read. {reason}", param=param)


def _explain(error: ValidationError) -> RefusedError:
    """A message about wrong fields, the first three in detail."""
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    where = [".".join(map(str, fault["loc"])) or "body" for fault in faults]
    reasons = "; ".join(f"{field}: {fault['msg']}" for field, fault in zip(where[:3], faults, strict=False))
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return RefusedError(400, "invalid_request", reasons + more, param=where[0])
