"""The figures that docs/metrics.md describes."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented() -> set[str]:
    """The names in the first column of the page's table."""
    firsts = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return {name for first in firsts for name in re.findall("`([^`]+)`", first)}
