"""A study of two rotations, as most tests want it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.study.config import StudyConfig


def study_of(output: str | Path, methods: Sequence[str] = ("adversarial", "none"), **keys: Any) -> StudyConfig:
    keys = {"rotations": [0, 1], "tasks": ["rhythm"], "fractions": [1.0], "bootstrap": 300} | keys
    return StudyConfig(name="s", data="d", output=str(output), methods=list(methods), **keys)
