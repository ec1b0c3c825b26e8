"""The words of a small run, and a call of the command in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trainer import pretrain
from trainer.observe.metrics import read_metrics
from umbra.config import command

SMALL = [
    "batch.global=16", "encoder.args.width=8", "encoder.args.embedding=16", "projector.hidden=16", "projector.out=8",
    "masker.width=8", "log.every=1", "log.figure_every=0", "log.heldout_every=4", "wandb.mode=disabled",
]  # fmt: skip


def run_words(data: object, run: Path, *more: str, method: str = "adversarial") -> list[str]:
    """The command line of a small run, without the launcher; later words win."""
    config = f"configs/pretrain/{method}.yaml"
    return ["trainer/pretrain.py", config, f"data.path={data}", f"run={run}", *SMALL, *more]


def losses(run: Path) -> list[float]:
    """The loss of each logged step."""
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def called(words, monkeypatch, capsys):
    """(exit code, stdout, stderr) of the command line."""
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit) as ended:
        command(pretrain.main)
    return ended.value.code, *capsys.readouterr()
