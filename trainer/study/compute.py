"""What pre-training computes: epochs for as many operations as the reference has, and what each method's runs took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import PretrainConfig
from trainer.game.flops import training_flops
from trainer.game.players import players_for
from trainer.run.record import RECORD, RunRecord, read_record
from trainer.study.cells import runs_of
from trainer.study.config import UNTRAINED, StudyConfig, config_path
from trainer.study.steps import Note
from trainer.views.pairing import pairing
from umbra.config import load
from umbra.schema import read_manifest


def equal_epochs(config: StudyConfig, method: str, data: Path) -> float:
    """The epochs in which a method takes as many operations as the reference, on the shards in `data`."""
    m = read_manifest(data)
    both = [_settings(config, name) for name in (config.reference, method)]
    reference, other = (ecg_flops(cfg, len(m.leads), m.samples, m.rate) for cfg in both)
    return both[0].epochs * reference / other


def _settings(config: StudyConfig, method: str) -> PretrainConfig:
    name, *words = config.words(method)
    return load(PretrainConfig, config_path("pretrain", name), [*config.pretrain, *words])


def ecg_flops(cfg: PretrainConfig, leads: int, samples: int, rate: float) -> int:
    """FLOPs of a training step per ECG of `samples` samples at `rate` Hz."""
    return training_flops(cfg, *players_for(cfg, leads, samples, rate), leads, pairing(cfg.pair, samples, rate).samples)


def pretraining(config: StudyConfig, noted: Sequence[Note]) -> list[dict[str, Any]]:
    """A row for each method whose runs are there, means over them: ECGs trained on (each as often as it was), FLOPs,
    these over those of the reference, and wall seconds, as far as they are known."""
    rows = [_row(config, method, noted) for method in config.compared if method not in UNTRAINED]
    reference = next((row.get("flops") for row in rows if row["method"] == config.reference), None)
    for row in rows:
        if reference and "flops" in row:
            row["of_reference"] = row["flops"] / reference
    return [row for row in rows if len(row) > 2]


def _row(config: StudyConfig, method: str, noted: Sequence[Note]) -> dict[str, Any]:
    places = [p for p in runs_of(config, method) if (p / RECORD).is_file() and (p / "config.yaml").is_file()]
    row: dict[str, Any] = {"method": method, "runs": len(places)}
    if places:
        cfg, records = load(PretrainConfig, places[0] / "config.yaml"), [read_record(place) for place in places]
        if steps := [record.steps for record in records if record.steps]:
            row["ecgs"] = float(np.mean(steps)) * cfg.batch.global_
            row["flops"] = row["ecgs"] * _per_ecg(cfg, records[0])
    seconds = [step["seconds"] for step in noted if _is_of(step, method)]
    return row | ({"seconds": float(np.mean(seconds))} if seconds else {})


def _per_ecg(cfg: PretrainConfig, record: RunRecord) -> int:
    of = record.encoder
    return ecg_flops(cfg, len(of["leads"]), of["samples"], of["rate"])


def _is_of(step: Note, method: str) -> bool:
    """Whether a step is the pre-training of a method."""
    kind, _, *names = step["step"].split("/")
    return kind == "pretrain" and names[:1] == [method]
