"""Is a P wave where cardiologists see one? `python -m benchmarks.pwaves ludb=DIR [rate=100] [lead=ii]`: P waves of
NeuroKit2 alone and those that trainer/evaluate/delineation.py accepts, against the annotations of LUDB, by rhythm.

DIR holds the records of LUDB (Kalyakulina et al. 2020, IEEE Access 8:186181; PhysioNet ludb 1.0.1, ODC-By) as
`1.hea`, `1.dat`, `1.ii`. A found P is right if its peak lies between the annotated onset and offset; beats are those
with an annotated QRS, without the first of a record, whose P may be cut off.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import wfdb
from numpy.typing import NDArray
from scipy.signal import resample_poly

from trainer.evaluate.delineation import Found, accepted_p, find_waves
from umbra.config import check_fields, command, load, setting
from umbra.errors import UserError

NEAR_S = 0.15  # a found R is that of an annotated QRS (ANSI/AAMI EC57)
KINDS = ("NeuroKit2", "accepted")


@dataclass
class PwavesConfig:
    """Which records are delineated, and at which rate."""

    ludb: str = ""
    """The folder of LUDB's records."""
    rate: int = setting(100, ">= 50 and <= 500")
    """Rate in Hz to which the records (500 Hz) are resampled."""
    lead: str = "ii"
    """The lead, as LUDB writes it."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        check_fields(self)
        if not (Path(self.ludb) / f"1.{self.lead}").is_file():
            raise UserError(f"ludb={self.ludb} holds no file 1.{self.lead}: give the folder data/ of LUDB 1.0.1")


@dataclass(frozen=True)
class Annotated:
    """A record: its rhythm, one lead [T] in mV at `rate`; of its beats after the first the R peaks [n] and the ends of
    their P [n, 2] (NaN without P), in seconds."""

    rhythm: str
    signal: NDArray[np.float64]
    rate: float
    r: NDArray[np.float64]
    p: NDArray[np.float64]


def read(folder: Path, number: int, lead: str, rate: int) -> Annotated:
    """Record `number` of LUDB."""
    record = wfdb.rdrecord(str(folder / str(number)))
    marks = wfdb.rdann(str(folder / str(number)), lead)
    time, symbol = marks.sample / record.fs, np.array(marks.symbol)
    r = time[symbol == "N"]
    waves = np.flatnonzero(symbol == "p")
    p = np.full((len(r), 2), np.nan)
    for n in waves[(waves > 0) & (waves < len(time) - 1)]:
        following = np.searchsorted(r, time[n])
        if following < len(r) and (symbol[n - 1], symbol[n + 1]) == ("(", ")"):
            p[following] = time[n - 1], time[n + 1]
    rhythm = next(c.split(":")[1].strip(" .") for c in record.comments if c.startswith("Rhythm"))
    signal = record.p_signal[:, record.sig_name.index(lead)]
    return Annotated(rhythm, resample_poly(signal, rate, record.fs), rate, r[1:], p[1:])


def compare(known: Annotated, found: Found) -> NDArray[np.int64]:
    """[kinds, 4]: P waves that are annotated, found right, found elsewhere; P waves found in beats without P."""
    beat = np.abs(found.r[None] / found.rate - known.r[:, None]).argmin(1)
    met = np.abs(found.r[beat] / found.rate - known.r) <= NEAR_S
    has, peak = np.isfinite(known.p[:, 0]), found.p[beat] / found.rate
    inside = (known.p[:, 0] <= peak) & (peak <= known.p[:, 1])
    rows = []
    for given in (np.isfinite(found.start[0]), accepted_p(found)):
        given = given[beat] & met
        rows.append([has.sum(), (given & has & inside).sum(), (given & has & ~inside).sum(), (given & ~has).sum()])
    return np.array(rows)


def records(cfg: PwavesConfig) -> Iterator[Annotated]:
    for path in sorted(Path(cfg.ludb).glob("*.hea"), key=lambda p: int(p.stem)):
        yield read(path.parent, int(path.stem), cfg.lead, cfg.rate)


def main(argv: list[str]) -> None:
    cfg = load(PwavesConfig, None, argv)
    cfg.check()
    sums: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros((2, 4), np.int64))
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(3, np.int64))  # ECGs, those with P, beats
    failed = 0
    for known in records(cfg):
        found = find_waves(known.signal.astype(np.float32), known.rate)
        if found is None:
            failed += 1
            continue
        sums[known.rhythm] += compare(known, found)
        counts[known.rhythm] += [1, int(accepted_p(found).any()), len(known.r)]
    print(f"LUDB, lead {cfg.lead}, {cfg.rate} Hz; {failed} records could not be delineated")
    print(table(sums, counts))
    own, theirs = np.sum(list(sums.values()), axis=0)
    beats = int(np.sum(list(counts.values()), axis=0)[2])
    print(json.dumps({KINDS[0]: figures(own, beats), KINDS[1]: figures(theirs, beats)}))


def table(sums: dict[str, NDArray[np.int64]], counts: dict[str, NDArray[np.int64]]) -> str:
    """A line a rhythm: what is annotated, then both kinds beside each other."""
    both = " / ".join(KINDS)
    lines = [f"| rhythm | ECGs | with accepted P | P waves | right, {both} | elsewhere | beats without P | given one |"]
    lines += ["|---" * 8 + "|"]
    for rhythm, (own, theirs) in sorted(sums.items()):
        ecgs, having, beats = counts[rhythm]
        pairs = [f"{own[k]} / {theirs[k]}" for k in (1, 2, 3)]
        cells = [rhythm, ecgs, having, own[0], pairs[0], pairs[1], beats - own[0], pairs[2]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def figures(sums: NDArray[np.int64], beats: int) -> dict[str, float]:
    """Shares over all rhythms: of P waves found, of beats without P that got none, of found P waves that are right."""
    there, right, elsewhere, wrong = (int(n) for n in sums)
    shares = {
        "sensitivity": right / there,
        "specificity": 1 - wrong / (beats - there),
        "positive_predictive_value": right / (right + elsewhere + wrong),
    }
    return {name: round(share, 3) for name, share in shares.items()}


if __name__ == "__main__":
    command(main)
