"""The adversarial game, split at the mask. The only file that knows two engines.

The masker hides parts of view 2; the encoder (with its projector) recognises the ECG all the same. One encoder pass
plays both sides: the encoder minimises NT-Xent; its backward leaves d loss / d hidden at the hand-over, a leaf; the
masker's own backward carries `-strength` times that gradient on, plus its penalty. So the masker's gradient is exactly
that of `-strength * loss + penalty` (Bo et al. 2022 after ADIOS, Shi et al. 2022, equation 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sharding.config import UserError, check_ranges
from trainer.losses import nt_xent, paper_penalty
from trainer.models.chunks import in_chunks
from trainer.models.temperature import Temperature
from trainer.views.random import Key, integers

MASK_VIEW = 2
LEAST_SPREAD = 1e-3


@dataclass
class GameConfig:
    """The dials of the game.

    `enabled`: false plays without a masker (the rivals). `masks`: N, the masks drawn per ECG. `use`: `one` of the N,
    drawn per ECG, or `all` N (N terms in the loss, as in ADIOS). `coverage`: share of time that is hidden. `threshold`:
    `coverage` takes each mask's own quantile, `half` a fixed 0.5 (with `penalty: paper`). `slope`: steepness k of the
    soft binarisation, per standard deviation of the mask over time (with `half` per unit of the mask, as published).
    `resolution_s`: seconds per cell of the mask. `strength`: factor on the adversary's gradient. `penalty`: `none`, or
    `paper`: alpha / sin(pi ratio c). `schedule`: `simultaneous`, or `alternating` (the masker sees the encoder after
    its update). `masker_interval`: the masker trains every k-th step.
    """

    enabled: bool = True
    masks: int = 1
    use: str = "one"
    coverage: float = 0.5
    threshold: str = "coverage"
    slope: float = 20.0
    resolution_s: float = 0.4
    strength: float = 1.0
    penalty: str = "none"
    alpha: float = 0.1
    ratio: float = 1.0
    schedule: str = "simultaneous"
    masker_interval: int = 1

    def check(self) -> None:
        """Raises `UserError` for a value out of range or a combination that cannot work."""
        for key, known in _CHOICES.items():
            if getattr(self, key) not in known:
                raise UserError(f"game.{key}={getattr(self, key)} is unknown; use {' or '.join(known)}")
        check_ranges(self, _RANGES, "game.")
        if self.penalty == "paper" and self.ratio > 1:
            raise UserError(
                f"game.ratio={self.ratio}: the paper's penalty has a pole inside (0, 1) beyond 1; use 1 or less"
            )
        if self.penalty == "paper" and self.masks > 2:
            raise UserError(
                f"game.penalty=paper cannot hold {self.masks} masks that share the time axis near a half each; "
                "use game.masks of 1 or 2, or game.penalty=none"
            )


_CHOICES = {
    "use": ("one", "all"),
    "threshold": ("coverage", "half"),
    "penalty": ("none", "paper"),
    "schedule": ("simultaneous", "alternating"),
}
_RANGES = {
    "masks": ">= 1",
    "coverage": "> 0 and < 1",
    "slope": "> 0",
    "resolution_s": "> 0",
    "strength": ">= 0",
    "alpha": ">= 0",
    "ratio": "> 0",
    "masker_interval": ">= 1",
}


@dataclass(frozen=True)
class Pair:
    """One contrast batch's share: view 1 `x` and view 2 `v`, scaled [B, leads, T], and the key of its draws.

    `patients` int64 [B]: ECGs of one patient are no negatives of each other (None: each ECG is its own patient).
    """

    x: Tensor
    v: Tensor
    key: Key
    patients: Tensor | None = None


class Recogniser(nn.Module):
    """Backbone and projector: [B, leads, T] scaled -> [B, D]; with a learned `temperature` also its value.

    `chunk`: rows of one pass (0: all), see `in_chunks`.
    """

    def __init__(
        self, backbone: nn.Module, projector: nn.Module, temperature: Temperature | None = None, chunk: int = 0
    ) -> None:
        super().__init__()
        self.backbone, self.projector, self.temperature, self.chunk = backbone, projector, temperature, chunk

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        z = in_chunks(lambda part: self.projector(self.backbone(part)), x, self.chunk)
        return z if self.temperature is None else (z, self.temperature())


# ---- pure parts -----------------------------------------------------------------------------------------------------


def soft_masks(logits: Tensor) -> Tensor:
    """Logits [B, N, T] -> masks in (0, 1), fp32 or wider: softmax over N, or sigmoid for N = 1."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


def choose(masks: Tensor, key: Key, use: str) -> Tensor:
    """[B, N, T] -> [n, B, 1, T]: one keyed draw of the N per ECG (n = 1), or all N."""
    if use == "all":
        return masks.transpose(0, 1)[:, :, None]
    drawn = integers(key, "mask", (), masks.shape[1])
    return masks[torch.arange(len(masks), device=masks.device), drawn][None, :, None]


def binarise(masks: Tensor, cfg: GameConfig) -> Tensor:
    """sigmoid(k (mask - threshold)) over [..., T].

    `half`: the threshold is 0.5, as published. `coverage`: it is each mask's (1 - coverage) quantile, and k counts in
    standard deviations of the mask over time, both detached: whatever the masker's scale, about `coverage` of the time
    is hidden, and hidden rather than dimmed.
    """
    if cfg.threshold == "half":
        return torch.sigmoid(cfg.slope * (masks - 0.5))
    fixed = masks.detach()
    spread = fixed.std(-1, keepdim=True).clamp_min(LEAST_SPREAD)
    return torch.sigmoid(cfg.slope * (masks - quantile(fixed, 1 - cfg.coverage)) / spread)


def quantile(masks: Tensor, share: float) -> Tensor:
    """The value that `share` of the last axis lies at or under, halfway to the next: [..., T] -> [..., 1]."""
    length = masks.shape[-1]
    k = min(max(round(share * length), 1), length - 1)
    low = masks.kthvalue(k, -1, keepdim=True).values
    high = masks.kthvalue(k + 1, -1, keepdim=True).values
    return (low + high) / 2


def contrast(recognise: Callable[[Tensor], Any], pair: Pair, hidden: Tensor | None, temperature: float) -> Any:
    """One encoder pass over view 1 and every masked view 2 -> (NT-Xent, accuracy), the mean over the masks.

    `hidden`: [n, B, 1, T], 1 = hidden; None leaves view 2 as it is. A temperature that `recognise` gives beside the
    embeddings goes before `temperature`.
    """
    seconds = [pair.v] if hidden is None else [pair.v * (1 - h) for h in hidden.to(pair.v.dtype)]
    found = recognise(torch.cat([pair.x, *seconds]))
    z, t = found if isinstance(found, tuple) else (found, temperature)
    z1, *others = z.chunk(1 + len(seconds))
    losses, accuracies = zip(*(nt_xent(z1, z2, t, pair.patients) for z2 in others))
    return torch.stack(losses).mean(), torch.stack(accuracies).mean()


def penalty(masks: Tensor, cfg: GameConfig) -> Tensor:
    """The masker's penalty on its raw masks [B, N, T]; zero without one."""
    if cfg.penalty == "paper":
        return paper_penalty(masks, cfg.alpha, cfg.ratio)
    return masks.new_zeros(())


# ---- under engines --------------------------------------------------------------------------------------------------


class NonFiniteError(RuntimeError):
    """A loss or a handed-over gradient was not finite on some rank: agreed by all ranks before the step."""


class Game:
    """Plays one optimiser step from `len(pairs)` contrast batches on the two engines (`masker` None: no adversary)."""

    def __init__(self, encoder: Any, masker: Any | None, cfg: GameConfig, temperature: float) -> None:
        self.encoder, self.masker, self.cfg, self.temperature = encoder, masker, cfg, temperature

    def step(self, pairs: Sequence[Pair], step: int, stop: bool = False) -> tuple[dict[str, Tensor], bool]:
        """Both players' updates. Returns this rank's figures (means over the pairs, on the device) and whether any
        rank was asked to stop. Raises `NonFiniteError` on all ranks before the player concerned is updated."""
        trains = self.masker is not None and step % self.cfg.masker_interval == 0
        if trains and self.cfg.schedule == "alternating":
            figures, stop = self._encoder_phase(pairs, False, stop)
            self._masker_phase(pairs)
            return figures, stop
        return self._encoder_phase(pairs, trains, stop)

    def _encoder_phase(self, pairs: Sequence[Pair], both: bool, stop: bool) -> tuple[dict[str, Tensor], bool]:
        figures: list[dict[str, Tensor]] = []
        for n, pair in enumerate(pairs):
            played, finite = self._play(pair, both, len(pairs))
            figures.append(played)
            self._finite = finite if n == 0 else self._finite & finite
            if n == len(pairs) - 1:
                stop = self._agree(self._finite, stop, "no weight was changed by it")
            self.encoder.step()
            if both:
                self.masker.step()
        return {name: torch.stack([f[name] for f in figures]).mean() for name in figures[0]}, stop

    def _play(self, pair: Pair, both: bool, accumulation: int) -> tuple[dict[str, Tensor], Tensor]:
        if self.masker is None:
            loss, accuracy = contrast(self.encoder, pair, None, self.temperature)
            self.encoder.backward(loss)
            return {"loss": loss.detach(), "accuracy": accuracy}, loss.detach().isfinite()
        with contextlib.nullcontext() if both else torch.no_grad():
            masks, chosen = self.hide(self.masker, pair)
        hidden = chosen.detach().requires_grad_(both)
        loss, accuracy = contrast(self.encoder, pair, hidden, self.temperature)
        self.encoder.backward(loss)
        cost = penalty(masks, self.cfg)
        finite = loss.detach().isfinite() & cost.detach().isfinite()
        if both:
            assert hidden.grad is not None
            finite = finite & hidden.grad.isfinite().all()
            adversary = -self.cfg.strength * accumulation * hidden.grad
            self.masker.backward((chosen * adversary).sum() + cost)
        figures = {"loss": loss.detach(), "accuracy": accuracy, "penalty": cost.detach()}
        return figures | health(masks.detach(), hidden.detach()), finite

    def _masker_phase(self, pairs: Sequence[Pair]) -> None:
        """The second half of the alternating schedule: the updated encoder, frozen, called past its engine."""
        for n, pair in enumerate(pairs):
            masks, chosen = self.hide(self.masker, pair)
            chosen.retain_grad()
            with _frozen(self.encoder.module):  # also backward, which makes chunks again
                with _autocast(self.encoder):
                    loss, _ = contrast(self.encoder.module, pair, chosen, self.temperature)
                cost = penalty(masks, self.cfg)
                self.masker.backward(-self.cfg.strength * loss + cost)
            assert chosen.grad is not None
            finite = loss.detach().isfinite() & cost.detach().isfinite() & chosen.grad.isfinite().all()
            self._finite = finite if n == 0 else self._finite & finite
            if n == len(pairs) - 1:
                self._agree(self._finite, False, "the masker was not changed by it, the encoder is one step further")
            self.masker.step()

    def hide(self, masker: Callable[[Tensor], Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
        """(raw masks [B, N, T], soft-binarised chosen ones [n, B, 1, T]) for a pair."""
        masks = soft_masks(masker(pair.v))
        return masks, binarise(choose(masks, pair.key.with_view(MASK_VIEW), self.cfg.use), self.cfg)

    @torch.no_grad()
    def evaluate(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """(NT-Xent, accuracy) of a pair without an update, over all ranks."""
        modules = [e.module for e in (self.encoder, self.masker) if e is not None]
        try:
            for module in modules:
                module.eval()
            hidden = None
            if self.masker is not None:
                _, hidden = self.hide(self.masker, pair)
            return contrast(self.encoder, pair, hidden, self.temperature)
        finally:
            for module in modules:
                module.train()

    def _agree(self, finite: Tensor, stop: bool, kept: str) -> bool:
        flags = torch.stack([(~finite).float(), torch.full_like(finite, stop, dtype=torch.float32)])
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        broken, stop_any = flags.tolist()
        if broken:
            raise NonFiniteError(f"the loss or the gradient at the mask is not finite on at least one rank; {kept}")
        return bool(stop_any)


@torch.no_grad()
def health(masks: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """Coverage (time mean of the binarised mask), share of time that is hidden (beyond 0.9, not only dimmed), share of
    ECGs with under 5 or over 95 % coverage, entropy of the raw masks."""
    coverage = hidden.mean((-1, -2))
    p = masks.clamp(1e-6, 1 - 1e-6)
    entropy = -(p * p.log()).sum(1) if masks.shape[1] > 1 else -(p * p.log() + (1 - p) * (1 - p).log()).sum(1)
    extreme = ((coverage < 0.05) | (coverage > 0.95)).float()
    full = (hidden > 0.9).float().mean()
    found = {"coverage": coverage.mean(), "hidden": full, "extreme_coverage": extreme.mean()}
    return {**found, "mask_entropy": entropy.mean()}


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _autocast(engine: Any) -> contextlib.AbstractContextManager[None]:
    """What the engine's own forward does by itself: `module` goes past `torch_autocast`."""
    if not engine.torch_autocast_enabled():
        return contextlib.nullcontext()
    return torch.autocast(engine.device.type, dtype=engine.torch_autocast_dtype())
