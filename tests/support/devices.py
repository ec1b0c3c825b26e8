"""Tests that are the same on a CPU and, there marked `gpu`, on a GPU.

The CPU's form, marked `as_gpu`, is what a machine without a GPU can try of such a test.
"""

from __future__ import annotations

import pytest
import torch

HERE = torch.cuda.is_available()
NEEDED = (pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="needs a GPU: torch finds none here"))


def on_each(*marks: pytest.MarkDecorator) -> list[object]:
    """Values of a parameter `device`; `marks`: also of the CPU's form."""
    return [pytest.param("cpu", marks=[pytest.mark.as_gpu, *marks]), pytest.param("cuda", marks=NEEDED)]
