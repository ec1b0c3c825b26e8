"""How fast are recordings turned into shards? `python -m benchmarks.sharding [seconds=20]`.

WFDB records (12 leads, 10 s, written here) are linked into enough folders to keep one worker busy for `seconds`, and
built: at 100 Hz without resampling, and from 500 to 250 Hz. The baseline is the usual loop: `wfdb.rdrecord`,
`scipy.signal.resample_poly` if it resamples, `webdataset.ShardWriter`. Imports are not timed on either side.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sharding import build as building
from sharding.options import BuildConfig
from sharding.synthetic import SynthConfig, write
from umbra.config import command, load

WARM_UP = 200


@dataclass
class ShardingConfig:
    """`seconds`: target time of one worker on each side; `patients`: number of patients whose records are written."""

    seconds: float = 20.0
    patients: int = 250


@dataclass
class Sides:
    """Records per second of the plain loop, of one worker and of two."""

    plain: float
    one: float
    two: float


def main(words: list[str]) -> None:
    config = load(ShardingConfig, None, words)
    with tempfile.TemporaryDirectory() as folder:
        copy = measure(config, Path(folder) / "100", 100, 100)
        resample = measure(config, Path(folder) / "500", 500, 250)
    print(f"{'':>14} {'plain loop':>11} {'one worker':>11} {'two workers':>12}   records/s")
    for name, sides in (("100 -> 100 Hz", copy), ("500 -> 250 Hz", resample)):
        print(f"{name:>14} {sides.plain:>11,.0f} {sides.one:>11,.0f} {sides.two:>12,.0f}")
    figures = {
        "speedup_copy": copy.one / copy.plain,
        "speedup_resample": resample.one / resample.plain,
        "speedup_two_workers": min(copy.two / copy.one, resample.two / resample.one),
    }
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def measure(config: ShardingConfig, folder: Path, rate: int, target: int) -> Sides:
    base = folder / "base"
    write(SynthConfig(output=str(base), patients=config.patients, rate=float(rate)))
    records = sorted(p.with_suffix("") for p in base.rglob("*.hea"))
    build(base, folder / "warm", target, 1)
    pace = build(base, folder / "pace", target, 1)
    root = repeated(base, folder / "in", max(round(pace * config.seconds / len(records)), 1))
    one = build(root, folder / "one", target, 1)
    two = build(root, folder / "two", target, 2)
    return Sides(plain(records, folder / "plain", rate, target, config.seconds), one, two)


def repeated(base: Path, root: Path, times: int) -> Path:
    """Hard links to the files of `base` in `times` folders."""
    for i in range(times):
        for path in base.rglob("*.*"):
            link = root / f"{i:04d}" / path.relative_to(base)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link)
    return root


def build(root: Path, output: Path, target: int, workers: int) -> float:
    """Records per second of a whole build: headers, plan, shards, tables, manifest."""
    words = [f"input={root}", f"output={output}", f"rate={target}", f"workers={workers}", "source.public=true"]
    config = load(BuildConfig, None, [*words, "samples_per_shard=500"])
    with building.worker_pool(workers) as pool:
        if pool is not None:
            list(pool.map(time.sleep, [0.5] * workers))  # until the workers have finished their imports
        started = time.perf_counter()
        outcome = building.build(config, pool)
        return outcome.kept / (time.perf_counter() - started)


def plain(records: list[Path], output: Path, rate: int, target: int, seconds: float) -> float:
    """Records per second of the plain loop, cycling through the same records."""
    import webdataset as wds
    import wfdb
    from scipy.signal import resample_poly

    output.mkdir()
    count, started = 0, 0.0
    with wds.ShardWriter(str(output / "shard-%06d.tar"), maxcount=500, verbose=0) as sink:
        while not started or time.perf_counter() - started < seconds:
            if count == WARM_UP:
                started = time.perf_counter()
            record = wfdb.rdrecord(str(records[count % len(records)]))
            x = record.p_signal.T
            if rate != target:
                x = resample_poly(x, target, rate, axis=-1)
            ecg = np.rint(x * 1000).astype(np.int16)
            sink.write({"__key__": f"{count:09d}", "ecg.npy": ecg, "meta.json": {"comments": record.comments}})
            count += 1
    return (count - WARM_UP) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.argv[0] = "benchmarks.sharding"
    command(main)
