"""The state of a build on disk: which shards are finished, according to their stats files."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypedDict

from sharding.plan import Plan
from umbra.errors import UserError
from umbra.files import read_json_as
from umbra.parquet import Table
from umbra.schema import PRIVATE

STATS = "stats"


def stats_path(output: Path, shard: str) -> Path:
    return output / PRIVATE / STATS / f"{shard}.json"


def rows_path(output: Path, shard: str) -> Path:
    return output / PRIVATE / STATS / f"{shard}.parquet"


def records_path(output: Path, shard: str) -> Path:
    """What became of the records of a joined shard."""
    return output / PRIVATE / STATS / f"{shard}.records.parquet"


def failure_path(output: Path, shard: str) -> Path:
    return output / PRIVATE / STATS / f"{shard}.failed"


class Stats(TypedDict):
    """The stats file of a finished shard; `sums`, `squares` and `counts` per lead, `started` in Unix seconds."""

    samples: int
    bytes: int
    sha256: str
    sums: list[int]
    squares: list[int]
    counts: list[int]
    rejected: dict[str, int]
    flags: dict[str, int]
    started: float
    seconds: float


def read_stats(output: Path, shard: str) -> Stats | None:
    """The stats of a finished shard; None if it is not finished: there are none, or they are damaged."""
    path = stats_path(output, shard)
    with contextlib.suppress(UserError):
        return read_json_as(Stats, path, "run the same build again") if path.is_file() else None
    return None


def finished(output: Path, plan: Plan) -> dict[str, Stats]:
    """Stats by shard name. A shard is finished if its stats are whole and its tar has the size stated there."""
    done, leads = {}, len(plan.content.get("leads", []))
    for shard in plan.shards:
        stats = read_stats(output, shard.name)
        if stats is None or {len(stats["sums"]), len(stats["squares"]), len(stats["counts"])} != {leads}:
            continue
        if _size(output / shard.name) == stats["bytes"]:
            done[shard.name] = stats
    return done


def rows(output: Path, shard: str) -> Table:
    """The outcome of each window of a finished shard. Raises `UserError` if the file is missing or damaged."""
    return Table(rows_path(output, shard), f"delete {stats_path(output, shard)} and run the same build again")


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
