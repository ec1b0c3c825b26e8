"""The two players: encoder with projector, and masker, built from the config with weights from the seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import PretrainConfig
from trainer.data.shards import Shards
from trainer.game.batchnorm import batch_norms, over_all_ranks
from trainer.game.chunks import in_chunks
from trainer.game.lowered import lowered
from trainer.game.maskers.base import Masker
from trainer.game.maskers.registry import build_masker
from trainer.game.masking import GameConfig
from trainer.game.projector import Projector
from trainer.game.temperature import Temperature
from trainer.views.pairing import Pairing, pairing
from umbra.encoders.layout import joined
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError, building


class ContrastiveEncoder(nn.Module):
    """Backbone and projector: views [B, leads, T], scaled -> [B of all views, D]; with a learned `temperature` also its
    value.

    `chunk`: rows per forward pass (0: all), see `in_chunks`.
    """

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, temperature: Temperature | None = None, chunk: int = 0
    ) -> None:
        super().__init__()
        self.backbone, self.projector, self.temperature, self.chunk = backbone, projector, temperature, chunk

    def forward(self, *views: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        whole = lowered(self)
        z = in_chunks(whole, torch.cat(views), self.chunk) if self.chunk else whole(*views)
        return z if self.temperature is None else (z, self.temperature())

    def whole(self, *views: Tensor) -> Tensor:
        return self.projector(self.backbone(joined(views)))


Players = tuple[ContrastiveEncoder, Masker | None]


def make_players(cfg: PretrainConfig, train: Shards) -> Players:
    """The players of a run on these data: `players_for` their windows."""
    return players_for(cfg, len(train.manifest.leads), train.manifest.samples, train.manifest.rate)


def players_for(cfg: PretrainConfig, leads: int, window: int, rate: float) -> Players:
    """Encoder with projector, and masker (None without the game), with weights from the seed, the same on all ranks.

    For windows of `leads` x `window` samples at `rate` Hz; the encoder is that for whole windows, also where it is
    trained on shorter views.
    """
    samples = pairing(cfg.pair, window, rate).samples
    torch.manual_seed(cfg.seed)
    backbone = build_encoder(cfg.encoder.name, leads, window, cfg.encoder.args)
    if samples != window and not backbone.any_length:
        raise UserError(
            f"pair={cfg.pair.kind}: views are shorter than the window, and {cfg.encoder.name} takes one length alone: "
            "use pair=same, or another encoder.name"
        )
    if batch_norms(backbone) and cfg.batch.device:
        raise UserError(
            f"batch.device={cfg.batch.device}: with batch norm an ECG's features depend on its whole contrast batch, "
            "which cannot be split into chunks; use batch.device=0 or encoder.args.norm=group"
        )
    with building("projector", {"projector.hidden": cfg.projector.hidden, "projector.out": cfg.projector.out}):
        projector = Projector(backbone.dim, cfg.projector.hidden, cfg.projector.out)
    temperature = Temperature(cfg.temperature) if cfg.learn_temperature else None
    rows = (1 + masked_views(cfg.game)) * cfg.batch.device
    encoder = ContrastiveEncoder(over_all_ranks(backbone), projector, temperature, chunk=rows)
    if not cfg.game.enabled:
        return encoder, None
    hop, what = cfg.game.hop(rate), "window" if samples == window else "view"
    if hop >= samples:
        raise UserError(
            f"game.resolution_s={cfg.game.resolution_s:g} leaves one cell in a {what} of {samples / rate:g} s: lower it"
        )
    cells, rare = -(-samples // hop), min(cfg.game.coverage, 1 - cfg.game.coverage)
    if cfg.game.threshold == "coverage" and cfg.game.family != "spectral" and rare * cells < 0.5:
        raise UserError(
            f"game.coverage={cfg.game.coverage:g} of {cells} cells per {what} is less than half a cell, the minimum "
            f"is one of {cells}: lower game.resolution_s={cfg.game.resolution_s:g}"
        )
    shape = (cfg.masker.width, cfg.masker.depth, cfg.masker.kernel)
    masker = build_masker(cfg.masker.name, leads, cfg.game.channels(leads, hop), hop, *shape)
    masker.chunk = cfg.batch.device
    return encoder, masker


def pairing_of(cfg: PretrainConfig, train: Shards) -> Pairing:
    """How a run cuts the windows of its data into views. Raises `UserError` if they do not fit."""
    return pairing(cfg.pair, train.manifest.samples, train.manifest.rate)


def masked_views(game: GameConfig) -> int:
    """Copies of view 2 that pass through the encoder, masked unless the game is off."""
    return game.masks if game.enabled and game.use == "all" else 1
