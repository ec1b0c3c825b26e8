"""How much of P, QRS and T do the masks hide, against chance? `python -m trainer.figures masks RUN [key=value]`.

Held-out ECGs are delineated by `trainer/evaluate/delineation.py`, which also decides what counts as a P wave. A wave's
lift is the fraction of it that is hidden, divided by the hidden fraction of the whole ECG: 1 is chance, 1.5 is 50 %
more; a rhythm without the wave has no lift on it. Two controls are reported next to the masker's own masks (each of the
N; for per-lead masks that of the delineated lead): the mask of another ECG, and a random block that wraps around at the
end of the window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.config import DataConfig, PretrainConfig
from trainer.data.places import named
from trainer.data.shards import Shards
from trainer.data.sources import opened
from trainer.evaluate import target
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.delineation import WAVES, Delineation, delineate
from trainer.evaluate.result import plain
from trainer.evaluate.scores import interval, patient_resamples
from trainer.game.masking import binarise, soft_masks
from trainer.game.players import make_players, pairing_of
from trainer.observe.mask_figure import bands, ecg_with_masks
from trainer.run.checkpoint import WEIGHTS, newest, read_weights
from trainer.run.record import RECORD, read_record
from trainer.views.masks import TimeMask
from trainer.views.random import Key
from umbra.config import check_fields, load, setting
from umbra.directory import mismatch
from umbra.encoders.encoder import Scaling
from umbra.errors import UserError
from umbra.files import make_folder, write_text
from umbra.layers import TextOrTexts, config_file

LEAST_ECGS, LEAST_SHARE = 10, 0.2  # ECGs of a group, and ECGs with a wave among them, for a lift
MASKS = ("masker", "masker, another ECG's", "random block")
USAGE = "python -m trainer.figures masks RUN [data=DIR] [split=val] [ecgs=300] [by=rhythm] [draw=4] [lead=II]"
Bools = NDArray[np.bool_]


@dataclass
class MaskLiftConfig:
    """Which ECGs and masks are analysed."""

    run: str = ""
    """The run directory."""
    data: TextOrTexts = ""
    """The folder of the data set, or those of several by name (empty: what the run was trained on)."""
    split: str = "val"
    """The split that the ECGs are taken from."""
    ecgs: int = setting(300, ">= 2")
    """Number of ECGs."""
    lead: str = "II"
    """The lead that is delineated."""
    by: str = "rhythm"
    """A task of configs/transfer whose classes get a table each (empty: none)."""
    draw: int = setting(4, ">= 0")
    """Number of ECGs to draw with their masks."""
    bootstrap: int = setting(1000, ">= 2 and <= 1000000")
    """Bootstrap resamples of the patients."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if not self.run:
            raise UserError(f"run is not set: {USAGE}")
        check_fields(self)


@dataclass(frozen=True)
class Lift:
    """One row: `lift` of a wave under one kind of mask, its 95 % interval by patients, over `ecgs` ECGs of `group`.

    The wave is in `found` of their `beats` and in `ecgs_with` of the ECGs; NaN if too few ECGs have it.
    """

    group: str
    masks: str
    wave: str
    lift: float
    low: float
    high: float
    ecgs: int
    ecgs_with: int
    found: int
    beats: int


def main(argv: list[str]) -> None:
    words = [f"run={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else argv
    cfg = load(MaskLiftConfig, None, words)
    cfg.check()
    run = Path(cfg.run)
    settings = load(PretrainConfig, run / "config.yaml")
    if not (cfg.data or settings.data.path):
        raise UserError(f"{run / 'config.yaml'} names no data set (data.path): give data=DIR")
    shards = _opened(cfg, settings)
    wanted = read_record(run).encoder if (run / RECORD).is_file() else None
    manifest = shards.manifest
    given = manifest.leads, manifest.samples, manifest.rate
    if wanted and given != (wanted["leads"], wanted["samples"], wanted["rate"]):
        raise UserError(f"data={shards.root} has other leads, rate or length than the data that {run} was trained on")
    count = min(cfg.ecgs, shards.count)
    ecgs = shards.read_mv(np.linspace(0, shards.count - 1, count).astype(np.int64))
    table = shards.table().take(np.linspace(0, shards.count - 1, count).astype(np.int64))
    if cfg.lead not in manifest.leads:
        raise UserError(f"lead={cfg.lead} is not among the leads of the data: {', '.join(manifest.leads)}")
    _task(cfg.by, table)
    folder = make_folder(run / "figures", "run")
    hidden = masks_of_run(run, settings, shards, ecgs)
    rows = measure(cfg, shards, ecgs, hidden, table)
    write_text(folder / "mask_lift.json", json.dumps(plain([asdict(row) for row in rows]), indent=1) + "\n")
    text = markdown(rows)
    write_text(folder / "mask_lift.md", text)
    print(text)
    for n in range(min(cfg.draw, count)):
        path = folder / f"mask_lift-{n}.png"
        leads = shards.manifest.leads
        ecg_with_masks(ecgs[n], hidden[n], shards.manifest.rate, leads, path, f"masks of {cfg.split} ECG {n}")
    drawn = f"{min(cfg.draw, count)} x {folder}/mask_lift-N.png"
    print(f"written: {folder / 'mask_lift.md'}, {folder / 'mask_lift.json'}, {drawn}")


def _opened(cfg: MaskLiftConfig, settings: PretrainConfig) -> Shards:
    """The ECGs, of the folders of `cfg` or of the run. Raises `UserError` for a split that does not exist."""
    weights = {name: w for name, w in settings.data.weights.items() if name in named(cfg.data or settings.data.path)}
    cache = "" if cfg.data else settings.data.cache
    return opened(DataConfig(path=cfg.data or settings.data.path, weights=weights, cache=cache), cfg.split, later=False)


def masks_of_run(run: Path, settings: PretrainConfig, shards: Shards, ecgs: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the newest masker of a run hides of ECGs [n, leads, T] in mV: [n, N, T], or [n, N, leads, T] for per-lead
    masks; spectral masks are averaged over bins. A masker that was trained on shorter views masks one after the other;
    the last ends with the ECG. Raises `UserError` for a run without a masker or checkpoint."""
    if not settings.game.enabled:
        raise UserError(f"{run} was trained without a masker: there are no masks to analyse")
    found = newest(run)
    if found is None:
        raise UserError(f"{run / 'checkpoints'} has no committed checkpoint: let the run reach its first one")
    _, masker = make_players(settings, shards)
    assert masker is not None
    weights = {k.removeprefix("masker."): v for k, v in read_weights(found).items() if k.startswith("masker.")}
    if problem := mismatch(masker.state_dict(), weights):
        raise UserError(f"{found / WEIGHTS} does not match the masker in {run / 'config.yaml'}: {problem}")
    masker.load_state_dict(weights)
    manifest, dials = shards.manifest, settings.game.at(1.0)
    scaling = Scaling(manifest.lead_mean_mv, manifest.lead_std_mv, settings.scaling)
    if (run / RECORD).is_file() and ((record := read_record(run)).init or record.sources):
        scaling = Scaling(**record.scaling)
    length, out = pairing_of(settings, shards).samples, []
    starts = [*range(0, manifest.samples - length, length), manifest.samples - length]
    with torch.no_grad():
        for part in np.array_split(ecgs, max(1, len(ecgs) // 64)):
            pieces = []
            for start, stop in pairwise([*starts, manifest.samples]):
                x = scaling(torch.from_numpy(part[..., start : start + length]))
                raw = binarise(soft_masks(masker(x), dials, dials.hop(manifest.rate)), dials).numpy()
                pieces.append(np.stack([bands(m, length)[..., : stop - start] for m in raw]))
            out.append(np.concatenate(pieces, -1))
    return np.concatenate(out)


def measure(cfg: MaskLiftConfig, shards: Shards, ecgs: Any, hidden: NDArray[np.float32], table: Any) -> list[Lift]:
    """The lifts of all ECGs that could be delineated, and of each class of the task `by`."""
    leads, rate = shards.manifest.leads, shards.manifest.rate
    found = [delineate(ecg[leads.index(cfg.lead)], rate) for ecg in tqdm(ecgs, "delineation", unit="ECG")]
    kept = np.flatnonzero([d is not None for d in found])
    if not len(kept):
        raise UserError(f"none of the {len(ecgs)} ECGs could be delineated in lead {cfg.lead}; try another lead=")
    print(f"{len(kept)} of {len(ecgs)} ECGs could be delineated in lead {cfg.lead}")
    delineated = [d for d in found if d is not None]
    own = hidden[kept] if hidden.ndim == 3 else hidden[kept][:, :, leads.index(cfg.lead)]
    coverage = min(max(float(own.mean()), 0.01), 0.99)
    ring = TimeMask(op="control", coverage=coverage, per_lead=False)  # wraps around: hides all samples equally often
    block = ring.hidden(Key(0, 0, torch.from_numpy(kept)), 1, own.shape[-1])[:, 0].numpy().astype(np.float32)
    kinds: dict[str, NDArray[np.float32]] = {}
    for n, masks in enumerate(own.swapaxes(0, 1)):
        name = MASKS[0] if own.shape[1] == 1 else f"mask {n + 1}"
        kinds |= {name: masks, f"{name}, another ECG's": np.roll(masks, len(masks) // 2, 0)}
    kinds[MASKS[-1]] = block
    patient = table.column("patient").to_numpy()[kept]
    groups = {"all": np.ones(len(kept), bool), **_classes(cfg.by, table, kept)}
    return [
        row
        for group, some in groups.items()
        for name, masks in kinds.items()
        for row in _rows(group, name, masks[some], [delineated[n] for n in np.flatnonzero(some)], patient[some], cfg)
    ]


def _rows(
    group: str,
    name: str,
    masks: NDArray[np.float32],
    delineated: Sequence[Delineation],
    patient: NDArray[np.int64],
    cfg: MaskLiftConfig,
) -> list[Lift]:
    """One row a wave, of masks [n, T] on n ECGs."""
    count = np.array([d.count for d in delineated])
    beats = sum(d.beats for d in delineated)
    rows = []
    for w, wave in enumerate(WAVES):
        having = int((count[:, w] > 0).sum())
        enough = having >= min(len(delineated), max(LEAST_ECGS, LEAST_SHARE * len(delineated)))
        place = np.stack([d.waves[w] for d in delineated])
        value = lift(masks, place, patient, cfg.bootstrap) if enough else (math.nan,) * 3
        rows.append(Lift(group, name, wave, *value, len(delineated), having, int(count[:, w].sum()), beats))
    return rows


def _task(task: str, table: Any) -> TransferConfig | None:
    """The transfer task of this name, None for none. Raises `UserError` if it does not exist or fit the table."""
    if not task:
        return None
    path = config_file(f"configs/transfer/{task}.yaml")
    if not path.is_file():
        raise UserError(f"by={task}: {path} does not exist")
    cfg = load(TransferConfig, path)
    if cfg.column not in table.column_names:
        raise UserError(f"by={task}: samples.parquet has no column '{cfg.column}'; set by='' for one table of all")
    if cfg.kind == "number":
        raise UserError(f"by={task}: it tells a number and has no classes; set by='' for one table of all")
    return cfg


def _classes(task: str, table: Any, kept: NDArray[np.int64]) -> dict[str, Bools]:
    """The ECGs of each class of a transfer task that has at least `LEAST_ECGS` of them."""
    if (cfg := _task(task, table)) is None:
        return {}
    names, read = target.read(cfg, {"all": table}, f"by={task}")
    found = dict(zip(names, (read["all"][kept] > 0).T))
    return {name: found[name] for name in sorted(names) if found[name].sum() >= LEAST_ECGS}


def lift(masks: NDArray[np.float32], wave: Bools, patient: NDArray[np.int64], count: int) -> tuple[float, float, float]:
    """(lift, low, high) of masks [n, T] on a wave bool [n, T]: ratio of sums over ECGs, 95 % by patient bootstrap."""
    inside, size = (masks * wave).sum(1).astype(np.float64), wave.sum(1).astype(np.float64)
    whole, length = masks.sum(1).astype(np.float64), np.full(len(masks), masks.shape[1], np.float64)

    def ratio(weight: NDArray[Any]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weight @ inside / (weight @ size)) / (weight @ whole / (weight @ length))

    values = np.concatenate([ratio(w.astype(np.float64)) for w in patient_resamples(patient, count, 0)])
    return (float(ratio(np.ones((1, len(masks))))[0]), *interval(values))


def markdown(rows: Sequence[Lift]) -> str:
    """One table per group: a row per kind of mask, a column per wave; a cell is empty if too few ECGs have the wave."""
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        mine = [row for row in rows if row.group == group]
        p = mine[0]
        lines = [f"{group}: {p.ecgs} ECGs; hidden fraction of a wave / hidden fraction of the whole ECG", ""]
        lines += [f"Upright P waves in {p.found} of {p.beats} beats, in {p.ecgs_with} of {p.ecgs} ECGs", ""]
        lines += ["| masks | " + " | ".join(WAVES) + " |", "|---" * (1 + len(WAVES)) + "|"]
        for kind in dict.fromkeys(row.masks for row in mine):
            lines.append(f"| {kind} | " + " | ".join(_cell(row) for row in mine if row.masks == kind) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(row: Lift) -> str:
    return f"{row.lift:.2f} ({row.low:.2f} to {row.high:.2f})" if math.isfinite(row.lift) else ""
