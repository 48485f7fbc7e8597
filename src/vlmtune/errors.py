"""Errors the user can act on, each saying what was found and what to do. Printed without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something outside the program is wrong: a file, a value, a disk. Printed without a traceback; exit code 1."""


class ConfigError(UserError):
    """A value in an experiment file. The message names the file, the line and the key where they are known."""


class DataError(UserError):
    """A data source that cannot be used as configured: a missing column, an empty class folder, an unknown label."""


class UnreadableImageError(DataError):
    """One image that cannot be decoded. Callers count and list these; they never drop them silently."""

    def __init__(self, source: str | Path, reason: str) -> None:
        super().__init__(f"{source}: cannot read this image ({reason}). Replace or remove the file.")
        self.source = str(source)
        self.reason = reason


class WeightsError(UserError):
    """A checkpoint whose tensors do not fit its configuration, or whose files are damaged."""


class TokenizerError(UserError):
    """A checkpoint's tokenizer or chat template that cannot be used: a missing file or token, a template that fails."""


class AdapterError(UserError):
    """A LoRA target that matches nothing, or an adapter that does not belong to the model."""


class RunFolderError(UserError):
    """A run folder that exists, cannot be written, or lacks something required."""


class MissingExtraError(UserError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"This needs the package '{package}'. Install it: pip install 'vlmtune[{extra}]'")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence for an unknown name: what it was, the nearest known one, and all that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unknown {kind} '{name}'.{hint} Known: {', '.join(names) or '(none)'}."
