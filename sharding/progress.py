"""How far a build is: progress bars, the table of reasons, and what the shards' stats files tell."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sharding.build_state import failure_path, finished
from sharding.options import FLAGS, REASONS, padding_advice
from sharding.plan import Plan, read_plan
from umbra.files import TEMPORARY, left_over
from umbra.schema import MANIFEST


def bar(total: int | None, unit: str, description: str) -> Any:
    """A progress bar on stderr: lively on a terminal, a line every 10 s in a log."""
    pace = {} if sys.stderr.isatty() else {"mininterval": 10.0, "ascii": True, "ncols": 100}
    return tqdm(total=total, unit=unit, desc=description, dynamic_ncols=not pace, **pace)


def reasons_table(kept: int, rejected: Mapping[str, int], flags: Mapping[str, int]) -> str:
    """Kept windows, rejected ones by reason, and the remarks on kept ones, one a line."""
    total = kept + sum(rejected.values())
    rows = [("kept", kept, "windows written")]
    rows += [
        (f"rejected: {r}", n, REASONS.get(r, "")) for r, n in sorted(rejected.items(), key=lambda x: (-x[1], x[0]))
    ]
    rows += [(f"  kept, {f}", n, FLAGS.get(f, "")) for f, n in sorted(flags.items())]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join(f"  {name:<{width}} {n:>9,} {100 * n / max(total, 1):5.1f} %  {why}" for name, n, why in rows)


def remarks(plan: Plan, flags: Mapping[str, int] | None = None) -> list[str]:
    """What a user should know of the input's words and files, and of the `flags` of kept windows, a line each."""
    lines = []
    if still := (flags or {}).get("still_ends", 0):
        lines.append(f"{still:,} kept windows look padded: {padding_advice(plan.content['source']['format'])}")
    if plan.codes_left_out:
        lines.append(
            f"{plan.codes_left_out:,} words in code fields are no known codes and stay behind: the most frequent are "
            "in private/plan.json (unknown_words), and source.vocabulary lets them in"
        )
    if plan.sexes_unknown:
        lines.append(
            f"{plan.sexes_unknown:,} usable records have no known sex: words that are none are in private/plan.json "
            "(unknown_words), and source.table.sex_values translates them"
        )
    if plan.unlisted:
        lines.append(
            f"{plan.unlisted:,} records below the input are in no row of its table and are left out: private/plan.json "
            "names three (unlisted_examples)"
        )
    return lines + plan.notes


def status(output: Path) -> str:
    """What is done, running, failed and left, with the rate and the time to go."""
    plan = read_plan(output)
    done = finished(output, plan)
    running = {p.name.partition(TEMPORARY)[0] for p in output.glob(f"*.tar{TEMPORARY}*") if not left_over(p)}
    failures = {s.name: failure_path(output, s.name) for s in plan.shards if s.name not in done}
    failed = {name: path.read_text().strip() for name, path in failures.items() if path.is_file()}
    records = sum(s.records for s in plan.shards if s.name in done)
    total = sum(s.records for s in plan.shards)
    lines = [
        f"{output}: {'complete' if (output / MANIFEST).is_file() else 'not complete'}",
        f"  shards   {len(done)} of {len(plan.shards)} done, {len(running)} being written, {len(failed)} failed",
        f"  records  {records:,} of {total:,} done; {plan.records - total:,} rejected by their headers",
    ]
    if done and records < total:
        first = min(s["started"] for s in done.values())
        seconds = max(time.time() - first, 1e-3)
        left = (total - records) / records * seconds / 60
        lines.append(f"  pace     {records / seconds:,.0f} records/s, about {left:.0f} min left")
    lines += [f"  failed   {name}: {why}" for name, why in sorted(failed.items())[:5]]
    rejected: Counter[str] = Counter()
    flags: Counter[str] = Counter()
    for stats in done.values():
        rejected.update(stats["rejected"])
        flags.update(stats["flags"])
    lines.append(reasons_table(sum(s["samples"] for s in done.values()), rejected, flags))
    lines += [f"  {line}" for line in remarks(plan, flags)]
    return "\n".join(lines)
