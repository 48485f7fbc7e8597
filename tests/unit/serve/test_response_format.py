"""Closed sets of answers from JSON schemas."""

from __future__ import annotations

import pytest

from vlmtune.serve.errors import RefusedError
from vlmtune.serve.response_format import closed_answer
from vlmtune.serve.schema import ChatRequest

pytestmark = pytest.mark.unit


def request(schema: object) -> ChatRequest:
    return ChatRequest.model_validate(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}},
        }
    )


def test_a_pydantic_enum_in_an_object_is_a_closed_set() -> None:
    schema = {
        "$defs": {"Color": {"enum": ["red", "blue"], "type": "string"}},
        "properties": {"color": {"$ref": "#/$defs/Color"}},
        "required": ["color"],
        "type": "object",
    }
    closed = closed_answer(request(schema))
    assert closed is not None and closed.answers == ("red", "blue")
    assert closed.write("blue") == '{"color": "blue"}'


@pytest.mark.parametrize(
    "schema",
    [
        {}, {"type": "string"}, {"enum": []}, {"enum": [None]}, {"enum": ["a"], "minLength": 3}, {"$ref": "#/$defs/x"},
        {"type": "object", "properties": {"a": {"enum": ["x"]}, "b": {"enum": ["y"]}}}, {"enum": ["a", "a"]},
        {"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "object", "properties": {"a": 1}},
    ],
)  # fmt: skip
def test_schemas_that_leave_more_open_are_refused(schema: object) -> None:
    with pytest.raises(RefusedError):
        closed_answer(request(schema))
