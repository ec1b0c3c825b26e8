"""A small run by words, and a call of the command in this process."""

import sys

import pytest

from trainer import pretrain
from umbra.config import command

SMALL = ["batch.global=16", "encoder.args.width=8", "projector.hidden=16", "masker.width=8", "wandb.mode=disabled"]


def called(words, monkeypatch, capsys):
    """(exit code, stdout, stderr) of the command line."""
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SystemExit) as ended:
        command(pretrain.main)
    return ended.value.code, *capsys.readouterr()
