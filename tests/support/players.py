"""Players and engines without DeepSpeed."""

import torch
from torch import nn

from trainer.game.game import Pair
from trainer.views import Key


class Joined(nn.Sequential):
    """Layers on the views of a pair, one batch after the other, as `ContrastiveEncoder` takes them."""

    def forward(self, *views):
        return super().forward(torch.cat(views))


class PlainEngine:
    """Just what `Game` calls of an engine, on plain autograd."""

    def __init__(self, module: nn.Module, lr: float = 0.0) -> None:
        self.module, self.optimizer = module, torch.optim.SGD(module.parameters(), lr=lr)

    def __call__(self, *views):
        return self.module(*views)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.optimizer.step()

    def torch_autocast_enabled(self):
        return False


class Accumulating(PlainEngine):
    """An engine that steps at the end of `pairs` contrast batches only."""

    def __init__(self, module: nn.Module, lr: float = 1.0, pairs: int = 2) -> None:
        super().__init__(module, lr)
        self.calls, self.pairs = 0, pairs

    def step(self):
        self.calls += 1
        if self.calls % self.pairs == 0:
            self.optimizer.step()


def players(masks: int) -> tuple[nn.Module, nn.Module, Pair]:
    torch.manual_seed(0)
    encoder = Joined(nn.Conv1d(3, 6, 5), nn.GELU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(24, 5))
    masker = nn.Sequential(nn.Conv1d(3, 4, 5, padding=2), nn.GELU(), nn.Conv1d(4, masks, 5, padding=2))
    pair = Pair(
        torch.randn(5, 3, 40, dtype=torch.float64),
        torch.randn(5, 3, 40, dtype=torch.float64),
        Key(0, 0, torch.arange(5)),
    )
    return encoder.double(), masker.double(), pair
