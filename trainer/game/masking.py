"""From the masker's logits to masked signals: pure functions, and the settings of the game.

Masks are log-odds [B, N, R, *S]: N masks per ECG, each with R rows (1, or one per lead), S the grid of a mask: (T,), or
(bins, frames) of the spectrum. Their sigmoid is the published mask, in (0, 1); log-odds still distinguish values where
the sigmoid saturates.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from trainer.game.losses import paper_penalty
from trainer.views.masks import BlockMask
from trainer.views.random import Key, integers, uniform
from trainer.views.softly import softly
from umbra.config import check_fields, setting
from umbra.errors import UserError


@dataclass
class GameConfig:
    """The settings of the game. Fractions of the run are of its total steps; if `steps` changes, of the new total."""

    enabled: bool = True
    """Whether a masker is trained; false for the baselines."""
    family: str = setting("time", choices=("time", "lead", "spectral"))
    """What a mask hides: `time` (samples, the same in all leads), `lead` (samples, with a separate mask per lead),
    `spectral` (cells of the short-time spectrum, the same in all leads). On the validation folds `lead` was better on
    rhythm and worse on sex."""
    masks: int = setting(1, ">= 1 and <= 64")
    """N, the number of masks per ECG; three or six were no better than one on the validation folds
    (docs/results/game-dials.md)."""
    use: str = setting("one", choices=("one", "all"))
    """`one` of the N masks, drawn per ECG, or `all` (N terms in the loss, as in ADIOS)."""
    mask_of: str = setting("own", choices=("own", "another"))
    """Whose mask hides an ECG: its `own`, or that of `another` patient's ECG of the contrast batch: a control, whose
    masks are learned but know nothing of what they hide."""
    coverage: float = setting(0.5, "> 0 and < 1")
    """Fraction of the mask that is hidden; configs/pretrain/adversarial.yaml sets 0.25 (docs/results/pairs.md). On the
    validation folds 0.75 was worse on rhythm with few labels."""
    threshold: str = setting("coverage", choices=("coverage", "half"))
    """`coverage`: a quantile of each mask; `half`: a fixed 0.5 (with `penalty: paper`)."""
    resolution_s: float = setting(0.4, "> 0")
    """Seconds per cell of the mask."""
    slope: float = setting(20.0, "> 0")
    """Steepness k of the soft binarisation, per standard deviation of a mask's log-odds over its grid (with `half`
    per unit of the mask, as published). 20 was chosen in an early exploration, on test folds; on the validation folds
    5 was better on rhythm and worse on sex."""
    slope_start: float = setting(0.0, ">= 0")
    """Initial slope, from which it grows to `slope` once the masker is in use (0: constant);
    configs/pretrain/adversarial.yaml sets 2."""
    slope_rise: float = setting(0.0, ">= 0 and <= 1")
    """Fraction of the run over which the slope grows; configs/pretrain/adversarial.yaml sets 0.5, which had the
    highest mean of twelve settings on the validation folds."""
    share: float = setting(1.0, "> 0 and <= 1")
    """Fraction of the ECGs, redrawn each epoch, that the masker masks; the others get a random block of the same
    coverage, exact to the sample (that of a mask is in whole cells). configs/pretrain/adversarial.yaml sets 0.5,
    which had the highest mean of seven settings on the validation folds (docs/results/pairs.md)."""
    warmup: float = setting(0.0, ">= 0 and < 1")
    """Fraction of the run before the masker is used, with random blocks instead. Half of the run was no better on the
    validation folds."""
    strength: float = setting(1.0, ">= 0")
    """Factor on the adversary's gradient. AdamW is invariant to a constant factor, so it only matters relative to the
    penalties on masks; `optim.masker.lr` sets the masker's speed."""
    strength_rise: float = setting(0.0, ">= 0 and <= 1")
    """Fraction of the run over which the strength rises from 0, after `warmup`."""
    masker_interval: int = setting(1, ">= 1 and <= 1000000")
    """The masker is trained every k-th step; every fourth was no better on the validation folds."""
    schedule: str = setting("simultaneous", choices=("simultaneous", "alternating"))
    """`simultaneous`, or `alternating` (the masker is trained against the encoder after its update)."""
    penalty: str = setting("none", choices=("none", "paper"))
    """Penalty on the raw masks, with `threshold: half`: `paper` is alpha / sin(pi ratio c) with c the mean of a mask,
    summed over the N masks (per-lead masks: averaged over leads)."""
    alpha: float = setting(0.1, ">= 0")
    """Weight of the paper's penalty."""
    ratio: float = setting(1.0, "> 0")
    """R of the paper's penalty, whose minimum is at a mean mask of 0.5 / R."""
    entropy: float = setting(0.0, ">= 0")
    """Weight of a penalty on the mean entropy of the masks, in nats."""
    smoothness: float = setting(0.0, ">= 0")
    """Weight of a penalty on the total variation of a mask along time."""

    def check(self) -> None:
        """Raises `UserError` for a value out of range or a combination that cannot work."""
        check_fields(self, "game.")
        if self.penalty == "paper" and self.ratio > 1:
            raise UserError(
                f"game.ratio={self.ratio}: above 1, the paper's penalty has a pole inside (0, 1); use 1 or less"
            )
        if self.penalty == "paper" and self.masks > 2:
            raise UserError(
                f"game.penalty=paper cannot keep {self.masks} masks that share the time axis near one half each; "
                "use game.masks of 1 or 2, or game.penalty=none"
            )
        if bool(self.slope_start) != bool(self.slope_rise):
            raise UserError(
                f"game.slope_start={self.slope_start:g} and game.slope_rise={self.slope_rise:g} only work together: "
                "set both, or leave both at 0"
            )
        for key in ("strength", "slope"):
            rise = getattr(self, f"{key}_rise")
            if self.warmup + rise > 1:
                raise UserError(
                    f"game.warmup={self.warmup:g} and game.{key}_rise={rise:g} exceed the whole run "
                    f"together: the adversary would never reach game.{key}; lower one of them"
                )
        for key, needed in self._idle():
            if getattr(self, key) != getattr(GameConfig, key):
                other = "" if self.enabled else ", or choose a YAML of configs/pretrain without a game"
                raise UserError(f"game.{key}={getattr(self, key)} has no effect without {needed}: leave it out{other}")
        costs = [f"game.{key}={value}" for key, value in self.costs().items()]
        if costs and self.threshold == "coverage":
            raise UserError(
                f"{costs[0]} penalises the raw mask, but game.threshold=coverage only uses the order of its values: "
                "the masker would shrink the mask and hide the same; use game.threshold=half"
            )

    def _idle(self) -> list[tuple[str, str]]:
        """(key, what it needs) of the keys that have no effect with the current values of others."""
        if not self.enabled:
            return [(f.name, "game.enabled=true") for f in fields(self) if f.name != "enabled"]
        idle = []
        if self.threshold == "half" and self.share == 1 and not self.warmup:
            idle.append(("coverage", "game.threshold=coverage, or random blocks"))
        if self.penalty != "paper":
            idle += [("alpha", "game.penalty=paper"), ("ratio", "game.penalty=paper")]
        if self.masks == 1:
            idle.append(("use", "game.masks of 2 or more"))
        return idle

    def costs(self) -> dict[str, object]:
        """The penalties that are on, by key."""
        given = {"penalty": self.penalty, "entropy": self.entropy, "smoothness": self.smoothness}
        return {key: value for key, value in given.items() if value not in ("none", 0)}

    def at(self, progress: float) -> GameConfig:
        """The settings at this fraction of the run: 0 at its first step, 1 at its end."""
        played = progress - self.warmup
        slope, start = self.slope, self.slope_start or self.slope
        return replace(
            self,
            share=self.share if played >= 0 else 0.0,
            strength=self.strength * _risen(played, self.strength_rise),
            slope=start * (slope / start) ** _risen(max(played, 0.0), self.slope_rise),
        )

    def hop(self, rate: float) -> int:
        """Samples per cell of a mask at `rate` Hz."""
        return max(1, round(self.resolution_s * rate))

    def channels(self, leads: int, hop: int) -> int:
        """Output channels of the masker: one per mask, row and (for a spectrum) bin."""
        return self.masks * {"time": 1, "lead": leads, "spectral": hop + 1}[self.family]


def _risen(progress: float, over: float) -> float:
    return min(1.0, progress / over) if over > 0 and progress >= 0 else float(progress >= 0)


def soft_masks(logits: Tensor, cfg: GameConfig, hop: int = 1) -> Tensor:
    """The masker's logits [B, channels, T] -> log-odds of the masks [B, N, R, *S], fp32 or wider.

    For N = 1 the log-odds of a sigmoid, else of a softmax over N. `hop`: samples per cell; the spectrum has
    ceil(T / hop) + 1 frames, at both ends and between cells.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    batch, length = len(logits), logits.shape[-1]
    if cfg.family == "spectral":
        frames = torch.arange(-(-length // hop) + 1, device=logits.device) * hop
        logits = logits[..., frames.clamp_max(length - 1)].view(batch, cfg.masks, 1, hop + 1, -1)
    else:
        logits = logits.view(batch, cfg.masks, -1, length)
    if cfg.masks == 1:
        return logits
    each = logits.unbind(1)  # indexing by a list would copy from the host
    others = [torch.stack(each[:n] + each[n + 1 :], 1).logsumexp(1) for n in range(cfg.masks)]
    return logits - torch.stack(others, 1)


def choose(masks: Tensor, key: Key, use: str) -> Tensor:
    """[B, N, R, *S] -> [n, B, R, *S]: one keyed draw of the N per ECG (n = 1), or all N."""
    if use == "all" or masks.shape[1] == 1:  # of one there is nothing to draw, which takes eighty operators
        return masks.transpose(0, 1)
    drawn = integers(key, "mask", (), masks.shape[1])
    return masks[torch.arange(len(masks), device=masks.device), drawn][None]


def binarise(masks: Tensor, cfg: GameConfig) -> Tensor:
    """Soft binarisation of masks [n, B, R, *S], 1 where hidden: sigmoid(k (mask - threshold)).

    `half`: of the published mask, with the threshold 0.5. `coverage`: of the log-odds; the threshold is the
    (1 - coverage) quantile of each mask, and k is per standard deviation of the mask, both detached: whatever the
    masker's scale and bias, about `coverage` of a mask is hidden, and hidden rather than dimmed.
    """
    if cfg.threshold == "half":
        return torch.sigmoid(cfg.slope * (masks.sigmoid() - 0.5))
    return softly(masks.flatten(3), cfg.coverage, cfg.slope).view_as(masks)


def with_random_blocks(hidden: Tensor, key: Key, cfg: GameConfig) -> Tensor:
    """[n, B, R, *S] -> the same, with the mask replaced by a random block for `1 - share` of the ECGs, drawn by key."""
    if cfg.share == 1:
        return hidden
    played = uniform(key, "share") < cfg.share
    rows = BlockMask(op="share.block", coverage=cfg.coverage, per_lead=True)
    block = rows.hidden(key, hidden.shape[2], hidden.shape[-1]).to(hidden.dtype)
    if hidden.dim() == 5:
        block = block[..., None, :].expand(hidden.shape[1:])
    return torch.where(played.view(1, -1, *[1] * (hidden.dim() - 2)), hidden, block[None])


def cover(v: Tensor, hidden: Tensor, cfg: GameConfig, hop: int = 1) -> Tensor:
    """The signals v [B, leads, T] without what [B, R, *S] hides; 0 leaves a signal exactly unchanged.

    With `spectral`, cells of the short-time spectrum (Hann window of 2 `hop` samples, every `hop` samples) are removed,
    and the inverse is exact. The last cell is zero-padded, so that two frames cover each sample: with only one, the
    inverse has a pole at the end of the frame.
    """
    hidden = hidden.to(v.dtype)
    if cfg.family != "spectral":
        return v * (1 - hidden)
    flat = v.flatten(0, 1).to(torch.promote_types(v.dtype, torch.float32))
    flat = torch.nn.functional.pad(flat, (0, -v.shape[-1] % hop))
    window = torch.hann_window(2 * hop, dtype=flat.dtype, device=v.device)
    spectrum = torch.stft(flat, 2 * hop, hop, window=window, return_complex=True, pad_mode="constant")
    removed = spectrum.view(*v.shape[:2], *spectrum.shape[1:]) * hidden.to(flat.dtype)
    difference = _inverse(removed.flatten(0, 1), window)[..., : v.shape[-1]]
    return v - difference.view_as(v).to(v.dtype)


def _inverse(spectrum: Tensor, window: Tensor) -> Tensor:
    """Short-time spectrum [n, bins, frames], with centred frames half a window apart -> [n, samples].

    The same as torch's istft, which synchronises with the device to check the window (Griffin and Lim 1984, eq. 6).
    """
    frames = torch.fft.irfft(spectrum, len(window), dim=1) * window[:, None]
    weight = window.square()[:, None].expand(-1, frames.shape[-1])
    return (_overlapped(frames) / _overlapped(weight[None])).transpose(1, 2).flatten(1)


def _overlapped(frames: Tensor) -> Tensor:
    """[n, 2 hop, F] -> [n, hop, F]: the second half of each frame plus the first half of the next one."""
    early, late = frames.chunk(2, 1)
    return late + torch.nn.functional.pad(early[..., 1:], (0, 1))


def cost(masks: Tensor, cfg: GameConfig) -> Tensor:
    """The masker's penalties on the published masks, given as log-odds [B, N, R, *S]: a scalar, zero without penalties.
    The paper's penalty is summed over the N masks and averaged over the R rows."""
    total = masks.new_zeros(())
    if not cfg.costs():
        return total
    masks = masks.sigmoid()
    if cfg.penalty == "paper":
        total = total + paper_penalty(masks.flatten(3).flatten(1, 2), cfg.alpha, cfg.ratio) / masks.shape[2]
    if cfg.entropy:
        total = total + cfg.entropy * entropy(masks)
    if cfg.smoothness:
        total = total + cfg.smoothness * masks.diff(dim=-1).abs().sum(-1).mean()
    return total


def entropy(masks: Tensor) -> Tensor:
    """Mean entropy per grid point of N published masks [B, N, ...], in nats; for N = 1 of hidden or not."""
    p = masks.clamp(1e-6, 1 - 1e-6)
    if masks.shape[1] == 1:
        p = torch.cat([p, 1 - p], 1)
    return -(p * p.log()).sum(1).mean()
