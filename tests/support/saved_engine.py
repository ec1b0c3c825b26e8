"""A stand-in for an engine whose checkpoints are saved in this process alone."""

import torch
from torch import nn

from trainer.run.saving import Saver


class Writer:
    """DeepSpeed's writer of files."""

    def save(self, state_dict, path):
        torch.save(state_dict, path)


class Engine:
    """Just what a checkpoint calls of an engine; all weights are `value`."""

    def __init__(self, value: float) -> None:
        self.module, self.checkpoint_engine = nn.Linear(2, 2), Writer()
        nn.init.constant_(self.module.weight, value)

    def zero_optimization_stage(self):
        return 0

    def save_checkpoint(self, folder, tag, save_latest):
        self.checkpoint_engine.save(state_dict=self.module.state_dict(), path=f"{folder}.pt")

    def load_checkpoint(self, folder, tag):
        self.module.load_state_dict(torch.load(f"{folder}.pt"))
        return folder, {}


def saver(run, keep=2):
    return Saver(run, keep, torch.device("cpu"))
