"""vlmtune: make a small vision-language model an expert on your own images, and prove it."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vlmtune")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
