"""Health of the game: metrics of masks and embeddings, and alarms as text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.game.masking import GameConfig, binarise, entropy
from trainer.views.softly import LEAST_SPREAD

YOUNG = 50  # steps without alarms at the start
UNMOVED = 0.05  # fraction of a run in which the encoder may still be near its initialisation
MOST = 1024  # ECGs whose embeddings are compared pairwise


@torch.no_grad()
def mask_figures(masks: Tensor, hidden: Tensor, cfg: GameConfig) -> dict[str, Tensor]:
    """Scalars of the masks, log-odds [B, N, R, *S], and of what they hide of the ECGs, [n, B, R, *S].

    Of what is hidden: `coverage`, its mean; `hidden`: fraction above 0.9, hidden rather than only dimmed. Of the
    masker's own N masks, binarised: `extreme_coverage`: fraction of ECGs with a coverage below 5 or above 95 % (if
    `game.coverage` is itself near 0 or 1: more than halfway from it to that end); `mask_switches`: changes between
    hidden and visible along time, per mask; `mask_sameness`: 1 if all ECGs have the same mask, 0 if their masks are
    unrelated (NaN for a single ECG); `mask_overlap`: fraction that at least two of the N hide. Of the masks themselves
    `mask_entropy` (nats) and `mask_contrast`, the standard deviation of their log-odds over the grid.
    """
    low, high = min(0.05, cfg.coverage / 2), max(0.95, (1 + cfg.coverage) / 2)
    own = binarise(masks.transpose(0, 1), cfg)
    coverage, decided = own.flatten(2).mean(-1), (own > 0.5).float()
    mean = decided.flatten(1).mean(1)
    n = decided.shape[1]
    between = decided.var(1, unbiased=False).flatten(1).mean(1) / (mean * (1 - mean)).clamp_min(1e-6)
    between = between * (n / (n - 1) if n > 1 else math.nan)
    figures = {
        "coverage": hidden.mean(),
        "hidden": (hidden > 0.9).float().mean(),
        "extreme_coverage": ((coverage < low) | (coverage > high)).float().mean(),
        "mask_entropy": entropy(masks.sigmoid()),
        "mask_contrast": masks.flatten(3).std(-1).mean(),
        "mask_switches": decided.diff(dim=-1).abs().sum(-1).mean(),
        "mask_sameness": 1 - between.mean(),
    }
    if masks.shape[1] > 1:
        figures["mask_overlap"] = (decided.sum(0) > 1).float().mean()
    return figures


@torch.no_grad()
def embedding_figures(z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """`alignment`: mean squared distance between the two views' normalised embeddings [B, D]; `uniformity`: log of the
    mean Gaussian potential exp(-2 d^2) between different ECGs, 0 if all embeddings are equal, about -4 if they are
    spread out (Wang and Isola 2020, section 4). Of at most the first `MOST` ECGs of this rank: the number of pairs is
    quadratic."""
    z1, z2 = (torch.nn.functional.normalize(z[:MOST].float(), dim=-1) for z in (z1, z2))
    return {
        "alignment": (z1 - z2).square().sum(-1).mean(),
        "uniformity": torch.pdist(z1).square().mul(-2).exp().mean().log(),  # NaN for a single ECG
    }


def alarms(values: Mapping[str, float], contrast: int, step: int, total: int, cfg: GameConfig) -> list[str]:
    """What is wrong with a game, as text, from the means of one log interval; a loss contrasts `contrast` ECGs.

    Empty for the first `YOUNG` steps.
    """
    if step < YOUNG:
        return []
    progress = (step / total - cfg.warmup) / (1 - cfg.warmup)
    encoder = _encoder_alarm(values, contrast, progress) if step / total > UNMOVED else ""
    faded = _faded(values) if step / total >= cfg.warmup + cfg.slope_rise else ""
    found = (encoder, _mask_alarm(values, cfg), _extreme_alarm(values), faded, _masker_alarm(values, progress))
    return [alarm for alarm in found if alarm]


def _encoder_alarm(values: Mapping[str, float], contrast: int, progress: float) -> str:
    spread, loss = values.get("uniformity", math.nan), values.get("loss", math.nan)
    if spread > -0.05:
        return (
            f"the encoder has collapsed: all ECGs have one embedding (uniformity {spread:.3f}); lower "
            "optim.encoder.lr, or game.share"
        )
    chance = math.log(max(2 * contrast - 1, 2))
    if progress > 0.25 and loss > 0.7 * chance and values.get("accuracy", 0.0) < 0.25:
        return (
            f"the encoder cannot learn: its loss is still {loss:.2f}, and {chance:.2f} is chance; if masks are too "
            "strong, lower game.coverage or game.share, raise game.resolution_s, or set game.masker_interval"
        )
    return ""


def _mask_alarm(values: Mapping[str, float], cfg: GameConfig) -> str:
    contrast, same = values.get("mask_contrast", math.nan), values.get("mask_sameness", math.nan)
    fixed = cfg.threshold == "half"  # else threshold and slope adapt to the mask, down to `LEAST_SPREAD`
    if contrast < (0.02 if fixed else 2 * LEAST_SPREAD):
        return (
            f"the masks have collapsed: a mask is constant (standard deviation {contrast:.4f}), so what is hidden "
            f"is arbitrary; lower {'game.alpha, game.smoothness or ' if fixed else ''}optim.masker.lr"
        )
    if same > 0.95:
        return (
            f"the masks have collapsed: all ECGs have the same one (sameness {same:.2f}); lower optim.masker.lr or "
            "raise masker.width"
        )
    return ""


def _extreme_alarm(values: Mapping[str, float]) -> str:
    extreme = values.get("extreme_coverage", math.nan)
    if extreme > 0.25:
        return (
            f"the masks are all or nothing: {100 * extreme:.0f} % of the ECGs have below 5 or above 95 % hidden; use "
            "game.threshold=coverage, or a larger game.alpha"
        )
    return ""


def _faded(values: Mapping[str, float]) -> str:
    coverage, hidden = values.get("coverage", math.nan), values.get("hidden", math.nan)
    if hidden < 0.25 * coverage:
        return (
            f"the masks dim instead of hiding: their mean is {100 * coverage:.0f} %, but only {100 * hidden:.0f} % of "
            "the ECG is hidden (above 0.9); raise game.slope"
        )
    return ""


def _masker_alarm(values: Mapping[str, float], progress: float) -> str:
    own, other = (values.get(f"heldout/{name}_loss", math.nan) for name in ("masked", "others_masks"))
    if progress > 0.5 and own < 0.85 * other:
        return (
            f"the masker has lost: an ECG's own mask (held-out loss {own:.3f}) is easier than that of "
            f"another ECG ({other:.3f}); raise optim.masker.lr or game.strength"
        )
    return ""
