"""vlmtune: make a small vision-language model an expert on your own images, and prove it.

The names below are loaded when they are first used: `import vlmtune` imports neither torch nor pydantic.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

try:
    __version__ = version("vlmtune")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

_MODULES = {
    "load": "api.model",
    "Model": "api.model",
    "Prediction": "api.results",
    "Predictions": "api.results",
    "train": "api.runs",
    "evaluate": "api.runs",
    "compare": "api.runs",
    "export": "api.runs",
    "serve": "api.runs",
    "Run": "api.runs",
    "Evaluation": "api.runs",
    "Figures": "api.runs",
    "Comparison": "api.runs",
    "Experiment": "config.schema",
    "load_experiment": "config.load",
    "UserError": "errors",
}
"""Name -> the module of this package that defines it; `__init__.pyi` says the same to type checkers."""

__all__ = ["__version__", *_MODULES]


class _Package(ModuleType):
    """This package, in which `train`, `evaluate`, `export` and `serve` are the functions.

    Importing the subpackages of the same names would bind them here instead; `from vlmtune.train import …` does not
    need that.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'vlmtune' has no attribute {name!r}")
    value = getattr(import_module(f"vlmtune.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
