"""How much of P, QRS, T and noise do the masks hide, against chance? `python -m trainer.figures masks RUN [key=value]`.

Held-out ECGs are delineated by `trainer/evaluate/delineation.py`, which also decides what counts as a P wave;
`trainer/evaluate/lift.py` says what a lift is. Two controls are reported next to the masker's own masks (each of the
N; for per-lead masks that of the delineated lead): the mask of another ECG, and a random block that wraps around at the
end of the window.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from trainer.config import DataConfig, PretrainConfig
from trainer.data.places import named
from trainer.data.shards import Shards
from trainer.data.sources import opened
from trainer.evaluate import target
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.delineation import Delineation, delineate
from trainer.evaluate.lift import Ecgs, Lift, counted, ecgs_of, markdown, rows
from trainer.evaluate.result import plain
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

MASKS = ("masker", "masker, another ECG's", "random block")
USAGE = "python -m trainer.figures masks RUN [data=DIR] [split=val] [ecgs=300] [by=rhythm] [draw=4] [lead=II]"


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
    ecgs, table = spread(shards, cfg.ecgs)
    place_of(cfg.lead, shards)
    task_of(cfg.by, table)
    folder = make_folder(run / "figures", "run")
    masks = masks_of_run(run, settings, shards, ecgs)
    measured = measure(cfg, shards, ecgs, masks, table)
    write_text(folder / "mask_lift.json", json.dumps(plain([asdict(row) for row in measured]), indent=1) + "\n")
    text = markdown(measured)
    write_text(folder / "mask_lift.md", text)
    print(text)
    for n in range(min(cfg.draw, len(ecgs))):
        path = folder / f"mask_lift-{n}.png"
        ecg_with_masks(ecgs[n], masks[n], manifest.rate, manifest.leads, path, f"masks of {cfg.split} ECG {n}")
    drawn = f"{min(cfg.draw, len(ecgs))} x {folder}/mask_lift-N.png"
    print(f"written: {folder / 'mask_lift.md'}, {folder / 'mask_lift.json'}, {drawn}")


def _opened(cfg: MaskLiftConfig, settings: PretrainConfig) -> Shards:
    """The ECGs, of the folders of `cfg` or of the run. Raises `UserError` for a split that does not exist."""
    weights = {name: w for name, w in settings.data.weights.items() if name in named(cfg.data or settings.data.path)}
    cache = "" if cfg.data else settings.data.cache
    return opened(DataConfig(path=cfg.data or settings.data.path, weights=weights, cache=cache), cfg.split, later=False)


def spread(shards: Shards, count: int) -> tuple[NDArray[np.float32], pa.Table]:
    """`count` ECGs, evenly spread over a split (all if it has fewer), [n, leads, T] in mV, and their rows."""
    chosen = np.linspace(0, shards.count - 1, min(count, shards.count)).astype(np.int64)
    return shards.read_mv(chosen), shards.table().take(chosen)


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


def measure(
    cfg: MaskLiftConfig, shards: Shards, ecgs: NDArray[np.float32], masks: NDArray[np.float32], table: pa.Table
) -> list[Lift]:
    """The lifts of all ECGs that could be delineated, and of each class of the task `by`."""
    found = delineated(cfg.lead, shards, ecgs)
    hidden = {kind: of[None] for kind, of in hidden_of(masks, found).items()}
    return rows(with_classes(found, cfg.by, table), hidden, cfg.bootstrap)


@dataclass(frozen=True)
class Delineated:
    """Those of some ECGs that could be delineated, in lead number `lead`: their numbers `kept` [m], and their waves."""

    lead: int
    kept: NDArray[np.int64]
    waves: list[Delineation]


def place_of(lead: str, shards: Shards) -> int:
    """The number of a lead. Raises `UserError` if the data have none of this name."""
    leads = shards.manifest.leads
    if lead not in leads:
        raise UserError(f"lead={lead} is not among the leads of the data: {', '.join(leads)}")
    return leads.index(lead)


def delineated(lead: str, shards: Shards, ecgs: NDArray[np.float32]) -> Delineated:
    """Delineates ECGs [n, leads, T] in mV. Raises `UserError` if that fails for all."""
    place = place_of(lead, shards)
    found = [delineate(ecg[place], shards.manifest.rate) for ecg in tqdm(ecgs, "delineation", unit="ECG")]
    kept = np.flatnonzero([d is not None for d in found])
    if not len(kept):
        raise UserError(f"none of the {len(ecgs)} ECGs could be delineated in lead {lead}; try another lead=")
    print(f"{len(kept)} of {len(ecgs)} ECGs could be delineated in lead {lead}")
    return Delineated(place, kept, [d for d in found if d is not None])


def hidden_of(masks: NDArray[np.float32], found: Delineated, draw: int = 0) -> dict[str, NDArray[np.float64]]:
    """What masks [n, N, T] or [n, N, leads, T] hide of the waves of those ECGs that were delineated, and what the two
    controls hide: [m, 7] by kind (`lift.counted`). `draw`: the number of the draw of random blocks."""
    own = masks[found.kept] if masks.ndim == 3 else masks[found.kept][:, :, found.lead]
    coverage = min(max(float(own.mean()), 0.01), 0.99)
    ring = TimeMask(op="control", coverage=coverage, per_lead=False)  # wraps around: hides all samples equally often
    block = ring.hidden(Key(0, draw, torch.from_numpy(found.kept)), 1, own.shape[-1])[:, 0].numpy().astype(np.float32)
    kinds: dict[str, NDArray[np.float32]] = {}
    for n, mask in enumerate(own.swapaxes(0, 1)):
        name = MASKS[0] if own.shape[1] == 1 else f"mask {n + 1}"
        kinds |= {name: mask, f"{name}, another ECG's": np.roll(mask, len(mask) // 2, 0)}
    return {name: counted(mask, found.waves) for name, mask in (kinds | {MASKS[-1]: block}).items()}


def task_of(name: str, table: pa.Table) -> TransferConfig | None:
    """The transfer task of this name, None for none. Raises `UserError` if it does not exist or fit the table."""
    if not name:
        return None
    path = config_file(f"configs/transfer/{name}.yaml")
    if not path.is_file():
        raise UserError(f"by={name}: {path} does not exist")
    cfg = load(TransferConfig, path)
    if cfg.column not in table.column_names:
        raise UserError(f"by={name}: samples.parquet has no column '{cfg.column}'; set by='' for one table of all")
    if cfg.kind == "number":
        raise UserError(f"by={name}: it tells a number and has no classes; set by='' for one table of all")
    return cfg


def with_classes(found: Delineated, name: str, table: pa.Table) -> Ecgs:
    """The delineated ECGs, of the rows of `table`, in groups by the classes of a transfer task."""
    patient, groups = table.column("patient").to_numpy()[found.kept], {}
    if (task := task_of(name, table)) is not None:
        names, read = target.read(task, {"all": table}, f"by={name}")
        groups = dict(zip(names, (read["all"][found.kept] > 0).T))
    return ecgs_of(found.waves, patient, groups)
