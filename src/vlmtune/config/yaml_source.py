"""A YAML file as a node tree that remembers its lines, with overrides laid over it. Called by `load`.

In: a file and `--set key=value` texts. Out: yaml nodes whose marks say where each value came from, so that every later
error can name `file:line` or the override.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from vlmtune.errors import ConfigError

NULL_TAG = "tag:yaml.org,2002:null"
BOOL_TAG = "tag:yaml.org,2002:bool"
STR_TAG = "tag:yaml.org,2002:str"
MERGE_TAG = "tag:yaml.org,2002:merge"
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{kind}"
    for kind in ("null", "bool", "str", "int", "float", "timestamp", "merge", "value", "map", "seq")
)
# An experiment is a page long. Aliases that unfold to more than this are a mistake or an attack.
_MAX_NODES = 100_000

_OVERRIDE_MARK = "--set "


def place(node: Node) -> str:
    """Where a node was written: `file:line`, or the whole override."""
    name = str(node.start_mark.name)
    return name if name.startswith(_OVERRIDE_MARK) else f"{name}:{node.start_mark.line + 1}"


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
        found = "a list" if isinstance(node, SequenceNode) else f"only the text '{_shorten(node.value)}'"
        raise ConfigError(f"{place(node)}: found {found}, expected keys with values, such as 'data: path/to/images'.")
    return node


def parse_override(text: str, literal_keys: frozenset[str]) -> tuple[tuple[str, ...], Node]:
    """Split `train.learning_rate=1e-3` into the key's path and the value's node.

    Args:
        text: what stood after `--set`.
        literal_keys: dotted keys that hold text, whose value is taken as it stands: a prompt may hold `: {labels}`.

    Raises ConfigError for a text without a key or `=`, and for a value that is not YAML.
    """
    name = _OVERRIDE_MARK + text
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"{name}: expected key=value, such as --set train.learning_rate=1e-3.")
    if ".".join(path) in literal_keys:
        node = _literal(value, name)
    else:
        node = _compose(value, name) or ScalarNode(NULL_TAG, "")
    node.start_mark = yaml.Mark(name, 0, 0, 0, None, 0)
    return path, node


def represent(value: Any, mark: yaml.Mark) -> Node:
    """A plain value as a node that was written at ``mark``, with everything in it."""
    top: Node = yaml.representer.SafeRepresenter(sort_keys=False).represent_data(value)
    waiting = [top]
    while waiting:
        node = waiting.pop()
        node.start_mark = mark
        if isinstance(node, MappingNode):
            waiting.extend(child for pair in node.value for child in pair)
        elif isinstance(node, SequenceNode):
            waiting.extend(node.value)
    return top


def lay_over(top: MappingNode, path: tuple[str, ...], value: Node, shorthands: dict[str, str]) -> None:
    """Set `path` in `top`, in place. Raises ConfigError where a part of the path holds a value and not keys.

    Args:
        shorthands: section -> the key that a plain text in the section's place stands for.
    """
    name = value.start_mark.name
    key_nodes = [ScalarNode(STR_TAG, part, value.start_mark) for part in path]
    node = top
    for depth, key in enumerate(key_nodes[:-1]):
        child = _child(node, key.value)
        if child is None or (isinstance(child, ScalarNode) and child.tag == NULL_TAG):
            child = MappingNode("tag:yaml.org,2002:map", [], value.start_mark)
            _replace(node, key, child)
        elif isinstance(child, ScalarNode) and key.value in shorthands:
            inner = ScalarNode(STR_TAG, shorthands[key.value], child.start_mark)
            child = MappingNode("tag:yaml.org,2002:map", [(inner, child)], child.start_mark)
            _replace(node, key, child)
        if not isinstance(child, MappingNode):
            raise ConfigError(
                f"{name}: {'.'.join(path[: depth + 1])} is set to a value ({place(child)}), so it has no key "
                f"'{path[depth + 1]}'. Set {'.'.join(path[: depth + 1])} itself."
            )
        node = child
    _replace(node, key_nodes[-1], value)


def entries(node: MappingNode) -> list[tuple[ScalarNode, Node]]:
    """The keys and values of a mapping, `<<` merges unfolded; of a duplicate key the last. Raises ConfigError."""
    own: dict[str, tuple[ScalarNode, Node]] = {}
    merged: dict[str, tuple[ScalarNode, Node]] = {}
    for key, value in node.value:
        if not isinstance(key, ScalarNode):
            raise ConfigError(f"{place(key)}: found a list or mapping as a key, expected a name.")
        if key.tag != MERGE_TAG:
            own[key.value] = (key, value)
            continue
        for parent in value.value if isinstance(value, SequenceNode) else [value]:
            if not isinstance(parent, MappingNode):
                raise ConfigError(f"{place(key)}: '<<' merges mappings, found something else.")
            for parent_key, parent_value in entries(parent):
                merged.setdefault(parent_key.value, (parent_key, parent_value))
    return [*(pair for name, pair in merged.items() if name not in own), *own.values()]


def duplicate_keys(node: MappingNode) -> list[tuple[ScalarNode, str]]:
    """Keys that stand a second time in one mapping, each with the place of the first."""
    first: dict[str, str] = {}
    again = []
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != MERGE_TAG:
            if key.value in first:
                again.append((key, first[key.value]))
            first.setdefault(key.value, place(key))
    return again


def _compose(text: str, name: str) -> Node | None:
    """One document's nodes. Raises ConfigError that names the line for anything that is not plain YAML."""
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        where = name if name.startswith(_OVERRIDE_MARK) else f"{name}:{line}"
        raise ConfigError(
            f"{where}: found the control character U+{int(error.character):04X}, expected text."
        ) from error
    loader.name = name  # what marks are called after; the stubs leave it out
    try:
        node: Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_explain(error, text, name)) from error
    except RecursionError as error:
        raise ConfigError(f"{name}: nested too deeply to be an experiment.") from error
    finally:
        loader.dispose()
    if node is not None:
        _check_plain(node)
    return node


def _check_plain(top: Node) -> None:
    """Refuse tags that build objects, aliases inside their own anchor, and aliases that unfold without bound."""
    num_nodes = 0
    stack: list[tuple[Node, frozenset[int]]] = [(top, frozenset())]
    while stack:
        node, above = stack.pop()
        num_nodes += 1
        if num_nodes > _MAX_NODES or id(node) in above:
            raise ConfigError(f"{place(node)}: aliases (*name) that unfold without end. Write the values out.")
        if node.tag not in _PLAIN_TAGS:
            raise ConfigError(
                f"{place(node)}: found the tag '{node.tag}', expected plain text, numbers, lists and keys. "
                "Remove the tag."
            )
        if isinstance(node, MappingNode):
            inside = above | {id(node)}
            stack.extend((child, inside) for pair in node.value for child in pair)
        elif isinstance(node, SequenceNode):
            inside = above | {id(node)}
            stack.extend((child, inside) for child in node.value)


def _explain(error: yaml.MarkedYAMLError, text: str, name: str) -> str:
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
        return ScalarNode(NULL_TAG, "")
    if stripped[0] in "'\"" and stripped[0] == stripped[-1] and len(stripped) > 1:
        node = _compose(stripped, name)
        if isinstance(node, ScalarNode):
            return node
    return ScalarNode(STR_TAG, value)


def _child(node: MappingNode, key: str) -> Node | None:
    return next((value for name, value in entries(node) if name.value == key), None)


def _replace(node: MappingNode, key: ScalarNode, value: Node) -> None:
    kept = [
        (old, old_value)
        for old, old_value in node.value
        if not (isinstance(old, ScalarNode) and old.value == key.value)
    ]
    node.value = [*kept, (key, value)]


def _shorten(text: object, limit: int = 40) -> str:
    shown = str(text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
