"""Are recordings known again by the fingerprints of their signals, and none taken for another?

`python -m benchmarks.leaks ptbxl=DIR cinc=DIR`: PTB-XL (a folder with its table) and the HR records of PhysioNet/CinC
2021, which are PTB-XL's at 500 Hz under other names (the number is the ecg_id), are both built at 100 and at 500 Hz.
Printed are the distances of PTB-XL's records to themselves after each treatment, to those of other patients, and of
the HR records to their originals and to all others. For HR records whose original is not in DIR the original is made:
lowered to 100 Hz by another filter than ours and rounded to 1 microvolt, as in PTB-XL.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.signal import butter, decimate, resample, resample_poly, sosfiltfilt

from sharding import build as building
from sharding.options import BuildConfig
from trainer.data.shards import Shards
from umbra.config import command, load
from umbra.errors import UserError
from umbra.leads import CANONICAL
from umbra.schema import read_manifest
from umbra.signal_fingerprints import NEAR, NUMBERS, Gathered, distances, leads_of, numbers, of_shard, write

Array = NDArray[np.float64]
RATES = (100, 500)
LEADS = leads_of(CANONICAL)
ROWS = [CANONICAL.index(lead) for lead in LEADS]
SEEN, WANTED = 1_000_000, 10_000  # windows of a large comparison
TAIL = (1e-5, 1e-3)  # shares of the pairs between which the tail is fitted


@dataclass
class LeaksConfig:
    """`ptbxl`: the folder of PTB-XL, with its table; `cinc`: a folder with the records HR* of CinC 2021."""

    ptbxl: str = ""
    cinc: str = ""

    def check(self) -> None:
        """Raises `UserError` for folders that do not hold these records."""
        if not any((Path(self.ptbxl) / name).is_file() for name in ("ptbxl_database.csv", "labels.csv")):
            raise UserError(f"ptbxl={self.ptbxl} holds no ptbxl_database.csv or labels.csv: give the folder of PTB-XL")
        if not any(Path(self.cinc).rglob("HR*.hea")):
            raise UserError(f"cinc={self.cinc} holds no record HR*: give the folder of the CinC 2021 records")


@dataclass(frozen=True)
class Built:
    """A data set: II and V2 in mV [n, 2, samples], kept fingerprints [n, 64], patient codes, numbers in the names;
    `seconds` of CPU time that its build took."""

    rate: int
    signals: Array
    known: NDArray[np.float32]
    patients: NDArray[np.int64]
    ids: NDArray[np.int64]
    seconds: float


def main(words: list[str]) -> None:
    config = load(LeaksConfig, None, words)
    config.check()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hr").mkdir()
        for path in Path(config.cinc).rglob("HR*.*"):
            (folder / "hr" / path.name).symlink_to(path.resolve())
        ptbxl = {rate: built(Path(config.ptbxl), folder / f"ptbxl-{rate}", "ptbxl", rate) for rate in RATES}
        hr = {rate: built(folder / "hr", folder / f"hr-{rate}", "wfdb", rate) for rate in RATES}
    figures = treatments(ptbxl[100]) | others(ptbxl[100]) | hr_records(hr, ptbxl) | costs(ptbxl) | speed()
    print(json.dumps({key: float(f"{value:.4g}") for key, value in figures.items()}))


def built(source: Path, output: Path, kind: str, rate: int) -> Built:
    """All records of `source`, built by `configs/shard/KIND.yaml` into one split."""
    words = [f"input={source}", f"output={output}", f"rate={rate}", "split.train=1", "split.val=0", "split.test=0"]
    started = time.process_time()
    building.build(load(BuildConfig, f"configs/shard/{kind}.yaml", [*words, "labels=[]", "source.public=true"]))
    seconds = time.process_time() - started
    shards, manifest = Shards(output, "train"), read_manifest(output)
    record = {r["key"]: r["record"] for r in pq.read_table(output / "private" / "records.parquet").to_pylist()}
    ids = [int(re.findall(r"\d+", Path(record[key]).name)[0]) for key in shards.table().column("key").to_pylist()]
    parts = [shards.read_mv(rows)[:, ROWS] for rows in np.array_split(np.arange(shards.count), 50) if len(rows)]
    known = np.concatenate([of_shard(output, manifest, shard) for shard in manifest.shards])
    return Built(rate, np.concatenate(parts).astype(np.float64), known, shards.patients(), np.array(ids), seconds)


def fingerprints(x: Array, rate: int) -> NDArray[np.float32]:
    return np.concatenate([numbers(part, rate, LEADS, x.shape[-1] / rate) for part in np.array_split(x, 50)])


# ---- one recording, treated ----


def resampled(up: int, down: int) -> Callable[[Array], Array]:
    return lambda x: resample_poly(x, up, down, axis=-1, padtype="line")


def rounded(microvolt: float) -> Callable[[Array], Array]:
    return lambda x: np.rint(x * 1000 / microvolt) * microvolt / 1000


def shifted(samples: int) -> Callable[[Array], Array]:
    """`samples` later; what was not recorded is the last value."""
    return lambda x: np.concatenate([x[..., samples:], np.repeat(x[..., -1:], samples, axis=-1)], axis=-1)


def high_passed(hertz: float, rate: int) -> Callable[[Array], Array]:
    return lambda x: sosfiltfilt(butter(2, hertz, "highpass", fs=rate, output="sos"), x, axis=-1)


TREATMENTS: dict[str, tuple[int, list[Callable[[Array], Array]]]] = {
    "100 -> 500 Hz": (500, [resampled(5, 1)]),
    "100 -> 500 -> 100 Hz": (100, [resampled(5, 1), resampled(1, 5)]),
    "100 -> 50 Hz": (50, [resampled(1, 2)]),
    "rounded to 5 microvolt": (100, [rounded(5)]),
    "rounded to 20 microvolt": (100, [rounded(20)]),
    "rounded to 100 microvolt": (100, [rounded(100)]),
    "shift of 1 sample": (100, [shifted(1)]),
    "shift of 10 samples": (100, [shifted(10)]),
    "shift of 20 samples": (100, [shifted(20)]),
    "high-pass 0.5 Hz": (100, [high_passed(0.5, 100)]),
    "high-pass 0.67 Hz": (100, [high_passed(0.67, 100)]),
    "0.5 Hz, 10 samples, 50 Hz, 5 microvolt": (
        50,
        [high_passed(0.5, 100), shifted(10), resampled(1, 2), rounded(5)],
    ),
}


def treatments(ptbxl: Built) -> dict[str, float]:
    """Distances of each record to itself, treated."""
    print(f"{len(ptbxl.ids):,} records of PTB-XL at 100 Hz, leads {' and '.join(LEADS)}; one recording up to {NEAR}\n")
    print(f"{'distance to itself':<40}{'median':>8}{'99 %':>8}{'most':>8}{'known':>9}")
    recall = 1.0
    for name, (rate, steps) in TREATMENTS.items():
        x = ptbxl.signals
        for step in steps:
            x = step(x)
        own = np.linalg.norm(fingerprints(x, rate) - ptbxl.known, axis=1)
        recall = float((own <= NEAR).mean())
        print(f"{name:<40}{np.median(own):>8.3f}{np.quantile(own, 0.99):>8.3f}{own.max():>8.3f}{recall:>9.2%}")
    return {"recall_all_at_once": recall}


# ---- different recordings ----


def pairs(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt(np.maximum(2 - 2 * one @ other.T, 0))


def others(ptbxl: Built) -> dict[str, float]:
    """Distances to the records of other patients, and to other records of the patient."""
    apart = pairs(ptbxl.known, ptbxl.known)
    same = ptbxl.patients[:, None] == ptbxl.patients
    upper = np.triu(np.ones_like(same), 1)
    found = np.sort(apart[upper & ~same])
    nearest = np.sort(np.where(same, 9, apart).min(axis=1))
    print(f"\n{len(found):,} pairs of records of two patients: share of the pairs that are nearer")
    for share in (0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.5):
        print(f"{share:>40g}{found[int(share * len(found))]:>8.3f}")
    print("nearest record of another patient: share of the records that have one nearer")
    for share in (0, 0.01, 0.1, 0.5, 0.9):
        print(f"{share:>40g}{nearest[int(share * len(nearest))]:>8.3f}")
    again = apart[upper & same]
    print(f"{len(again)} pairs of records of one patient: nearest {again.min():.3f}, {(again <= NEAR).sum()} matches")
    low, high = (found[int(share * len(found))] for share in TAIL)
    slope = np.log(TAIL[1] / TAIL[0]) / np.log(high / low)
    share = TAIL[0] * (NEAR / low) ** slope
    expected = share * SEEN * WANTED
    print(
        f"the tail falls as distance^{slope:.1f}: {share:.1e} of the pairs at {NEAR}, "
        f"{expected:.2g} false matches of {WANTED:,} windows among {SEEN:,}"
    )
    false = int((found <= NEAR).sum())
    return {"nearest_other": float(found[0]), "false_pairs": false, "expected_false_in_1e10_pairs": float(expected)}


# ---- the HR records ----

LOWERED: dict[str, Callable[[Array], Array]] = {
    "Fourier": lambda x: resample(x, x.shape[-1] // 5, axis=-1),
    "Chebyshev": lambda x: decimate(x, 5, axis=-1),
    "moving mean": lambda x: x.reshape(*x.shape[:-1], -1, 5).mean(axis=-1),
}


def hr_records(hr: dict[int, Built], ptbxl: dict[int, Built]) -> dict[str, float]:
    """HR records against their originals, or those made in their stead, and against all other records."""
    there = np.isin(hr[500].ids, ptbxl[100].ids)
    print(f"\n{len(there)} HR records; the originals of {there.sum()} are among the records of PTB-XL")
    recalled, asked = 0, 0
    for rate, own in hr.items():
        for of, theirs in ptbxl.items():
            apart = pairs(own.known, theirs.known)
            originals = own.ids[:, None] == theirs.ids
            strangers = np.where(originals, 9, apart)
            known, false = (int((x <= NEAR).sum()) for x in (apart[originals], strangers))
            print(
                f"HR at {rate} Hz, PTB-XL at {of} Hz: {known} of {there.sum()} originals known; {false} false matches "
                f"in {(~originals).sum():,} pairs, nearest {strangers.min():.3f}"
            )
    for name, lower in LOWERED.items():
        original = rounded(1)(lower(hr[500].signals))
        for of, x in ((100, original), (500, resampled(5, 1)(original))):
            for rate, own in hr.items():
                apart = np.linalg.norm(fingerprints(x, of) - own.known, axis=1)
                recalled, asked = recalled + int((apart <= NEAR).sum()), asked + len(apart)
                print(
                    f"HR at {rate} Hz, originals made by {name} at {of} Hz: {(apart <= NEAR).sum()} of {len(apart)} "
                    f"known, farthest {apart.max():.3f}"
                )
    return {"hr_originals": int(there.sum()), "hr_recall_made_originals": recalled / asked}


def costs(ptbxl: dict[int, Built]) -> dict[str, float]:
    """CPU time of the fingerprints of a build, as a share of the rest of it."""
    found = {}
    print()
    for rate, of in ptbxl.items():
        units = np.rint(of.signals * 1000).astype(np.int16)
        started = time.process_time()
        gathered = Gathered(LEADS, float(rate))
        for window in units:
            gathered.add(window)
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), "shard", "", gathered.all(), LEADS)
        own = time.process_time() - started
        found[f"build_share_{rate}"] = own / (of.seconds - own)
        pace = len(units) / of.seconds
        print(f"build at {rate} Hz: {pace:,.0f} records a CPU second, {own / of.seconds:.1%} of it for fingerprints")
    return found


def speed() -> dict[str, float]:
    """Seconds to compare `WANTED` windows with `SEEN`, by a tenth of the latter."""
    rng = np.random.default_rng(0)
    wanted, seen = (rng.standard_normal((n, NUMBERS), np.float32) / np.float32(8) for n in (WANTED, SEEN // 10))
    started = time.perf_counter()
    distances(wanted, [seen])
    seconds = 10 * (time.perf_counter() - started)
    print(f"\n{WANTED:,} windows against {SEEN:,}: {seconds:.0f} s (measured on a tenth of the latter)")
    return {"seconds_1e10_pairs": seconds}


if __name__ == "__main__":
    sys.argv[0] = "benchmarks.leaks"
    command(main)
