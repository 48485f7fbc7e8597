"""Where and when a run was made: versions, machine, time."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("vlmtune", "torch", "safetensors", "tokenizers", "datasets", "numpy", "pillow")


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they decide whether a run can be repeated."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cpus": os.cpu_count(),
        "versions": versions,
    }


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
