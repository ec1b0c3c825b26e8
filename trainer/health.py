"""Is the game healthy? Figures of masks and embeddings, and alarms in words."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.masking import GameConfig, binarise, entropy

YOUNG = 50


@torch.no_grad()
def mask_figures(masks: Tensor, hidden: Tensor, cfg: GameConfig) -> dict[str, Tensor]:
    """Scalars of masks, log-odds [B, N, R, *S], and what of the ECGs is hidden, [n, B, R, *S].

    `coverage`; `hidden`: share that is hidden (beyond 0.9), not only dimmed. Of the masker's own N masks, binarised:
    `extreme_coverage`: share of ECGs under 5 or over 95 %; `mask_switches`: between hidden and not along time, per
    mask; `mask_sameness`: 1 if all ECGs have the same mask, 0 if those of many have nothing to do with one another;
    `mask_overlap`: share that at least two of the N hide. Of the masks themselves `mask_entropy` (nats) and
    `mask_contrast`, the standard deviation of their log-odds over their grid.
    """
    own = binarise(masks.transpose(0, 1), cfg)
    coverage, decided = own.flatten(2).mean(-1), (own > 0.5).float()
    mean = decided.flatten(1).mean(1)
    between = decided.var(1, unbiased=False).flatten(1).mean(1) / (mean * (1 - mean)).clamp_min(1e-6)
    figures = {
        "coverage": hidden.mean(),
        "hidden": (hidden > 0.9).float().mean(),
        "extreme_coverage": ((coverage < 0.05) | (coverage > 0.95)).float().mean(),
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
    """`alignment`: mean squared distance of the two views' embeddings [B, D] on the sphere; `uniformity`: log of the
    mean Gaussian potential of different ECGs, exp(-2 d^2), 0 when all are one point, about -4 when they spread (Wang
    and Isola 2020, section 4). Of this rank's ECGs."""
    z1, z2 = (torch.nn.functional.normalize(z.float(), dim=-1) for z in (z1, z2))
    return {
        "alignment": (z1 - z2).square().sum(-1).mean(),
        "uniformity": torch.pdist(z1).square().mul(-2).exp().mean().log(),  # NaN of a single ECG
    }


def alarms(
    values: Mapping[str, float], contrast: int, step: int, total: int, warmup: float = 0.0, rise: float = 0.0
) -> list[str]:
    """What is wrong with a game, in words, from the means of one log interval; `contrast` ECGs meet in a loss.

    Silent for the first `YOUNG` steps. `warmup`: share of the run before the masker plays, `rise`: over
    which the slope grows.
    """
    if step < YOUNG:
        return []
    progress = (step / total - warmup) / (1 - warmup)
    checks = (_encoder_alarm(values, contrast, progress), _mask_alarm(values), _extreme_alarm(values))
    faded = _faded(values) if step / total >= rise else ""
    return [said for said in (*checks, faded, _masker_alarm(values, progress)) if said]


def _encoder_alarm(values: Mapping[str, float], contrast: int, progress: float) -> str:
    spread, loss = values.get("uniformity", math.nan), values.get("loss", math.nan)
    if spread > -0.05:
        return (
            f"the encoder has collapsed: all ECGs have one embedding (uniformity {spread:.3f}); lower "
            "optim.encoder.lr, or game.share"
        )
    chance = math.log(max(2 * contrast - 1, 2))
    if progress > 0.2 and loss > 0.93 * chance and values.get("accuracy", 0.0) < 0.25:
        return (
            f"the encoder cannot learn: its loss {loss:.2f} is near that of chance, {chance:.2f}; if masks are too "
            "strong, lower game.coverage or game.share, raise game.resolution_s, or set game.masker_interval"
        )
    return ""


def _mask_alarm(values: Mapping[str, float]) -> str:
    contrast, same = values.get("mask_contrast", math.nan), values.get("mask_sameness", math.nan)
    if contrast < 0.02:
        return (
            f"the masks have collapsed: a mask is the same everywhere (deviation {contrast:.4f}), what is hidden is a "
            "toss-up; lower game.alpha, game.smoothness or optim.masker.lr"
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
            f"the masks are all or nothing: {100 * extreme:.0f} % of the ECGs are hidden under 5 or over 95 %; use "
            "game.threshold=coverage, or a larger game.alpha"
        )
    return ""


def _faded(values: Mapping[str, float]) -> str:
    coverage, hidden = values.get("coverage", math.nan), values.get("hidden", math.nan)
    if hidden < 0.25 * coverage:
        return (
            f"the masks dim instead of hiding: of the {100 * coverage:.0f} % that they cover only {100 * hidden:.0f} % "
            "of the ECG is hidden beyond 0.9; raise game.slope"
        )
    return ""


def _masker_alarm(values: Mapping[str, float], progress: float) -> str:
    own, other = (values.get(f"heldout/{name}_loss", math.nan) for name in ("masked", "others_masks"))
    if progress > 0.5 and own < 0.95 * other:
        return (
            f"the masker has lost: an ECG's own mask (held-out loss {own:.3f}) is easier than another's "
            f"({other:.3f}); raise optim.masker.lr or game.strength"
        )
    return ""
