"""An experiment file and its overrides as a checked `Experiment`, and back to YAML. Called by every command.

All errors in a file are reported at once, each with its line (or the override), the key, what was found
and what was expected.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode
from ruamel.yaml.scalarstring import LiteralScalarString

from vlmtune.config import yaml_loader
from vlmtune.config.checks import find_contradictions
from vlmtune.config.messages import KeyPath, type_errors
from vlmtune.config.older import convert as legacy
from vlmtune.config.older.schema import REQUIRED, OlderEvaluation, OlderFineTuning, kind_of
from vlmtune.config.schema import Experiment, Section
from vlmtune.config.stages import Stage, Stages
from vlmtune.config.yaml_loader import UNWRITTEN, Problem, Reader
from vlmtune.errors import ConfigError

S = TypeVar("S", bound=Section)

CONFIG_FILE = "config.yaml"
"""The experiment in a run folder, which may be given in place of a file."""
_STAGES = ("align", "instruct")


class InvalidExperimentError(ConfigError):
    """All problems of one file, in its order."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in problems]
        many = f"{len(lines)} problems in {path}:\n"
        super().__init__(lines[0] if len(lines) == 1 else many + "\n".join(f"  {line}" for line in lines))


def load_experiment(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    must_exist: bool = True,
    faithful: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> Experiment:
    """Read and check one experiment.

    Args:
        path: a YAML file, or a run folder for its `CONFIG_FILE`. Also a file of the older repos.
        overrides: `key=value` texts such as `train.learning_rate=1e-3`; the value is YAML. For an older file, its keys
            or ours, which are applied last.
        must_exist: whether a local data source or base model must exist.
        faithful: keep the faults of an older file.
        note: called with each note on the conversion of an older file.

    Raises ConfigError (InvalidExperimentError for wrong values, all of them at once).
    """
    file = Path(path)
    if file.is_dir():
        file = file / CONFIG_FILE
    top = yaml_loader.read_mapping(file)
    older = kind_of({key.value for key, _ in yaml_loader.entries(top)}, Experiment)
    if older is not None:
        top, overrides = _translate(file, top, older, overrides, faithful, note)
    elif faithful:
        raise ConfigError(f"{file}: --faithful is for files of the older repos, and this is one of vlmtune's own.")
    experiment, reader = _check(file, top, Experiment, overrides)
    _settle(experiment, reader, file.parent, must_exist)
    _raise_problems(file, reader)
    return experiment if experiment.name else experiment.model_copy(update={"name": file.stem})


def parse_experiment(values: Mapping[str, Any], *, must_exist: bool = True) -> Experiment:
    """Check an experiment given as nested values, with the keys and shorthands of a file.

    Raises ConfigError (InvalidExperimentError for wrong values, all of them at once).
    """
    name = str(UNWRITTEN.name)
    top = yaml_loader.represent(dict(values), UNWRITTEN)
    assert isinstance(top, MappingNode)
    experiment, reader = _check(Path(name), top, Experiment, ())
    _settle(experiment, reader, Path(), must_exist)
    _raise_problems(Path(name), reader)
    if not experiment.name:
        raise ConfigError(f"{name}: name: is missing. Name the run, as in {{'name': 'cars', …}}.")
    return experiment


def is_staged(path: Path | str) -> bool:
    """Whether a file has stages (`load_stages`), or is one experiment. Raises ConfigError."""
    return bool({key.value for key, _ in yaml_loader.entries(yaml_loader.read_mapping(Path(path)))} & set(_STAGES))


def load_stages(path: Path | str, overrides: Sequence[str] = (), *, must_exist: bool = True) -> dict[str, Experiment]:
    """Read a two-stage file as one experiment per stage.

    Arguments as in `load_experiment`. Raises ConfigError, all problems at once; keys are named with their stage.
    """
    file = Path(path)
    stages, reader = _read(file, Stages, overrides)
    stages.name = stages.name or file.stem
    experiments = stages.experiments()
    for name, experiment in experiments.items():
        _settle(experiment, reader, file.parent, must_exist, stage=name)
    if not experiments:
        reader.report((), f"found no stage to train, expected {' or '.join(_STAGES)} (or both).")
    _raise_problems(file, reader)
    return experiments


def load_section(path: Path | str, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Read and check a file of another schema in the same way. Raises ConfigError."""
    values, reader = _read(Path(path), schema, overrides)
    _raise_problems(Path(path), reader)
    return values


def dump(experiment: Section, *, brief: bool = False) -> str:
    """YAML that `load_experiment` reads back as the same experiment: the schema's order, unset (None) keys left out.

    Args:
        brief: leave out keys that the file left out.
    """
    values = experiment.model_dump(mode="json", exclude_none=True, exclude_unset=brief)
    yaml = YAML(pure=True)
    yaml.default_flow_style, yaml.width = False, 110
    stream = io.StringIO()
    yaml.dump(_with_blocks(values), stream)
    return stream.getvalue()


def _with_blocks(value: Any) -> Any:
    """Multi-line texts as `|` blocks, which are easy to read and edit."""
    if isinstance(value, dict):
        return {key: _with_blocks(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_blocks(item) for item in value]
    is_block = isinstance(value, str) and "\n" in value.strip("\n") and value[:1] not in (" ", "\t", "\n")
    return LiteralScalarString(value) if is_block else value


def _settle(
    experiment: Experiment, reader: Reader, folder: Path, must_exist: bool = True, stage: str | None = None
) -> None:
    """Report contradictions between keys, and make local paths absolute, in place.

    Args:
        stage: section of a two-stage file.
    """

    def written(path: KeyPath) -> KeyPath:
        return (stage, *path) if stage is not None and path[0] in Stage.model_fields else path

    reader.report_new((written(path), message) for path, message in find_contradictions(experiment))
    # Each with the words that are not paths.
    for owner, path, words in (
        (experiment.data, ("data", "source"), ()),
        (experiment.model, ("model", "base"), ()),
        (experiment.model.connector, ("model", "connector", "start"), ("pretrained", "random")),
        (experiment.evaluate, ("evaluate", "checkpoint"), ("base",)),
    ):
        value = None if owner is None else getattr(owner, path[-1])
        # A start that the file does not set was decided here: the folder of a first stage that has yet to run.
        if value is None or value in words or reader.written.get(written(path)) != value:
            continue
        try:
            located = locate(value, folder, must_exist)
        except ConfigError as error:
            reader.report_new([(written(path), str(error))])
        else:
            setattr(owner, path[-1], located)


def _translate(
    file: Path,
    top: MappingNode,
    kind: type[OlderFineTuning] | type[OlderEvaluation],
    overrides: Sequence[str],
    faithful: bool,
    note: Callable[[str], None],
) -> tuple[MappingNode, list[str]]:
    """An older file in our keys, every value at the line of its source; and overrides of our keys.

    Raises InvalidExperimentError for errors in the older file itself.
    """
    names = set(kind.model_fields) - set(Experiment.model_fields)
    older_overrides = [override for override in overrides if override.partition("=")[0].strip() in names]
    older, reader = _check(file, top, kind, older_overrides)
    for key in (name for name in REQUIRED if getattr(older, name, "") is None):
        reader.report_new([((key,), "is missing, or has no value.")])
    _raise_problems(file, reader)
    marks = {key.value: key.start_mark for key, _ in yaml_loader.entries(top)}
    translated = legacy.translate(older, faithful=faithful)
    ours = MappingNode(top.tag, [], top.start_mark)
    for key, value, older_key in translated.entries:
        node = yaml_loader.represent(value, marks.get(older_key or "", top.start_mark))
        yaml_loader.lay_over(ours, tuple(key.split(".")), node)
    for text in translated.notes:
        note(text)
    return ours, [override for override in overrides if override not in older_overrides]


def _read(file: Path, schema: type[S], overrides: Sequence[str]) -> tuple[S, Reader]:
    return _check(file, yaml_loader.read_mapping(file), schema, overrides)


def _check(file: Path, top: MappingNode, schema: type[S], overrides: Sequence[str]) -> tuple[S, Reader]:
    """The typed values, wrong ones replaced by their defaults so that the rest can be checked, and the problems."""
    for override in overrides:
        key, node = yaml_loader.parse_override(override, schema)
        yaml_loader.lay_over(top, key, node)
    reader = Reader(schema, places={(): str(file)})
    values = reader.value(top, schema, ())
    for path, _ in reader.problems:
        _remove(values, path)
    while errors := type_errors(schema, values, reader.written):
        reader.report_new(errors)
        for path, _ in errors:
            _remove(values, path)
    return schema.model_validate(values), reader


def _raise_problems(file: Path, reader: Reader) -> None:
    if reader.problems:
        raise InvalidExperimentError(file, [problem for _, problem in _in_order(reader)])


def _in_order(reader: Reader) -> list[tuple[KeyPath, Problem]]:
    """Problems by line; those of overrides after the file's."""

    def line(item: tuple[KeyPath, Problem]) -> tuple[bool, int]:
        name, _, number = item[1].place.rpartition(":")
        is_override = not (name and number.isdigit()) or name.startswith("--set ")
        return is_override, 0 if is_override else int(number)

    return sorted(reader.problems, key=line)


def locate(source: str, folder: Path, must_exist: bool = True) -> str:
    """A local path as an absolute one, looked for in the current directory, then in the experiment file's folder.

    `builtin:…` and names that can be on the hub (`owner/name`) are unchanged when nothing local has that name.

    Raises ConfigError for a local path that is in neither place.
    """
    if source.startswith("builtin:"):
        return source
    path = Path(source).expanduser()
    tried = [Path(os.path.abspath(path))]  # noqa: PTH100 - resolve() would follow links, and a run should keep its names
    if not path.is_absolute():
        tried.append(Path(os.path.abspath(folder / path)))  # noqa: PTH100
    for candidate in dict.fromkeys(tried):
        if candidate.exists():
            return str(candidate)
    if not must_exist or (_HUB_ID.fullmatch(source) and not source.lower().endswith(_DATA_SUFFIXES)):
        return source
    looked = " and ".join(str(candidate) for candidate in dict.fromkeys(tried))
    raise ConfigError(
        f"found '{source}', which is in neither the current directory nor the file's folder (looked at {looked}). "
        "Expected a folder, a file, a hub id (owner/name) or a builtin: name."
        if len(set(tried)) > 1
        else f"found '{source}', but there is nothing at {looked}. "
        "Expected a folder, a file, a hub id (owner/name) or a builtin: name."
    )


_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".yaml", ".yml", ".zip", ".safetensors")


def _remove(values: Any, path: KeyPath) -> None:
    """Remove a wrong value, so that its default applies; in a list, the whole list, as a part would mislead."""
    whole = next((depth for depth, part in enumerate(path) if isinstance(part, int)), len(path))
    *parents, last = path[:whole]
    for part in parents:
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values.pop(last, None)
