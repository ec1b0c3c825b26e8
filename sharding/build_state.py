"""The state of a build on disk: which shards are finished, according to their stats files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sharding.plan import Plan
from umbra.schema import PRIVATE

STATS = "stats"


def stats_path(output: Path, shard: str) -> Path:
    return output / PRIVATE / STATS / f"{shard}.json"


def rows_path(output: Path, shard: str) -> Path:
    return output / PRIVATE / STATS / f"{shard}.parquet"


def failure_path(output: Path, shard: str) -> Path:
    return output / PRIVATE / STATS / f"{shard}.failed"


def read_stats(output: Path, shard: str) -> dict[str, Any] | None:
    """The stats of a finished shard; None if it is not finished."""
    try:
        return json.loads(stats_path(output, shard).read_text())
    except FileNotFoundError:
        return None


def finished(output: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Stats by shard name. A shard is finished if its stats exist and its tar has the size stated there."""
    done = {}
    for shard in plan.shards:
        stats = read_stats(output, shard.name)
        if stats is not None and _size(output / shard.name) == stats["bytes"]:
            done[shard.name] = stats
    return done


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
