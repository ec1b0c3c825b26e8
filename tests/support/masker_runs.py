"""Runs of untrained maskers, on synthetic ECGs of 6 s that can be delineated."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support import handmade
from trainer import pretrain
from trainer.data.shards import Shards
from trainer.game.players import make_players
from trainer.observe.example_ecg import synthetic_example
from umbra.config import dump
from umbra.directory import save_weights
from umbra.leads import CANONICAL


def real_ecgs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make_shards` writes from here on has P, QRS and T."""

    def ecg(kind, rng):
        return (1000 * synthetic_example(CANONICAL, 600, 100.0, rng.integers(99))).astype("<i2")

    monkeypatch.setattr(handmade, "SAMPLES", 600)
    monkeypatch.setattr(handmade, "ecg", ecg)


def masker_run(run: Path, data: Path, words: Sequence[str] = ()) -> Path:
    """A run directory with the config and a checkpoint of the masker that it would begin with."""
    small = [f"data.path={data}", "batch.global=16", "encoder.args.width=8", "masker.width=8"]
    cfg = pretrain.read_config([*small, *words])
    _, masker = make_players(cfg, Shards(data, "train"))
    step = run / "checkpoints" / "step-3"
    step.mkdir(parents=True)
    weights = {} if masker is None else masker.state_dict()
    save_weights(step / "weights.safetensors", {f"masker.{k}": v for k, v in weights.items()})
    (step / "COMMITTED").touch()
    (run / "config.yaml").write_text(dump(cfg))
    return run
