"""The projection head of SimCLR (Chen et al. 2020): one hidden layer between features and contrastive loss."""

from __future__ import annotations

from torch import Tensor, nn


class Projector(nn.Module):
    """[B, dim] -> ReLU(linear to `hidden`) -> [B, out]; 512-2048-128 in Bo et al. 2022."""

    def __init__(self, dim: int, hidden: int = 2048, out: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)
