"""Yaml nodes as the plain values that pydantic checks, guided by the schema's types. Called by `load`.

YAML guesses types from how a value is written (`yes`, `010`, `5e-4`, `2024-01-01`); here the schema says what is meant,
and a guess that would lose what was written is a problem with a place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vlmtune.config import yaml_source
from vlmtune.config.messages import KeyPath, dotted, quote_me, unknown_key
from vlmtune.config.schema import Section

SHORTHANDS = {"data": "source", "model": "base", "scoring": "form", "connector": "kind", "tracking": "to"}
"""Section -> the key that a plain text (or a list) in its place stands for: `data: path/to/images`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in an experiment. ``place`` is `file:line` or the override; ``key`` is dotted."""

    place: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.message}" if self.key else f"{self.place}: {self.message}"


@dataclass
class Reader:
    """Turns nodes into what pydantic checks, and keeps the place of every key and the problems met on the way."""

    schema: type[Section]
    places: dict[KeyPath, str] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    """The text of a value as it stands in the file, for messages."""
    problems: list[tuple[KeyPath, Problem]] = field(default_factory=list)

    def report(self, path: KeyPath, message: str, place: str | None = None) -> None:
        self.problems.append((path, Problem(place or self.place(path), dotted(path), message)))

    def report_new(self, findings: Iterable[tuple[KeyPath, str]]) -> None:
        """Report findings on keys that nothing was said about: a second finding follows from the first."""
        said = [path for path, _ in self.problems]
        for path, message in findings:
            if not any(path[: len(other)] == other[: len(path)] for other in said):
                self.report(path, message)

    def place(self, path: KeyPath) -> str:
        """The place of the nearest enclosing key that was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]

    def value(self, node: Node, annotation: Any, path: KeyPath) -> Any:
        if isinstance(node, MappingNode):
            return self._mapping(node, annotation, path)
        if isinstance(node, SequenceNode):
            return self._sequence(node, annotation, path)
        assert isinstance(node, ScalarNode)
        return self._scalar(node, annotation, path)

    def _mapping(self, node: MappingNode, annotation: Any, path: KeyPath) -> dict[str, Any]:
        section = section_of(annotation)
        inner = next((get_args(kind)[1] for kind in _kinds(annotation) if get_origin(kind) is dict), Any)
        for key, first in yaml_source.duplicate_keys(node):
            message = f"the key stands twice (first at {first}). Remove one of them."
            self.report((*path, key.value), message, yaml_source.place(key))
        values: dict[str, Any] = {}
        for key, child in yaml_source.entries(node):
            name, child_path = key.value, (*path, key.value)
            self.places[child_path] = yaml_source.place(key)
            if section is None:
                if key.tag == yaml_source.BOOL_TAG:
                    self.report(child_path, quote_me(name))
                elif key.tag == yaml_source.NULL_TAG:
                    self.report(child_path, f"found '{name}' as a key, which YAML reads as nothing. Quote it.")
                values[name] = self.value(child, inner, child_path)
            elif name in section.model_fields:
                values[name] = self.value(child, section.model_fields[name].annotation, child_path)
            else:
                self.report(child_path, unknown_key(name, section, path, self.schema))
        return values

    def _sequence(self, node: SequenceNode, annotation: Any, path: KeyPath) -> Any:
        section, key = section_of(annotation), SHORTHANDS.get(str(path[-1])) if path else None
        if section is not None and key is not None and _holds_list(section, key):
            self.places[(*path, key)] = self.places[path]
            return {key: self._sequence(node, section.model_fields[key].annotation, (*path, key))}
        inner = next((get_args(kind)[0] for kind in _kinds(annotation) if get_origin(kind) in (list, tuple)), Any)
        values = []
        for index, child in enumerate(node.value):
            self.places[(*path, index)] = yaml_source.place(child)
            values.append(self.value(child, inner, (*path, index)))
        return values

    def _scalar(self, node: ScalarNode, annotation: Any, path: KeyPath) -> Any:
        kinds = _kinds(annotation)
        self.written[path] = node.value
        if node.tag == yaml_source.NULL_TAG:
            if section_of(annotation) and type(None) not in kinds:
                return {}  # `train:` with nothing under it
            if type(None) not in kinds and str in kinds:
                written = f"'{node.value}'" if node.value else "nothing"
                self.report(path, f"found {written}, which YAML reads as no value, expected text. Quote it.")
            return None
        section = section_of(annotation)
        key = SHORTHANDS.get(str(path[-1])) if path else None
        if section is not None and key in section.model_fields:
            assert key is not None
            self.places[(*path, key)] = self.places[path]
            return {key: self._scalar(node, str, (*path, key))}
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if choices:
            # `feature_cache: off` arrives as a boolean; the choice is what was written.
            return node.value.lower() if node.value.lower() in choices else node.value
        if node.tag == yaml_source.BOOL_TAG and bool not in kinds and annotation is not Any:
            if str in kinds:
                self.report(path, quote_me(node.value))
            else:
                self.report(
                    path,
                    f"found {node.value}, which YAML reads as a boolean, expected {_expected_kind(kinds)}.",
                )
            return None
        if str in kinds:
            return node.value  # `revision: 1234567`, `labels: [0, 1]`: digits are text here, exactly as written
        if int in kinds and node.tag == yaml_source.STR_TAG and _is_whole(node.value):
            return int(float(node.value))  # `max_steps: 1e4` is text to YAML 1.1
        try:
            return yaml.SafeLoader("").construct_object(node)
        except (ValueError, yaml.YAMLError):  # 2026-13-45 looks like a date
            return node.value


def _kinds(annotation: Any) -> list[Any]:
    """The branches of a union, `Annotated` removed."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for branch in get_args(annotation) for kind in _kinds(branch)]
    return [annotation]


def section_of(annotation: Any) -> type[Section] | None:
    return next((kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section)), None)


def text_keys(section: type[Section], prefix: str = "") -> list[str]:
    """Dotted keys that hold one text and nothing else, and the sections a text may stand for."""
    keys = []
    for name, info in section.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            keys += text_keys(inner, f"{prefix}{name}.")
        elif set(_kinds(info.annotation)) <= {str, type(None)}:
            keys.append(prefix + name)
    return keys


def _holds_list(section: type[Section], key: str) -> bool:
    return key in section.model_fields and get_origin(section.model_fields[key].annotation) is list


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except (ValueError, OverflowError):
        return False


def _expected_kind(kinds: list[Any]) -> str:
    names = {int: "a whole number", float: "a number"}
    return " or ".join(names[kind] for kind in kinds if kind in names) or "a list or keys with values"
