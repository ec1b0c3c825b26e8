"""Umbra for users' own code: `load_encoder` and the version."""

from importlib.metadata import PackageNotFoundError, version

from trainer.hub import load_encoder

try:
    __version__ = version("umbra")
except PackageNotFoundError:
    __version__ = "0+not-installed"

__all__ = ["__version__", "load_encoder"]
