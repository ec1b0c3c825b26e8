"""The record of a run in its directory: `config.yaml` and `run.json`, written and read here alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from trainer.config import PretrainConfig
from trainer.data.mixtures import Taken
from trainer.data.places import public
from trainer.data.shards import Shards
from trainer.observe.wandb_mirror import new_wandb_id
from trainer.run.init import Origin
from trainer.views.pairing import pairing
from umbra.config import dump
from umbra.encoders.config import ScalingOf
from umbra.errors import UserError
from umbra.files import damaged, make_folder, read_json, write_text
from umbra.typed import typed

RECORD = "run.json"
FIX = "delete it and run the same pretrain command again, which writes it anew (W&B shows a new run then)"


class EncoderOf(TypedDict):
    """A registered encoder, its `encoder.args.*` and its input: leads, samples, rate in Hz."""

    name: str
    leads: list[str]
    samples: int
    rate: float
    args: dict[str, Any]


class PairOf(TypedDict):
    """`pair.kind`, and the length of a view in seconds."""

    kind: str
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """`run.json`.

    `fingerprint` and `key_id` are those of the data, `data` = {samples, patients} of its train split; `world` counts
    processes; `status` is running, finished, interrupted or failed; `init`: the encoder that the run began with;
    `pair`: how views are cut, if they are not whole windows. Of a mixture, fingerprint, key and size are those of all
    `sources` that the run was ever trained on, with + between.
    """

    encoder: EncoderOf
    scaling: ScalingOf
    fingerprint: str
    key_id: str
    method: str | None = None
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    wandb_id: str | None = None
    steps: int | None = None
    precision: str | None = None
    world: int | None = None
    data: dict[str, int] = field(default_factory=dict)
    status: str | None = None
    init: Origin | None = None
    pair: PairOf | None = None
    sources: dict[str, Taken] = field(default_factory=dict)


def new_record(
    cfg: PretrainConfig,
    train: Shards,
    steps: int,
    bf16: bool,
    world: int,
    init: Origin | None = None,
    sources: Mapping[str, Taken] | None = None,
) -> RunRecord:
    """The record of a run that begins or goes on in `cfg.run`; one that goes on keeps its id at W&B.

    `sources`: those of a mixture.
    """
    manifest = train.manifest
    own: ScalingOf = {"mode": cfg.scaling, "mean_mv": manifest.lead_mean_mv, "std_mv": manifest.lead_std_mv}
    return RunRecord(
        method=cfg.method,
        commit=_commit(),
        versions={name: version(name) for name in ("umbra", "torch", "deepspeed", "numpy")},
        wandb_id=known_wandb_id(Path(cfg.run)) or new_wandb_id(),
        fingerprint=_joined(sources, "fingerprint") or manifest.fingerprint,
        key_id=_joined(sources, "key_id") or manifest.key_id,
        steps=steps,
        precision="bf16" if bf16 else "fp32",
        world=world,
        encoder={
            "name": cfg.encoder.name,
            "leads": manifest.leads,
            "samples": manifest.samples,
            "rate": manifest.rate,
            "args": cfg.encoder.args,
        },
        scaling=init["scaling"] if init else own,
        data=_size(train, sources),
        init=init,
        pair=_pair(cfg, train),
        sources=dict(sources or {}),
    )


def _joined(sources: Mapping[str, Taken] | None, key: Literal["fingerprint", "key_id"]) -> str:
    return "+".join(dict.fromkeys(source[key] for source in (sources or {}).values()))


def _size(train: Shards, sources: Mapping[str, Taken] | None) -> dict[str, int]:
    if sources:
        return {key: sum(source[key] for source in sources.values()) for key in ("samples", "patients")}
    return {"samples": train.count, "patients": len(np.unique(train.patients()[list(train.rows)]))}


def _pair(cfg: PretrainConfig, train: Shards) -> PairOf | None:
    samples, rate = train.manifest.samples, train.manifest.rate
    length = pairing(cfg.pair, samples, rate).samples
    return {"kind": cfg.pair.kind, "seconds": length / rate} if length != samples else None


def write_record(cfg: PretrainConfig, record: RunRecord, status: str) -> None:
    """Writes `config.yaml`, without the secrets of a URL, and `run.json` to the run directory `cfg.run`.

    Raises `UserError` where they cannot be written.
    """
    folder = Path(cfg.run)
    make_folder(folder, "run")
    try:
        write_text(folder / "config.yaml", dump(replace(cfg, data=replace(cfg.data, path=public(cfg.data.path)))))
        write_text(folder / RECORD, json.dumps(dataclasses.asdict(replace(record, status=status)), indent=1) + "\n")
    except OSError as error:
        raise UserError(
            f"{folder / RECORD} cannot be written ({error.strerror}): make room, and run the same command again"
        ) from error


def set_status(run: str | Path, status: str) -> None:
    """Changes only the status in `run.json`, if there is one that can be read and written."""
    with contextlib.suppress(UserError, OSError):
        record = replace(read_record(Path(run)), status=status)
        write_text(Path(run) / RECORD, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def read_record(run: Path) -> RunRecord:
    """Reads `run/run.json`. Raises `UserError` if it is missing or damaged."""
    path = run / RECORD
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist: {run} is not a run directory of trainer/pretrain.py")
    content, known = read_json(path, FIX), {f.name for f in dataclasses.fields(RunRecord)}
    try:
        return typed(RunRecord, {key: value for key, value in content.items() if key in known})
    except ValueError as error:
        raise damaged(path, error, FIX) from error


def known_wandb_id(run: Path) -> str | None:
    """The id at W&B of a run that goes on, so that its curves do too. Raises `UserError` if the file is damaged."""
    return read_record(run).wandb_id if (run / RECORD).is_file() else None


def _commit() -> str:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "unknown"  # installed: a repository around it is somebody else's
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
        return result.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
