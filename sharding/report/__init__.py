"""The data set report: one page, `private/report/index.html`, that reveals wrong units and leads.

It contains record names and signals, so it stays in `private/`. Signals are analysed in a seeded random sample of at
most 2,000 windows, read through the shards' fixed stride: time and memory do not grow with the data set.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sharding import equal, progress
from sharding.options import FLAGS, padding_advice
from sharding.plan import PLAN_JSON, read_plan
from sharding.report.examples import examples
from sharding.report.page import by_size, render
from sharding.report.pictures import draw_ecg, draw_histograms
from sharding.report.signals import TYPICAL_BPM, TYPICAL_MV, Measured, findings, measure, numbers, windows
from sharding.report.tables import Counts, count, rejections, rows_at
from umbra.errors import UserError
from umbra.files import write_text
from umbra.schema import PRIVATE, SAMPLES, SPLITS, Manifest, read_manifest

ECGS = 12
MAX_SOURCES = 12
PADDED_SHARE = 0.01


def summary(output: Path) -> dict[str, Any]:
    """All numbers of the report: counts, rejections by reason, statistics of each source, `findings`.

    Raises `UserError` if the data set is not complete.
    """
    manifest = read_manifest(output)
    counts = count(output, manifest)
    measured = {name: measure(output, manifest, rows) for name, rows in counts.picked.items()}
    return _summary(output, manifest, counts, measured)


def _summary(output: Path, manifest: Manifest, counts: Counts, measured: Mapping[str, Measured]) -> dict[str, Any]:
    rejected = rejections(output)
    plan = read_plan(output) if (output / PRIVATE / PLAN_JSON).is_file() else None
    of_sources = {name: numbers(m, manifest.leads) for name, m in measured.items()}
    return {
        "windows": counts.split.total(),
        "patients": counts.patients.total(),
        "shards": len(manifest.shards),
        "rate": manifest.rate,
        "seconds": manifest.samples / manifest.rate,
        "leads": manifest.leads,
        "splits": {
            s: {"windows": counts.split[s], "patients": counts.patients[s], "shards": counts.shards[s]}
            for s in SPLITS
            if counts.shards[s]
        },
        "counts": {kind: dict(getattr(counts, kind)) for kind in ("source", "sex", "age", "codes")},
        "rejected": None if rejected is None else dict(rejected[0]),
        "flags": manifest.counts.get("flags"),  # None: built before they were counted
        "sources": of_sources,
        "findings": [
            *_padding(manifest, (plan.content if plan else manifest.config).get("source", {})),
            *findings(of_sources, manifest.samples / manifest.rate),
            *equal.remarks(output),
        ],
        "equal_signals": equal.count(output),
        "notes": progress.remarks(plan) if plan else [],
    }


def _padding(manifest: Manifest, source: Mapping[str, Any]) -> list[str]:
    """The finding of a data set in which the build met padding in more than `PADDED_SHARE` of the windows; `source`:
    the build's, of which the manifest has a part only."""
    windows, still = sum(s.samples for s in manifest.shards), manifest.counts.get("flags", {}).get("still_ends", 0)
    if still <= PADDED_SHARE * windows:
        return []
    advice = padding_advice(source)
    return [f"in {100 * still / windows:.0f} % of the windows {FLAGS['still_ends']} What to do: {advice}."]


def report(output: Path, input: Path | None = None) -> Path:
    """Writes `private/report/index.html` and its PNGs and returns the page's path; equal data give equal bytes.

    With `input`, the folder that the data set was built from, rejected records are read again and plotted. Raises
    `UserError` if the data set is not complete or `input` is not a folder.
    """
    if input is not None and not input.is_dir():
        raise UserError(f"input={input} is not a folder: give the one that the data set was built from")
    manifest = read_manifest(output)
    if input is not None and "parts" in manifest.config:
        raise UserError(
            f"input={input}: {output} was joined and has no one input; draw a report of the part with its input"
        )
    counts = count(output, manifest)
    measured = {name: measure(output, manifest, rows) for name, rows in counts.picked.items()}
    found = _summary(output, manifest, counts, measured)
    folder = output / PRIVATE / "report"
    for old in folder.glob("*.png"):
        old.unlink()
    largest = [name for name, _ in by_size(counts.source)[:MAX_SOURCES]]
    shown = {name: measured[name] for name in largest}
    sizes = {name: m.peak_to_peak.ravel() for name, m in shown.items()}
    draw_histograms(
        folder / "amplitude.png", sizes, np.geomspace(0.03, 30, 91), "peak-to-peak amplitude of a lead, mV", TYPICAL_MV
    )
    rates = {name: m.bpm for name, m in shown.items()}
    draw_histograms(
        folder / "heart-rate.png", rates, np.arange(20, 241, 4.0), "heart rate, beats per minute", TYPICAL_BPM
    )
    ecgs = _sample_ecgs(output, folder, manifest, counts)
    rejected = rejections(output)
    drawn = examples(folder, read_plan(output), input, rejected[1]) if input is not None and rejected else None
    page = folder / "index.html"
    write_text(page, render(folder, manifest, found, {n: found["sources"][n] for n in largest}, ecgs, drawn))
    return page


def _sample_ecgs(output: Path, folder: Path, manifest: Manifest, counts: Counts) -> list[tuple[str, str]]:
    """Plots some windows, taken from all sources in turn -> (PNG, caption) of each."""
    in_turn = itertools.zip_longest(*(counts.picked[name].tolist() for name, _ in by_size(counts.source)))
    rows = sorted(itertools.islice((row for turn in in_turn for row in turn if row is not None), ECGS))
    described = rows_at(output / SAMPLES, rows)
    signals = itertools.chain.from_iterable(windows(output, manifest, np.array(rows)))
    out = []
    for number, (row, units) in enumerate(zip(rows, signals), 1):
        name, words = f"ecg-{number:02d}.png", described[row]
        mv = units.astype(np.float32) * np.float32(manifest.resolution_uv / 1000.0)
        draw_ecg(folder / name, mv, manifest.rate, manifest.leads)
        age = "" if words["age"] is None or np.isnan(words["age"]) else f"{words['age']:.0f} years"
        place = f"{words['key']}, {manifest.shards[words['shard']].split}"
        known = [words["source"], words["sex"], age, " ".join(words["codes"] or [])]
        out.append((name, " · ".join([place, *(str(k) for k in known if k)])))
    return out
