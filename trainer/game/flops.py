"""FLOPs of pre-training, by its config: what the networks compute for an ECG of a step, of all passes that it takes."""

from __future__ import annotations

from torch import nn

from trainer.config import PretrainConfig
from trainer.game.players import masked_views
from umbra.encoders.flops import forward_flops


def training_flops(cfg: PretrainConfig, encoder: nn.Module, masker: nn.Module | None, leads: int, samples: int) -> int:
    """FLOPs of a training step per ECG, the mean over the run, of views of `samples` samples.

    A backward pass counts twice the forward, and as much as it where it only leads to the input (the encoder's in the
    second phase of `alternating`). Each of `views.candidates` is a forward pass of both views besides. Recomputation
    (chunks), views, masks and the loss do not count, nor do held-out evaluations.
    """
    views, game = 1 + masked_views(cfg.game), cfg.game
    once = forward_flops(encoder, leads, samples)
    total = 3.0 * views * once
    if cfg.views.candidates > 1:
        total += cfg.views.candidates * 2 * once
    if masker is not None:
        hiding, trained = forward_flops(masker, leads, samples), (1 - game.warmup) / game.masker_interval
        again = 3 * hiding + 2 * views * once if game.schedule == "alternating" else 2 * hiding
        total += hiding + trained * again
    return round(total)
