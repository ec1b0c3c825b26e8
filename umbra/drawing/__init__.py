"""Figures and pages; they are drawn without a display, whatever backend the environment names."""

from __future__ import annotations

import importlib.util
import os


def without_missing_backend() -> None:
    """Drops a backend of matplotlib that is not installed here: of a notebook that calls a command of this environment.

    To be called before matplotlib is loaded, which would refuse to be.
    """
    kind, _, module = os.environ.get("MPLBACKEND", "").partition("://")
    if kind == "module" and importlib.util.find_spec(module.partition(".")[0]) is None:
        del os.environ["MPLBACKEND"]
