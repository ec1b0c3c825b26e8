"""The sample formats of WFDB signal files and the reader of each.

Format of the samples: https://www.physionet.org/physiotools/wag/signal-5.htm.
"""

from __future__ import annotations

from dataclasses import dataclass

FAST, LIBRARY = "fast", "wfdb"


@dataclass(frozen=True)
class Format:
    """The extreme values of a format's samples, and its `reader`: FAST (`wfdb_fast`) or LIBRARY (`wfdb_library`)."""

    lowest: int
    reader: str = FAST

    @property
    def highest(self) -> int:
        return -self.lowest - 1


# The lowest value of each format marks a missing sample. Format 8 (differences) has no marker and never gets that low.
FORMATS = {
    "8": Format(-(1 << 31), LIBRARY),
    "16": Format(-(1 << 15)),
    "24": Format(-(1 << 23)),
    "32": Format(-(1 << 31)),
    "61": Format(-(1 << 15)),
    "80": Format(-(1 << 7)),
    "160": Format(-(1 << 15)),
    "212": Format(-(1 << 11)),
    "310": Format(-(1 << 9), LIBRARY),
    "311": Format(-(1 << 9), LIBRARY),
    "508": Format(-(1 << 7), LIBRARY),
    "516": Format(-(1 << 15), LIBRARY),
    "524": Format(-(1 << 23), LIBRARY),
}
