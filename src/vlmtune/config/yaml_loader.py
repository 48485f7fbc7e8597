"""A YAML file and its overrides as plain values, each with its place. Called by `load`.

In: a file or a `--set key=value` text, and its schema. Out: values for pydantic to check. ruamel.yaml reads
YAML 1.2 into nodes whose marks say where each was written, so that every later error names `file:line` or the override;
the schema, not the way a value is written, decides whether `010` or `off` is text, a number or a choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from vlmtune.config.messages import KeyPath, dotted, unknown_key
from vlmtune.config.schema import Section
from vlmtune.errors import ConfigError

SHORTHANDS = {"data": "source", "model": "base", "scoring": "reduce", "connector": "kind", "tracking": "to"}
"""Section -> the key that a plain text (or a list) in its place stands for: `data: path/to/images`."""

_TAG = "tag:yaml.org,2002:"
_NULL, _STR, _MERGE, _MAP, _SEQ = (_TAG + kind for kind in ("null", "str", "merge", "map", "seq"))
_PLAIN_TAGS = {_NULL, _STR, _MERGE, _MAP, _SEQ} | {_TAG + kind for kind in ("bool", "int", "float", "timestamp")}
# An experiment is a page long. Aliases that expand to more than this are a mistake or an attack.
_MAX_NODES = 100_000
_OVERRIDE_MARK = "--set "
UNWRITTEN = StringMark("experiment", 0, 0, 0, "", 0)
"""The mark of values that come from Python and not from a file."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in an experiment. ``place`` is `file:line` or the override; ``key`` is dotted."""

    place: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.key}: {self.message}" if self.key else f"{self.place}: {self.message}"


def place(node: Node) -> str:
    """Where a node was written: `file:line`, the whole override, or for values from Python their name."""
    name = str(node.start_mark.name)
    return name if name.startswith(_OVERRIDE_MARK) or name == UNWRITTEN.name else f"{name}:{node.start_mark.line + 1}"


def read_mapping(path: Path) -> MappingNode:
    """The top mapping of a YAML file. Raises ConfigError for a file that cannot be read or is no mapping of keys."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file. Give the path of an experiment's YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8. An experiment is a UTF-8 text file; save it as such."
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this file ({error.strerror or error}).") from error
    node = _compose(text, str(path))
    if node is None:
        raise ConfigError(
            f"{path}: the file is empty, expected keys such as 'data: path/to/images'. See configs/ for examples."
        )
    if not isinstance(node, MappingNode):
        content = "a list" if isinstance(node, SequenceNode) else f"only the text '{_shorten(node.value)}'"
        raise ConfigError(f"{place(node)}: found {content}, expected keys with values, such as 'data: path/to/images'.")
    return node


def parse_override(text: str, schema: type[Section]) -> tuple[tuple[str, ...], Node]:
    """Split `train.learning_rate=1e-3` into the key's path and the value's node.

    Args:
        text: the argument of `--set`.
        schema: of the file. The value of a text key is taken as typed: a prompt may hold `: {labels}`.

    Raises ConfigError for a text without a key or `=`, and for a value that is not YAML.
    """
    name = _OVERRIDE_MARK + text
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"{name}: expected key=value, such as --set train.learning_rate=1e-3.")
    mark = StringMark(name, 0, 0, 0, "", 0)
    if ".".join(path) in _text_keys(schema):
        node = _literal(value, name)
    else:
        node = _compose(value, name) or ScalarNode(_NULL, "")
    node.start_mark = mark
    return path, node


def represent(value: Any, mark: StringMark) -> Node:
    """A plain value (text, number, boolean, list, dict of texts) as a node that was written at ``mark``."""
    if isinstance(value, dict):
        pairs = [(represent(str(key), mark), represent(item, mark)) for key, item in value.items()]
        return MappingNode(_MAP, pairs, mark)
    if isinstance(value, list | tuple):
        return SequenceNode(_SEQ, [represent(item, mark) for item in value], mark)
    kind = {bool: "bool", int: "int", float: "float", type(None): "null"}.get(type(value), "str")
    return ScalarNode(_TAG + kind, str(value).lower() if kind in ("bool", "null") else str(value), mark)


def lay_over(top: MappingNode, path: tuple[str, ...], value: Node) -> None:
    """Set `path` in `top`, in place. Raises ConfigError where a part of the path is a value instead of keys."""
    keys = [ScalarNode(_STR, part, value.start_mark) for part in path]
    node = top
    for depth, key in enumerate(keys[:-1]):
        child = next((inner for name, inner in entries(node) if name.value == key.value), None)
        if child is None or child.tag == _NULL:
            child = MappingNode(_MAP, [], value.start_mark)
            _replace(node, key, child)
        elif isinstance(child, ScalarNode) and key.value in SHORTHANDS:
            child = MappingNode(
                _MAP, [(ScalarNode(_STR, SHORTHANDS[key.value], child.start_mark), child)], child.start_mark
            )
            _replace(node, key, child)
        if not isinstance(child, MappingNode):
            section = ".".join(path[: depth + 1])
            raise ConfigError(
                f"{value.start_mark.name}: {section} is set to a value ({place(child)}), so it has no key "
                f"'{path[depth + 1]}'. Set {section} itself."
            )
        node = child
    _replace(node, keys[-1], value)


def entries(node: MappingNode) -> list[tuple[ScalarNode, Node]]:
    """The keys and values of a mapping, `<<` merges unfolded; the last of duplicate keys. Raises ConfigError."""
    direct: dict[str, tuple[ScalarNode, Node]] = {}
    merged: dict[str, tuple[ScalarNode, Node]] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise ConfigError(f"{place(key)}: found a list or mapping as a key, expected a name.")
        if key.tag != _MERGE:
            direct[key.value] = (key, value)
            continue
        for parent in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(parent, MappingNode):
                raise ConfigError(f"{place(key)}: '<<' merges mappings, found something else.")
            for parent_key, parent_value in entries(parent):
                merged.setdefault(parent_key.value, (parent_key, parent_value))
    return [*(pair for name, pair in merged.items() if name not in direct), *direct.values()]


@dataclass
class Reader:
    """Turns nodes into values for pydantic, and records the place of every key and the problems on the way."""

    schema: type[Section]
    places: dict[KeyPath, str] = field(default_factory=dict)
    written: dict[KeyPath, str] = field(default_factory=dict)
    """The text of a value as written in the file, for messages."""
    problems: list[tuple[KeyPath, Problem]] = field(default_factory=list)

    def report(self, path: KeyPath, message: str, at: str | None = None) -> None:
        """Add a problem with a key, at its nearest enclosing key that was written."""
        self.problems.append((path, Problem(at or self.place(path), dotted(path), message)))

    def report_new(self, findings: Iterable[tuple[KeyPath, str]]) -> None:
        """Report findings on keys that have no problem yet: a second finding follows from the first."""
        reported = [path for path, _ in self.problems]
        for path, message in findings:
            if not any(path[: len(other)] == other[: len(path)] for other in reported):
                self.report(path, message)

    def place(self, path: KeyPath) -> str:
        """The place of the nearest enclosing key that was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places[path]

    def value(self, node: Node, annotation: Any, path: KeyPath = ()) -> Any:
        """The plain value of a node, as the schema's annotation requires."""
        if isinstance(node, MappingNode):
            return self._mapping(node, annotation, path)
        if isinstance(node, SequenceNode):
            return self._sequence(node, annotation, path)
        assert isinstance(node, ScalarNode)
        return self._scalar(node, annotation, path)

    def _mapping(self, node: MappingNode, annotation: Any, path: KeyPath) -> dict[str, Any]:
        section = section_of(annotation)
        inner = next((get_args(kind)[1] for kind in _kinds(annotation) if get_origin(kind) is dict), Any)
        self._duplicates(node, path)
        values: dict[str, Any] = {}
        for key, child in entries(node):
            name, child_path = key.value, (*path, key.value)
            self.places[child_path] = place(key)
            if section is None:
                if key.tag == _NULL:
                    self.report(child_path, f"found '{name}' as a key, which YAML reads as nothing. Quote it.")
                values[name] = self.value(child, inner, child_path)
            elif name in section.model_fields:
                values[name] = self.value(child, section.model_fields[name].annotation, child_path)
            else:
                self.report(child_path, unknown_key(name, section, path, self.schema))
        return values

    def _duplicates(self, node: MappingNode, path: KeyPath) -> None:
        first: dict[str, str] = {}
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                if key.value in first:
                    message = f"the key appears twice (first at {first[key.value]}). Remove one of them."
                    self.report((*path, key.value), message, place(key))
                first.setdefault(key.value, place(key))

    def _sequence(self, node: SequenceNode, annotation: Any, path: KeyPath) -> Any:
        section, key = section_of(annotation), SHORTHANDS.get(str(path[-1])) if path else None
        if section is not None and key is not None and _holds_list(section, key):
            self.places[(*path, key)] = self.places[path]
            return {key: self._sequence(node, section.model_fields[key].annotation, (*path, key))}
        inner = next((get_args(kind)[0] for kind in _kinds(annotation) if get_origin(kind) in (list, tuple)), Any)
        values = []
        for index, child in enumerate(node.value):
            self.places[(*path, index)] = place(child)
            values.append(self.value(child, inner, (*path, index)))
        return values

    def _scalar(self, node: ScalarNode, annotation: Any, path: KeyPath) -> Any:
        kinds, section = _kinds(annotation), section_of(annotation)
        text = str(node.value)
        self.written[path] = text
        if node.tag == _NULL:
            if section is not None and type(None) not in kinds:
                return {}  # `train:` with nothing under it
            if type(None) not in kinds and str in kinds:
                written = f"'{text}'" if text else "nothing"
                self.report(path, f"found {written}, which YAML reads as no value, expected text. Quote it.")
            return None
        key = SHORTHANDS.get(str(path[-1])) if path else None
        if section is not None and key in section.model_fields:
            assert key is not None
            self.places[(*path, key)] = self.places[path]
            return {key: self._scalar(node, str, (*path, key))}
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        if choices:
            return text.lower() if text.lower() in choices else text
        return text if str in kinds else _number_or_boolean(node)  # `revision: 1234567`, `labels: [0, 010]` are text


def section_of(annotation: Any) -> type[Section] | None:
    """The section that an annotation names, alone or in a union."""
    return next((kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, Section)), None)


def _kinds(annotation: Any) -> list[Any]:
    """The branches of a union, `Annotated` removed."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for branch in get_args(annotation) for kind in _kinds(branch)]
    return [annotation]


def _text_keys(section: type[Section], prefix: str = "") -> set[str]:
    """Dotted keys that hold one text and nothing else."""
    keys: set[str] = set()
    for name, info in section.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            keys |= _text_keys(inner, f"{prefix}{name}.")
        elif set(_kinds(info.annotation)) <= {str, type(None)}:
            keys.add(prefix + name)
    return keys


def _holds_list(section: type[Section], key: str) -> bool:
    return key in section.model_fields and get_origin(section.model_fields[key].annotation) is list


def _number_or_boolean(node: ScalarNode) -> Any:
    """A plain scalar by YAML 1.2: number or boolean; text where it is neither (or is no number after all: `1e999_`)."""
    text = str(node.value)
    try:
        if node.tag == _TAG + "bool":
            return text.lower() == "true"
        if node.tag == _TAG + "int":
            return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2].lower() in ("0x", "0o") else 10)
        if node.tag == _TAG + "float":
            return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    return text


def _compose(text: str, name: str) -> Node | None:
    """One document's nodes. Raises ConfigError that names the line for anything that is not plain YAML."""
    try:
        node: Node | None = YAML(pure=True).compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        where = name if name.startswith(_OVERRIDE_MARK) else f"{name}:{line}"
        raise ConfigError(
            f"{where}: found the control character U+{ord(text[error.position]):04X}, expected text."
        ) from error
    except MarkedYAMLError as error:
        raise ConfigError(_explain(error, text, name)) from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply to be an experiment.") from error
    if node is not None:
        _check_plain(node, name)
    return node


def _check_plain(top: Node, name: str) -> None:
    """Name every mark; refuse tags that build objects, and aliases that unfold without end."""
    num_nodes = 0
    stack: list[tuple[Node, frozenset[int]]] = [(top, frozenset())]
    while stack:
        node, above = stack.pop()
        num_nodes += 1
        node.start_mark.name = name
        if num_nodes > _MAX_NODES or id(node) in above:
            raise ConfigError(f"{place(node)}: aliases (*name) that unfold without end. Write the values out.")
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(
                f"{place(node)}: found the tag '{node.tag}', expected plain text, numbers, lists and keys. "
                "Remove the tag."
            )
        inside = above | {id(node)}
        if isinstance(node, MappingNode):
            stack.extend((child, inside) for pair in node.value for child in pair)
        elif isinstance(node, SequenceNode):
            stack.extend((child, inside) for child in node.value)


def _explain(error: MarkedYAMLError, text: str, name: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "cannot be read"
    if name.startswith(_OVERRIDE_MARK) or mark is None:
        return f"{name}: not valid YAML ({problem})."
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    where = f"{name}:{mark.line + 1}"
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return f"{where}: found a tab character; YAML is indented with spaces. Replace the tab."
    if "expected a single document" in (error.context or ""):
        return f"{where}: found a second document ('---'), expected one experiment a file."
    advice = ""
    if "mapping values are not allowed" in problem:
        advice = " A text that holds ': ' needs quotes; a key needs the same indentation as its neighbors."
    context = f" {error.context}," if error.context and error.context != problem else ""
    return f"{where}: not valid YAML:{context} {problem} (column {mark.column + 1}).{advice}"


def _literal(value: str, name: str) -> Node:
    """A text setting's value: as typed, save that quotes around it are YAML's and `null`, `~` or nothing unset it."""
    stripped = value.strip()
    if stripped in ("", "~", "null", "Null", "NULL"):
        return ScalarNode(_NULL, "")
    if stripped[0] in "'\"" and stripped[0] == stripped[-1] and len(stripped) > 1:
        node = _compose(stripped, name)
        if isinstance(node, ScalarNode):
            return node
    return ScalarNode(_STR, value)


def _replace(node: MappingNode, key: ScalarNode, value: Node) -> None:
    others = [pair for pair in node.value if not (isinstance(pair[0], ScalarNode) and pair[0].value == key.value)]
    node.value = [*others, (key, value)]


def _shorten(text: object, limit: int = 40) -> str:
    content = str(text)
    return content if len(content) <= limit else content[: limit - 1] + "…"
