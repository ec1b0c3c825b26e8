"""Canonical lead order, the aliases of lead names, and the limb leads that are derived from I and II."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", bound=Any)  # NumPy arrays or torch tensors

CANONICAL = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# Weights of I and II. Einthoven: III = II - I. Goldberger: aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2.
DERIVED = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}

# The eight independent leads; the other four of the twelve follow from I and II.
INDEPENDENT = tuple(lead for lead in CANONICAL if lead not in DERIVED)

_BY_LOWER = {lead.lower(): lead for lead in CANONICAL}
_NUMERALS = {"d1": "I", "d2": "II", "d3": "III", "di": "I", "dii": "II", "diii": "III", "1": "I", "2": "II", "3": "III"}
_PREFIX = re.compile(r"^(ecg|ekg|lead)(?: - |-|[ _:.]*)", re.IGNORECASE)  # a - behind a space is a sign: `Lead -aVR`
_REFERENCE = re.compile(r"[ -]ref(erence)?$", re.IGNORECASE)  # EDF: `EKG I-Ref`


@lru_cache(maxsize=4096)
def canonical(name: str) -> str | None:
    """The canonical name of a lead, ignoring case and a prefix `lead` or `ECG`; None for any other signal.

    -aVR, the inverted lead of the Cabrera order, is a signal of its own, not an alias of aVR. Modified leads (MLII,
    MV1, CM5) are other views of the heart, not aliases of standard leads.
    """
    bare = _REFERENCE.sub("", name.strip())
    for _ in range(2):
        bare = _PREFIX.sub("", bare)
    prefixed = "lead" in name.lower()  # ECG1 and ECG2 are unnamed channels
    lower = bare.lower()
    if lower in _BY_LOWER:
        return _BY_LOWER[lower]
    if lower.isdigit() and not prefixed:
        return None
    return _NUMERALS.get(lower)


def index(names: Sequence[str]) -> dict[str, int]:
    """Row of each canonical lead among these signal names. Raises `ValueError` if a lead occurs twice."""
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        lead = canonical(name)
        if lead is None:
            continue
        if lead in rows:
            raise ValueError(f"lead {lead} occurs twice")
        rows[lead] = row
    return rows


def missing(present: Sequence[str] | dict[str, int], wanted: Sequence[str]) -> list[str]:
    """The wanted leads that are neither present nor derivable from I and II."""
    limb = "I" in present and "II" in present
    return [lead for lead in wanted if lead not in present and not (limb and lead in DERIVED)]


def needed(present: Sequence[str] | dict[str, int], wanted: Sequence[str]) -> list[str]:
    """The present leads that `arrange` needs to produce `wanted`."""
    direct = [lead for lead in wanted if lead in present]
    if len(direct) < len(wanted):
        direct += [lead for lead in ("I", "II") if lead not in direct]
    return direct


def derived(lead: str, one: T, two: T) -> T:
    """The limb lead `lead` of `DERIVED`, computed from leads I and II (arrays or tensors of one shape and unit)."""
    first, second = DERIVED[lead]
    return one * first + two * second


def arrange(x: NDArray[np.float32], names: Sequence[str], wanted: Sequence[str]) -> NDArray[np.float32]:
    """Rows of `x` [names, samples] in the order of `wanted`, missing limb leads derived -> [wanted, samples].

    `names` are canonical. Raises `ValueError` for a lead that is neither present nor derivable.
    """
    if list(names) == list(wanted):
        return x
    rows = {name: row for row, name in enumerate(names)}
    if absent := missing(rows, wanted):
        raise ValueError(f"missing leads {', '.join(absent)}")
    out = np.empty((len(wanted), x.shape[1]), x.dtype)
    for row, lead in enumerate(wanted):
        if lead in rows:
            out[row] = x[rows[lead]]
        else:
            out[row] = derived(lead, x[rows["I"]], x[rows["II"]])
    return out
