"""How much of P, QRS, T, of what lies between them and of noise there masks hide, against chance.

A wave's lift is the fraction of it that is hidden, divided by the hidden fraction of the whole ECG: 1 is chance, 1.5 is
50 % more; a group of ECGs without the wave has no lift on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.delineation import WAVES, Delineation
from trainer.evaluate.scores import interval, patient_resamples

LEAST_ECGS = 10  # of a group with a wave, for a lift
LEAST_SHARE = np.array([0.2, 0.2, 0.2, 0.2, 0.0, 0.0])  # of the group as well: waves that few have are mostly errors
Bools = NDArray[np.bool_]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Lift:
    """One row: `lift` of a wave under one kind of mask, its 95 % interval by patients, over `ecgs` ECGs of `group`.

    The wave is in `found` of their `beats` and in `ecgs_with` of the ECGs; NaN if too few ECGs have it.
    """

    group: str
    masks: str
    wave: str
    lift: float
    low: float
    high: float
    ecgs: int
    ecgs_with: int
    found: int
    beats: int


@dataclass(frozen=True)
class Ecgs:
    """n ECGs and their waves: `samples` [n, 7], those of the ECG and of each of the six `WAVES`; `count` int [n, 6]:
    how many of these there are; `beats` and `patient` int [n]; `groups`: which ECGs are of each group, bool [n]."""

    samples: Array
    count: NDArray[np.int64]
    beats: NDArray[np.int64]
    patient: NDArray[np.int64]
    groups: Mapping[str, Bools]


def ecgs_of(found: Sequence[Delineation], patient: NDArray[np.int64], groups: Mapping[str, Bools]) -> Ecgs:
    """Delineated ECGs, with the patient and the groups of each."""
    every = np.ones((len(found), found[0].waves.shape[1]), np.float32)
    count, beats = np.array([d.count for d in found]), np.array([d.beats for d in found])
    return Ecgs(counted(every, found), count, beats, patient, groups)


def joined(parts: Sequence[Ecgs]) -> Ecgs:
    """The ECGs of all parts; those of a part that lacks a group are not of it."""
    names = dict.fromkeys(name for part in parts for name in part.groups)
    none = [np.zeros(len(part.patient), bool) for part in parts]
    return Ecgs(
        np.concatenate([part.samples for part in parts]),
        np.concatenate([part.count for part in parts]),
        np.concatenate([part.beats for part in parts]),
        np.concatenate([part.patient for part in parts]),
        {name: np.concatenate([part.groups.get(name, no) for part, no in zip(parts, none)]) for name in names},
    )


def counted(masks: NDArray[np.float32], found: Sequence[Delineation]) -> Array:
    """How many samples masks [n, T] (1: hidden) hide of each ECG and of each of its waves, [n, 7]."""
    inside = [(d.waves * mask).sum(1, dtype=np.float64) for mask, d in zip(masks, found)]
    return np.column_stack([masks.sum(1, dtype=np.float64), np.stack(inside)])


def lifts(
    hidden: Array, samples: Array, patient: NDArray[np.int64], bootstrap: int
) -> tuple[Array, list[tuple[float, float]]]:
    """The lift of each wave [6], and its 95 % interval by patients, where `hidden` [S, n, 7] of `samples` [n, 7] are.

    Ratios of sums over the n ECGs, the mean over S runs.
    """

    def ratios(weight: NDArray[np.float64]) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (weight @ hidden) / (weight @ samples)  # [S, resamples, 7]
            return np.asarray((share[..., 1:] / share[..., :1]).mean(0))

    resampled = [ratios(w.astype(np.float64)) for w in patient_resamples(patient, bootstrap, 0)]
    return ratios(np.ones((1, len(patient))))[0], [interval(v) for v in np.concatenate(resampled).T]


def rows(ecgs: Ecgs, hidden: Mapping[str, Array], bootstrap: int) -> list[Lift]:
    """The lifts of all ECGs and of each group of at least `LEAST_ECGS`. `hidden` [S, n, 7]: by kind of mask."""
    groups = {name: of for name, of in sorted(ecgs.groups.items()) if of.sum() >= LEAST_ECGS}
    found = []
    for group, some in {"all": np.ones(len(ecgs.patient), bool), **groups}.items():
        count, beats = ecgs.count[some], int(ecgs.beats[some].sum())
        having = (count > 0).sum(0)
        enough = having >= np.minimum(len(count), np.maximum(LEAST_ECGS, LEAST_SHARE * len(count)))
        for kind, of in hidden.items():
            values, ends = lifts(of[:, some], ecgs.samples[some], ecgs.patient[some], bootstrap)
            for w, wave in enumerate(WAVES):
                told = (float(values[w]), *ends[w]) if enough[w] else (math.nan,) * 3
                found.append(Lift(group, kind, wave, *told, len(count), int(having[w]), int(count[:, w].sum()), beats))
    return found


def markdown(found: Sequence[Lift]) -> str:
    """One table per group: a row per kind of mask, a column per wave; a cell is empty if too few ECGs have the wave."""
    parts = []
    for group in dict.fromkeys(row.group for row in found):
        mine = [row for row in found if row.group == group]
        lines = [heading(mine[0]), ""]
        lines += ["| masks | " + " | ".join(WAVES) + " |", "|---" * (1 + len(WAVES)) + "|"]
        for kind in dict.fromkeys(row.masks for row in mine):
            lines.append(f"| {kind} | " + " | ".join(cell(row) for row in mine if row.masks == kind) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def heading(p: Lift) -> str:
    """What stands above the table of a group, from its row of P."""
    said = f"{p.group}: {p.ecgs} ECGs; hidden fraction of a wave / hidden fraction of the whole ECG"
    return f"{said}\n\nUpright P waves in {p.found} of {p.beats} beats, in {p.ecgs_with} of {p.ecgs} ECGs"


def cell(row: Lift) -> str:
    """A lift and its interval; empty if too few ECGs have the wave."""
    return f"{row.lift:.2f} ({row.low:.2f} to {row.high:.2f})" if math.isfinite(row.lift) else ""
