"""The learning rates of a run, as pure functions of the step."""

from __future__ import annotations

import math

from trainer.config import OptimConfig, PretrainConfig


def learning_rate(optim: OptimConfig, peak: float, step: int, total: int) -> float:
    """The rate at `step` (from 0) of `total` steps, at most `peak`.

    A linear warm-up over `warmup * total` steps, then a cosine that would reach 0 at step `total` (Loshchilov and
    Hutter 2017, arXiv:1608.03983), or with `schedule=wsd` a constant rate and a linear decay over the last
    `decay * total` steps that would reach 0 at step `total` (Haegele et al. 2024, arXiv:2405.18392).
    """
    warm_steps = max(1, round(optim.warmup * total))
    if step < warm_steps:
        return peak * (step + 1) / warm_steps
    if optim.schedule == "wsd":
        return peak * min(1.0, (total - step) / max(1, round(optim.decay * total)))
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_steps) / max(1, total - warm_steps)))


def player_rate(cfg: PretrainConfig, name: str, step: int, total: int) -> float:
    """The learning rate of `encoder` or `masker` at a step; the masker's schedule starts after `game.warmup`."""
    delay = math.ceil(cfg.game.warmup * total) if name == "masker" else 0
    return learning_rate(cfg.optim, getattr(cfg.optim, name).lr, max(0, step - delay), total - delay)
