"""`choices` and JSON schemas whose only freedom is an enum: a closed set of answers for the label scorer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmtune.serve.errors import RefusedError
from vlmtune.serve.schema import ChatRequest, SchemaFormat

_NOTES = {"$schema", "$defs", "$id", "title", "description", "default", "examples", "type", "additionalProperties"}


@dataclass(frozen=True)
class ClosedAnswer:
    """The possible answers, and how the chosen one is written.

    Attributes:
        answers: as the model is scored on them.
        values: the same as JSON values; None for plain text.
        key: the property that holds the answer, where it is an object.
    """

    answers: tuple[str, ...]
    values: tuple[Any, ...] | None = None
    key: str | None = None

    def write(self, answer: str) -> str:
        """The content of the assistant's message."""
        if self.values is None:
            return answer
        value = self.values[self.answers.index(answer)]
        return json.dumps(value if self.key is None else {self.key: value}, ensure_ascii=False)


def closed_answer(request: ChatRequest) -> ClosedAnswer | None:
    """The closed set a request asks for; None for free text. Raises RefusedError for any other schema."""
    if request.choices is not None:
        if isinstance(request.response_format, SchemaFormat):
            raise RefusedError(400, "two_closed_sets", "Give `choices` or a JSON schema, not both.", param="choices")
        return ClosedAnswer(tuple(check_labels(request.choices, "choices")))
    if not isinstance(request.response_format, SchemaFormat):
        return None
    schema = _resolved(request.response_format.json_schema.schema_, {})
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties")
        if (
            not isinstance(properties, dict)
            or len(properties) != 1
            or schema.keys() - _NOTES - {"properties", "required"}
        ):
            raise _unsupported("an object needs exactly one property")
        key, inner = next(iter(properties.items()))
        if not isinstance(inner, dict):
            raise _unsupported(f"property '{key}' is no schema")
        return _from_enum(_resolved(inner, request.response_format.json_schema.schema_.get("$defs")), key)
    return _from_enum(schema, None)


def check_labels(labels: Sequence[str], param: str) -> Sequence[str]:
    """Refuse a closed set in which two answers are the same."""
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1) if isinstance(labels, list) else "one"
        raise RefusedError(400, "duplicate_label", f"{param}: '{twice}' appears twice.", param=param)
    return labels


def _from_enum(schema: dict[str, Any], key: str | None) -> ClosedAnswer:
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if not isinstance(values, list) or not values or schema.keys() - _NOTES - {"enum", "const"}:
        raise _unsupported("found no enum, or something beside it")
    answers = []
    for value in values:
        if isinstance(value, str) and value.strip():
            answers.append(value)
        elif isinstance(value, bool):
            answers.append("yes" if value else "no")
        elif isinstance(value, int | float):
            answers.append(str(value))
        else:
            raise _unsupported(f"{json.dumps(value)[:40]} in an enum; text, numbers and booleans can be answers")
    return ClosedAnswer(tuple(check_labels(answers, "response_format")), tuple(values), key)


def _resolved(schema: dict[str, Any], definitions: Any) -> dict[str, Any]:
    """A schema, or the one its `$ref` names: pydantic writes enums so."""
    reference = schema.get("$ref")
    if reference is None:
        return schema
    name = str(reference).removeprefix("#/$defs/")
    definition = definitions.get(name) if isinstance(definitions, dict) else None
    if not isinstance(definition, dict) or "$ref" in definition:
        raise _unsupported(f"'{reference}' names nothing in $defs")
    return definition


def _unsupported(reason: str) -> RefusedError:
    return RefusedError(
        400,
        "unsupported_schema",
        f"response_format: {reason}. Supported: {{'enum': [...]}}, or an object with one property that is one.",
        param="response_format",
    )
