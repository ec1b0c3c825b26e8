"""Progress of a build: progress bars, the table of rejection reasons, and the status from the shards' stats files."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sharding import equal
from sharding.build_state import failure_path, finished
from sharding.options import FLAGS, REASONS, padding_advice
from sharding.plan import Plan, read_plan
from umbra.files import TEMPORARY, left_over
from umbra.schema import MANIFEST


def bar(total: int | None, unit: str, description: str) -> Any:
    """A progress bar on stderr: updated in place on a terminal, one line every 10 s in a log."""
    pace = {} if sys.stderr.isatty() else {"mininterval": 10.0, "ascii": True, "ncols": 100}
    return tqdm(total=total, unit=unit, desc=description, dynamic_ncols=not pace, **pace)


def reasons_table(kept: int, rejected: Mapping[str, int], flags: Mapping[str, int]) -> str:
    """Kept windows, rejected ones by reason, and flags of kept ones, one per line."""
    total = kept + sum(rejected.values())
    rows = [("kept", kept, "windows written")]
    rows += [
        (f"rejected: {r}", n, REASONS.get(r, "")) for r, n in sorted(rejected.items(), key=lambda x: (-x[1], x[0]))
    ]
    rows += [(f"  kept, {f}", n, FLAGS.get(f, "")) for f, n in sorted(flags.items())]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"  {name:<{width}} {n:>9,} {100 * n / max(total, 1):5.1f} %  {why}" for name, n, why in rows)


def remarks(plan: Plan, flags: Mapping[str, int] | None = None) -> list[str]:
    """Notes for the user on unknown words, unlisted files and the `flags` of kept windows, one line each."""
    lines = []
    if still := (flags or {}).get("still_ends", 0):
        lines.append(f"{still:,} kept windows look padded: {padding_advice(plan.content.get('source', {}))}")
    if plan.codes_left_out:
        lines.append(
            f"{plan.codes_left_out:,} words in code fields are not known codes and are left out: the most frequent are "
            "in private/plan.json (unknown_words); source.vocabulary allows them"
        )
    if plan.sexes_unknown:
        words = "unknown words are in private/plan.json (unknown_words); source.table.sex_values maps them"
        where = f": {words}" if plan.unknown_words.get("sex") else ""
        lines.append(f"{plan.sexes_unknown:,} usable records have no known sex{where}")
    if plan.unlisted:
        lines.append(
            f"{plan.unlisted:,} records in the input folder are not in its table and are left out: private/plan.json "
            "lists up to three (unlisted_examples)"
        )
    return lines + plan.notes


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of these (start, end) times in seconds: the time in which any shard was being written."""
    busy, until = 0.0, -math.inf
    for start, end in sorted(spans):
        busy += max(end - max(start, until), 0.0)
        until = max(until, end)
    return busy


def status(output: Path) -> str:
    """What is done, running, failed and left, with the speed and the remaining time."""
    plan = read_plan(output)
    done, joined = finished(output, plan), "join" in plan.content
    running = {p.name.partition(TEMPORARY)[0] for p in output.glob(f"*.tar{TEMPORARY}*") if not left_over(p)}
    failures = {s.name: failure_path(output, s.name) for s in plan.shards if s.name not in done}
    failed = {name: path.read_text(errors="replace").strip() for name, path in failures.items() if path.is_file()}
    records = sum(s.records for s in plan.shards if s.name in done)
    total = sum(s.records for s in plan.shards)
    lines = [
        f"{output}: {'complete' if (output / MANIFEST).is_file() else 'not complete'}",
        f"  shards   {len(done)} of {len(plan.shards)} done, {len(running)} being written, {len(failed)} failed",
        f"  samples  {records:,} of {total:,} done"
        if joined
        else f"  records  {records:,} of {total:,} done; {plan.records - total:,} rejected by their headers",
    ]
    if done and records < total:
        seconds = max(busy_seconds([(s["started"], s["started"] + s["seconds"]) for s in done.values()]), 1e-3)
        left = (total - records) / records * seconds / 60
        lines.append(
            f"  pace     {records / seconds:,.0f} {'samples' if joined else 'records'}/s, about {left:.0f} min left"
        )
    lines += [f"  failed   {name}: {why}" for name, why in sorted(failed.items())[:5]]
    rejected: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for stats in done.values():
        rejected.update(stats["rejected"])
        flags.update(stats["flags"])
    lines.append(reasons_table(sum(s["samples"] for s in done.values()), rejected, flags))
    lines += [f"  {line}" for line in (*remarks(plan, flags), *equal.remarks(output))]
    return "\n".join(lines)
