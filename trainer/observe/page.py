"""A run as one self-contained HTML page: curves as inline SVG, masks as inline PNG, nothing from the network.

The page names no path, host or user, and shows masks on the synthetic ECG alone, so that it may be passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trainer.config import PretrainConfig
from trainer.game.health import alarms
from trainer.observe.curves import panel_svg
from trainer.observe.metrics import METRICS, duration, read_metrics
from trainer.observe.series import panels, series
from trainer.observe.wandb_mirror import public_config
from trainer.run.directory import LOCK
from trainer.run.record import RunRecord, read_record
from umbra.config import as_dict, load
from umbra.drawing.webpage import document, escaped, image, tiles
from umbra.errors import UserError
from umbra.files import write_text
from umbra.lock import abandoned

MOST_MASKS = 12  # figures of masks on a page, evenly spaced over the run

# One mask figure at a time; without scripts all are shown.
SLIDER = """
const steps=[...document.querySelectorAll('figure.mask')],slider=document.querySelector('input[type=range]');
function show(n){steps.forEach((f,i)=>f.hidden=i!=n)}
if(slider){slider.hidden=false;slider.oninput=()=>show(slider.value);show(slider.value)}
"""


@dataclass(frozen=True)
class Watched:
    """What a run directory holds: the rows of `metrics.jsonl` and when the last was `written`, `run.json`,
    `config.yaml`, the masks of the synthetic ECG as (step, PNG), and whether the run is `killed`."""

    name: str
    rows: list[dict[str, Any]]
    record: RunRecord
    config: PretrainConfig
    masks: list[tuple[int, Path]]
    written: datetime
    killed: bool = False


def read(run: Path) -> Watched:
    """Reads a run directory. Raises `UserError` if it is none, or one without a log line."""
    record = read_record(run)
    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"{config} does not exist: {run} is not a run directory of trainer/pretrain.py")
    if not has_lines(run):
        raise UserError(f"{run / METRICS} has no line yet: wait for the first one, or give every=SECONDS")
    masks = sorted((int(p.stem[6:]), p) for p in (run / "figures").glob("masks-*.png") if p.stem[6:].isdecimal())
    written = datetime.fromtimestamp((run / METRICS).stat().st_mtime, UTC)
    rows = read_metrics(run / METRICS)
    killed = record.status == "running" and abandoned(run / LOCK)
    name, shown = run.resolve().name, spread(masks, MOST_MASKS)
    return Watched(name, rows, record, load(PretrainConfig, config), shown, written, killed)


def is_running(run: Path) -> bool:
    """Whether the run goes on. A killed one cannot say that it does not: its lock tells, on the machine it ran on."""
    return read_record(run).status == "running" and not abandoned(run / LOCK)


def has_lines(run: Path) -> bool:
    """Whether the run has logged anything."""
    return (run / METRICS).is_file() and bool(read_metrics(run / METRICS))


def draw(run: Path, place: Path, every: float = 0.0) -> None:
    """Writes the page of a run to `place`; a browser reloads it every `every` seconds (0: not).

    Raises `UserError` as `read` does.
    """
    write_text(place, render(read(run), every))


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spaced, with the first and the last."""
    places = np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
    return [items[i] for i in places]


def render(found: Watched, every: float = 0.0) -> str:
    """The page."""
    reload = f'<meta http-equiv="refresh" content="{every:g}">' if every else ""
    body = _head(found) + figures(found) + _alarms(found) + curves(found) + masks(found) + _settings(found)
    return document(found.name, body, reload, SLIDER)


def _head(found: Watched) -> str:
    step, total, status = found.rows[-1]["step"], found.record.steps, found.record.status or "status unknown"
    if found.killed:
        status = "killed: the same command resumes from its newest checkpoint"
    return (
        f"<h1>{escaped(found.name)}</h1>"
        f"<p class=soft>{escaped(found.record.method or '')}, {escaped(status)}; "
        f"last line of <code>{METRICS}</code>: {found.written:%Y-%m-%d %H:%M:%S} UTC</p>"
        + (f'<progress max="{total}" value="{step}"></progress>' if total else "")
    )


def figures(found: Watched) -> str:
    """The latest figures of a run, as tiles."""
    rows, total, last = found.rows, found.record.steps or 0, found.rows[-1]["step"]
    speed, left = _latest(rows, "samples_per_s"), total - last
    shown = [(f"{last:,}", f"of {total:,} steps" if total else "steps")]
    if speed and left > 0:
        shown.append((duration(left * found.config.batch.global_ / speed), "to go"))
    for name, label, form in (
        ("loss", "loss", "{:.3f}".format),
        ("heldout/loss", "held-out loss", "{:.3f}".format),
        ("accuracy", "accuracy", _percent),
        ("coverage", "masked", _percent),
        ("samples_per_s", "ECG/s", "{:,.0f}".format),
        ("data_wait", "waiting for data", _percent),
    ):
        value = _latest(rows, name)
        if value is not None:
            shown.append((form(value), label))
    return tiles(shown)


def _alarms(found: Watched) -> str:
    """The alarms of the last line, in words, and since when; `metrics.jsonl` has their number."""
    said = alarms_of(found)
    if not said:
        ever = series(found.rows, "alarms")
        before = ever.steps[ever.values > 0]
        more = f" The last one was at step {before[-1]:.0f}." if len(before) else ""
        return f"<div class=note>No alarms.{more}</div>"
    listed = "".join(f"<li>{escaped(alarm[0].upper() + alarm[1:])}</li>" for alarm in said)
    return f"<div class='note bad'><b>Alarms</b><ul>{listed}</ul></div>"


def alarms_of(found: Watched) -> list[str]:
    """The alarms of the last log interval, as the run printed them."""
    row = {name: value for name, value in found.rows[-1].items() if value is not None}
    cfg, step = found.config, found.rows[-1]["step"]
    return alarms(row, cfg.contrast, step, found.record.steps or step, cfg.game)


def curves(found: Watched) -> str:
    """The curves of a run, with their heading."""
    drawn = "".join(f"<div>{panel_svg(panel)}</div>" for panel in panels(found.rows))
    content = f"<div class=curves>{drawn}</div>" if drawn else "<p class=soft>Nothing has changed yet.</p>"
    return f"<h2>Curves</h2>{content}"


def masks(found: Watched) -> str:
    """The masks of a run over time, with their heading and the slider that `SLIDER` moves; empty if there are none."""
    if not found.masks:
        return ""
    pictures = "".join(
        f"<figure class=mask>{image(path, f'masks at step {step}')}</figure>" for step, path in found.masks
    )
    last = len(found.masks) - 1
    slider = f'<input type=range hidden aria-label="step" min=0 max={last} value={last}>' if last else ""
    return f"<h2>Masks over time</h2><p class=soft>On a synthetic ECG.</p>{slider}{pictures}"


def _settings(found: Watched) -> str:
    record, encoder = found.record, found.record.encoder
    data = record.data
    rows = {
        "training data": f"{data.get('samples', 0):,} ECGs of {data.get('patients', 0):,} patients" if data else "",
        "input": f"{len(encoder['leads'])} leads, {encoder['samples']} samples at {encoder['rate']:g} Hz",
        "encoder": f"{encoder['name']} {encoder['args'] or ''}",
        "processes": f"{record.world}, {record.precision}" if record.world else "",
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "commit": record.commit or "",
        "data fingerprint": record.fingerprint,
    }
    table = "".join(f"<tr><th>{escaped(k)}</th><td>{escaped(v)}</td></tr>" for k, v in rows.items() if v)
    config = yaml.safe_dump(public_config(as_dict(found.config)), sort_keys=False, allow_unicode=True)
    return (
        f"<h2>Settings</h2><table class=facts>{table}</table>"
        f"<details><summary>All keys but folders</summary><pre>{escaped(config)}</pre></details>"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _latest(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = series(rows, name).values
    return float(values[-1]) if len(values) else None
