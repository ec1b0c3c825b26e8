"""How do planning and the finish scale? `python -m benchmarks.planning [sizes=[100000,1000000,10000000]]`.

Each size is planned in a fresh process from that many synthetic headers (patients with one to four records, twelve
leads, age, sex and codes): everything that a build does before it reads signals, except reading header files, which is
measured separately on WFDB headers written here (last row). The plan is written to disk as in a build. Then another
process runs the finish (tables and manifest) as if every shard had been built and every window kept.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
import types
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sharding import build_state, deidentify, finish, headers, plan, shard, writer
from sharding.options import BuildConfig, validated
from sharding.sources import protocol
from sharding.sources.protocol import Head
from sharding.synthetic import SynthConfig, write
from umbra.config import command, load
from umbra.files import write_text
from umbra.leads import CANONICAL

KEY = deidentify.PseudonymKey(b"k" * 32, "benchmark")
CODES = ("426783006", "164889003", "426177001,39732003", "427084000")


@dataclass
class PlanningConfig:
    """`sizes`: numbers of header entries; `files`: number of header files to read."""

    sizes: list[int] = field(default_factory=lambda: [100_000, 1_000_000, 10_000_000])
    files: int = 4000


def entries(count: int) -> types.ModuleType:
    """A source of `count` records without files."""
    module = types.ModuleType("sharding.sources.entries")

    def check(options: protocol.SourceConfig) -> None:
        pass

    def find(root: Path, without: str, options: protocol.SourceConfig) -> list[str]:
        return [f"part{i // 1000:05d}/record{i:08d}" for i in range(count)]

    def head(root: Path, record: str, options: protocol.SourceConfig) -> Head:
        number = int(record[-8:])
        words = {"age": str(number % 100), "sex": "FM"[number % 2], "codes": CODES[number % 4]}
        return Head(500.0, 5000, list(CANONICAL), [], words | {"patient": f"p{number * 2 // 5}"})

    vars(module).update(check=check, find=find, head=head, ENDINGS=(".entry",))
    return module


def settings(folder: str, count: int) -> BuildConfig:
    """The config of a build of `count` entries, in this process."""
    protocol.FORMATS["entries"] = "sharding.sources.entries"
    sys.modules["sharding.sources.entries"] = entries(count)
    words = [f"input={folder}/in", f"output={folder}/out", "source.format=entries", "samples_per_shard=1000"]
    return validated(load(BuildConfig, None, words))


def plan_entries(folder: str, count: int) -> tuple[float, float, int]:
    """(seconds, peak memory in GiB, shards) of planning in this process."""
    (Path(folder) / "in").mkdir()
    (Path(folder) / "in" / "x").touch()
    config = settings(folder, count)
    started = time.perf_counter()
    known = headers.survey(config, plan.wanted_split)
    found, rows = plan.draw_up(config, KEY, known, None, lambda n: None)
    plan.write_plan(Path(config.output), found, rows)
    seconds = time.perf_counter() - started
    return seconds, peak_gib(), len(found.shards)


def pretend_shards(folder: str) -> None:
    """Writes what built shards leave for the finish if every window is kept, without the tar files."""
    output = Path(folder) / "out"
    for planned in plan.read_plan(output).shards:
        keys = (writer.key(planned.ordinal, i) for i in range(planned.windows))
        shard.write_rows(output, planned, [(i, 0, "", "", key, i) for i, key in enumerate(keys)])
        sums = {name: [1] * len(CANONICAL) for name in ("sums", "squares", "counts")}
        stats = {"samples": planned.windows, "bytes": 0, "sha256": "", "rejected": {}, "flags": {}, **sums}
        write_text(build_state.stats_path(output, planned.name), json.dumps({"name": planned.name, **stats}))


def finish_entries(folder: str, count: int) -> tuple[float, float]:
    """(seconds, peak memory in GiB) of the finish in this process."""
    config, started = settings(folder, count), time.perf_counter()
    finish.finish(Path(config.output), config, plan.read_plan(Path(config.output)))
    return time.perf_counter() - started, peak_gib()


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def read_headers(files: int) -> float:
    """Header files read and described per second, from warm cache."""
    with tempfile.TemporaryDirectory() as folder:
        write(SynthConfig(output=f"{folder}/in", patients=files // 2))
        config = load(BuildConfig, None, [f"input={folder}/in", f"output={folder}/out"])
        known = headers.survey(config, plan.wanted_split)
        headers.describe_all(config, KEY, known, None, lambda n: None)
        started = time.perf_counter()
        headers.describe_all(config, KEY, known, None, lambda n: None)
        return len(known.records) / (time.perf_counter() - started)


def main(words: list[str]) -> None:
    config = load(PlanningConfig, None, words)
    figures: dict[str, dict[str, float]] = {}
    print(f"{'':>12} {'planning':^29} {'':>8} {'finish':^19}")
    print(f"{'entries':>12} {'seconds':>9} {'µs each':>9} {'peak GiB':>9} {'shards':>8} {'seconds':>9} {'peak GiB':>9}")
    fresh = partial(multiprocessing.get_context("spawn").Pool, 1, maxtasksperchild=1)  # peak memory is per task
    for size in config.sizes:
        with tempfile.TemporaryDirectory() as folder, fresh() as pool:
            seconds, gib, shards = pool.apply(plan_entries, (folder, size))
            pool.apply(pretend_shards, (folder,))
            finish_seconds, finish_gib = pool.apply(finish_entries, (folder, size))
        planned = f"{size:>12,} {seconds:>9.1f} {seconds / size * 1e6:>9.1f} {gib:>9.2f} {shards:>8,}"
        print(f"{planned} {finish_seconds:>9.1f} {finish_gib:>9.2f}", flush=True)
        figures[str(size)] = {"seconds": round(seconds, 2), "peak_gib": round(gib, 3)}
        figures[str(size)] |= {"finish_seconds": round(finish_seconds, 2), "finish_peak_gib": round(finish_gib, 3)}
    rate = read_headers(config.files)
    print(f"WFDB headers read and described: {rate:,.0f} files/s on one core")
    print(json.dumps({"planning": figures, "header_files_per_second": round(rate)}))


if __name__ == "__main__":
    command(main)
