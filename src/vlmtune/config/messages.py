"""Messages about errors in an experiment file: pydantic's errors and unknown keys in words the user can act on."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from vlmtune.config.schema import Section

KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """`("task", "labels", 2)` in dotted form: task.labels[2]."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def unknown_key(name: str, section: type[Section], path: KeyPath, schema: type[Section]) -> str:
    """Names the section that has a key of this name, or else the nearest key of this section."""
    known = list(section.model_fields)
    homes = [
        f"{other}.{name}"
        for other, info in schema.model_fields.items()
        if name in getattr(info.annotation, "model_fields", ())
    ]
    if name in schema.model_fields:
        homes = [name]
    guess = " or ".join(f"'{home}'" for home in homes or difflib.get_close_matches(name, known, n=1, cutoff=0.6))
    hint = f" Did you mean {guess}?" if guess else ""
    where = f"of {dotted(path)}" if path else "at the top"
    return f"unknown key.{hint} Known keys {where}: {', '.join(known)}."


def type_errors(schema: type[Section], values: Any, written: dict[KeyPath, str]) -> list[tuple[KeyPath, str]]:
    """Pydantic's errors in our words, one a key: the branches of a union are joined with 'or'."""
    try:
        schema.model_validate(values)
    except ValidationError as error:
        expected: dict[KeyPath, list[str]] = {}
        inputs: dict[KeyPath, Any] = {}
        for detail in error.errors(include_url=False):
            path = _real_path(detail["loc"], values)
            words = _expected(detail)
            if words not in expected.setdefault(path, []):
                expected[path].append(words)
            inputs.setdefault(path, detail["input"])
        return [
            (path, f"found {_found(inputs[path], written.get(path))}, expected {' or '.join(words)}.")
            for path, words in expected.items()
        ]
    return []


def _real_path(loc: KeyPath, values: Any) -> KeyPath:
    """The part of pydantic's location that is in the file: it also names branches of unions."""
    path: list[str | int] = []
    for part in loc:
        is_key = isinstance(values, dict) and part in values
        is_item = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not (is_key or is_item):
            break
        values = values[part]
        path.append(part)
    return tuple(path)


def _found(value: Any, written: str | None) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = written if written is not None else str(value)
    return f"'{text}'"


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    kind = detail["type"]
    if kind == "literal_error":
        choices = [text.strip("'") for text in re.findall(r"'[^']*'", str(context["expected"]))]
        near = difflib.get_close_matches(str(detail["input"]), choices, n=1)
        return f"one of {', '.join(choices)}" + (f" (did you mean '{near[0]}'?)" if near else "")
    bounds = {
        "greater_than": "above {gt}",
        "greater_than_equal": "at least {ge}",
        "less_than": "below {lt}",
        "less_than_equal": "at most {le}",
    }
    if kind in bounds:
        plain = {name: f"{bound:g}" for name, bound in context.items() if isinstance(bound, int | float)}
        return "a number " + bounds[kind].format(**plain)
    if kind == "missing" or kind in ("too_short", "too_long"):
        return "a list of 2 numbers" if "betas" in detail["loc"] else detail["msg"].lower()
    words = {
        "int_type": "a whole number",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "int_parsing_size": "a smaller whole number",
        "float_type": "a number",
        "float_parsing": "a number",
        "finite_number": "a finite number",
        "string_type": "text",
        "bool_type": "true or false",
        "bool_parsing": "true or false",
        "list_type": "a list, such as [first, second]",
        "tuple_type": "a list of 2 numbers",
        "dict_type": "keys with values",
        "model_type": "keys with values",
        "model_attributes_type": "keys with values",
    }
    return words.get(kind, detail["msg"])
