"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharding.options import FLAGS, REASONS
from sharding.report.examples import Example
from sharding.report.signals import QRS_SIGNS, RESIDUAL
from umbra import leads
from umbra.drawing.webpage import Bar, Cell, Words, document, escaped, image, table, tiles
from umbra.schema import Manifest

TOP_CODES = 30


def render(
    folder: Path,
    manifest: Manifest,
    found: Mapping[str, Any],
    shown: Mapping[str, Mapping[str, Any]],
    ecgs: Sequence[tuple[str, str]],
    drawn: Mapping[str, Sequence[Example]] | None,
) -> str:
    name = str(manifest.config.get("source", {}).get("name", "data set"))
    sections = {
        "Contents": _contents(found),
        "Rejected": _rejected(folder, found, drawn),
        "Amplitude": _amplitude(folder, shown, found),
        "Heart rate": _heart_rate(folder, shown),
        "Leads": _leads(shown),
        "Sample ECGs": _ecgs(folder, ecgs),
    }
    links = "".join(f'<a href="#{_id(title)}">{title}</a>' for title in sections)
    body = "".join(f'<h2 id="{_id(title)}">{title}</h2>{text}' for title, text in sections.items())
    versions = ", ".join(f"{k} {v}" for k, v in sorted(manifest.versions.items()))
    return document(
        f"{name}: data set report",
        f"<h1>{escaped(name)}</h1>"
        f"<p class=soft>Data set report, fingerprint <code>{escaped(manifest.fingerprint)}</code>. "
        "This page contains record names and signals: keep it in <code>private/</code>.</p>"
        f"<nav>{links}</nav>{_headline(manifest, found)}{_findings(found)}{_notes(found)}{body}"
        f"<p class=soft style='margin-top:3rem'>Built with {escaped(versions)}.</p>",
    )


def _headline(manifest: Manifest, found: Mapping[str, Any]) -> str:
    figures = [
        (f"{found['windows']:,}", f"windows of {found['seconds']:g} s"),
        (f"{found['patients']:,}", "patients" if manifest.patient_ids else "records, each its own patient"),
        (f"{found['shards']:,}", f"shards, {_size(sum(s.bytes for s in manifest.shards))}"),
        (f"{found['rate']:g} Hz", f"{manifest.resolution_uv:g} µV per step"),
        (f"{len(found['leads'])} leads", " ".join(found["leads"])),
    ]
    rows = [
        [s, Bar(n["windows"] / found["windows"]), *(f"{n[k]:,}" for k in ("windows", "patients", "shards"))]
        for s, n in found["splits"].items()
    ]
    return f"{tiles(figures)}{table(['split', '', 'windows', 'patients', 'shards'], rows)}"


def _size(count: int) -> str:
    power = min(len(str(count)) - 1, 14) // 3
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _findings(found: Mapping[str, Any]) -> str:
    sampled = sum(n["sampled"] for n in found["sources"].values())
    padding = "" if found["flags"] is None else "padding, "
    what = f"{padding}units, leads and heart rates of {sampled:,} windows drawn at random"
    if not found["findings"]:
        return f"<div class=note><b>Nothing looks wrong</b> in {what}.</div>"
    listed = "".join(f"<li>{escaped(line)}</li>" for line in found["findings"])
    return f"<div class='note bad'><b>Check this first</b> ({what}):<ul>{listed}</ul></div>"


def _notes(found: Mapping[str, Any]) -> str:
    """What the build said in the terminal."""
    return "".join(f"<p class=soft>{escaped(line)}.</p>" for line in found["notes"])


def _contents(found: Mapping[str, Any]) -> str:
    counts = found["counts"]
    ages = sorted(
        counts["age"].items(), key=lambda cell: (cell[0] == "unknown", cell[0] == "90+", len(cell[0]), cell[0])
    )
    codes = by_size(counts["codes"])
    more = f", the {TOP_CODES} most frequent of {len(codes)}" if len(codes) > TOP_CODES else ""
    tables = [
        _counted("Source", by_size(counts["source"]), found["windows"]),
        _counted("Sex", by_size(counts["sex"]), found["windows"]),
        _counted("Age, years", ages, found["windows"]),
        _counted(f"Code{more}", codes[:TOP_CODES], found["windows"]),
    ]
    left, right = "".join(tables[:3]), tables[3]
    return (
        f"<p class=soft>Windows; a window may have several codes.</p><div class=columns><div>{left}</div>{right}</div>"
    )


def _counted(title: str, cells: Sequence[tuple[str, int]], total: int) -> str:
    most = max((n for _, n in cells), default=1)
    rows = [[cell, Bar(n / most), f"{n:,}", f"{100 * n / max(total, 1):.1f} %"] for cell, n in cells]
    return table(["", "", "windows", ""], rows, title) if rows else f"<h3>{escaped(title)}</h3><p class=soft>none</p>"


def _rejected(folder: Path, found: Mapping[str, Any], drawn: Mapping[str, Sequence[Example]] | None) -> str:
    if found["rejected"] is None:
        return "<p><code>private/records.parquet</code> is missing, so rejections are unknown.</p>"
    reasons = by_size(found["rejected"])
    if not reasons:
        return "<p>No records were rejected.</p>" + _flags(found)
    total = found["windows"] + sum(n for _, n in reasons)
    rows = [[r, Words(REASONS.get(r, "")), f"{n:,}", f"{100 * n / total:.2f} %"] for r, n in reasons]
    text = table(["reason", "", "rejected", "share"], rows)
    text += "<p class=soft>Records that cannot be cut into windows count once, others once per window.</p>"
    text += _flags(found)
    if drawn is None:
        return text + (
            "<p>For examples of each reason, pass the folder that the data set was built from: "
            "<code>python -m sharding report FOLDER input=FOLDER</code></p>"
        )
    for reason, _ in reasons:
        pictures = "".join(_example(folder, e) for e in drawn.get(reason, []))
        text += f"<h3>{escaped(reason)}</h3><div class=ecgs>{pictures}</div>"
    return text


def _flags(found: Mapping[str, Any]) -> str:
    """The remarks of the build on windows that it kept."""
    rows = [
        [f, Words(FLAGS.get(f, "")), f"{n:,}", f"{100 * n / found['windows']:.2f} %"]
        for f, n in (found["flags"] or {}).items()
    ]
    return table(["kept, but", "", "windows", "share"], rows) if rows else ""


def _example(folder: Path, example: Example) -> str:
    window = "" if example.window is None else f", window {example.window}"
    caption = f"{example.record}{window}{': ' + example.detail if example.detail else ''}"
    if not example.picture:
        why = REASONS.get(example.why_not, example.why_not)
        return f"<p class=soft>{escaped(caption)}. Cannot be drawn: {escaped(why)}.</p>"
    return _picture(folder, example.picture, caption)


def _amplitude(folder: Path, shown: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    hidden = len(found["sources"]) - len(shown)
    more = f" The {len(shown)} largest sources are shown; the warnings above cover all sources." if hidden else ""
    text = (
        "<p>Maximum minus minimum of each lead in each sampled window. A source with a wrong unit or gain lies outside "
        f"the shaded range, the usual one of a source's median, or differs from the other sources.{more}</p>"
        + _picture(folder, "amplitude.png", "", "plain")
        + "<p>In mV: 1st, 50th and 99th percentile of all samples, and the median peak-to-peak amplitude.</p>"
    )
    for source, n in shown.items():
        rows = [
            [label, *(_number(n["percentiles_mv"][lead][i]) for lead in found["leads"])]
            for i, label in enumerate(("1 %", "50 %", "99 %"))
        ]
        rows.append(["peak-to-peak", *(_number(n["lead_peak_to_peak_mv"][lead]) for lead in found["leads"])])
        text += table(["", *found["leads"]], rows, f"{source}, {n['sampled']:,} windows")
    return text


def _heart_rate(folder: Path, shown: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [source, _number(n["bpm"], 0), *(_number(v, 0) for v in n["bpm_5_95"]), f"{100 * n['no_bpm']:.1f} %"]
        for source, n in shown.items()
    ]
    return (
        "<p>60 s over the median RR interval; R peaks are detected on all leads together (Pan and Tompkins 1985). A "
        "wrong sampling rate shifts a whole source. Shaded: the usual range of a source's median.</p>"
        + _picture(folder, "heart-rate.png", "", "plain")
        + table(["source", "median /min", "5th percentile", "95th percentile", "not found"], rows)
    )


def _leads(shown: Mapping[str, Mapping[str, Any]]) -> str:
    checked = list(next(iter(shown.values()))["residuals"])
    formulas = dict(zip(leads.DERIVED, ("III = II − I", "aVR = −(I + II)/2", "aVL = I − II/2", "aVF = II − I/2")))
    gaps = [
        [
            s,
            *(Cell(f"{_number(100 * n['residuals'][lead], 1)} %", n["residuals"][lead] > RESIDUAL) for lead in checked),
        ]
        for s, n in shown.items()
    ]
    names = list(next(iter(shown.values()))["positive_qrs"])
    signs = [[s, *(_sign(lead, n["positive_qrs"][lead]) for lead in names)] for s, n in shown.items()]
    orders = [
        [s, Cell(" ".join(n["chest_order"]) or "leads are missing", " ".join(n["chest_order"]) not in ("", CHEST))]
        for s, n in shown.items()
    ]
    text = (
        "<p>Difference of each limb lead from its value computed from I and II (Einthoven, Goldberger), relative to "
        "the leads' amplitude, in the median window. It should be close to zero.</p>"
        + table(["source", *(formulas[c] for c in checked)], gaps)
        if checked
        else "<p>Limb leads cannot be compared: I, II and one of III, aVR, aVL, aVF are needed.</p>"
    )
    return (
        f"{text}<p>Share of windows with a net positive QRS. In most hearts it is positive in I, II, V5 and V6, "
        f"and negative in aVR and V1.</p>{table(['source', *names], signs)}"
        "<p>Chest leads in the order that makes neighbours most similar: V1 to V6 if none are swapped.</p>"
        f"{table(['source', 'order'], orders)}"
    )


CHEST = " ".join(leads.CANONICAL[6:])


def _sign(lead: str, share: float) -> Cell:
    off = lead in QRS_SIGNS and (share > 0.5 if QRS_SIGNS[lead] < 0 else share < 0.5)
    return Cell("–" if np.isnan(share) else f"{100 * share:.0f} %", off)


def _ecgs(folder: Path, ecgs: Sequence[tuple[str, str]]) -> str:
    return f"<div class=ecgs>{''.join(_picture(folder, name, caption) for name, caption in ecgs)}</div>"


def _picture(folder: Path, name: str, caption: str, style: str = "") -> str:
    below = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return f"<figure>{image(folder / name, caption or name, style)}{below}</figure>"


def _number(value: float, digits: int = 2) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def _id(title: str) -> str:
    return title.lower().replace(" ", "-")


def by_size(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda cell: (-cell[1], cell[0]))
