"""The adversarial game, split at the mask. The only file that knows two engines.

The masker hides parts of view 2; the encoder (with its projector) must match the two views regardless. One encoder pass
trains both: the encoder minimises NT-Xent; its backward leaves d loss / d hidden at the mask, which is detached (a
leaf); the masker's own backward continues with `-strength` times that gradient, and adds its penalty. So the masker's
gradient is exactly that of `-strength * loss + penalty` (Bo et al. 2022 after ADIOS, Shi et al. 2022, equation 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer import distributed, heartbeat
from trainer.game.health import embedding_figures, mask_figures
from trainer.game.losses import nt_xent
from trainer.game.masking import GameConfig, binarise, choose, cost, cover, soft_masks, with_random_blocks
from trainer.game.others import of_others
from trainer.views.random import Key

MASK_VIEW = 2


@dataclass(frozen=True)
class Pair:
    """One rank's share of a contrast batch: view 1 `x` and view 2 `v`, scaled [B, leads, T], and the key of its draws.

    `patients` int64 [B]: ECGs of one patient are not negatives of each other (None: each ECG is its own patient).
    """

    x: Tensor
    v: Tensor
    key: Key
    patients: Tensor | None = None


def contrast(
    recognise: Callable[..., Any],
    x: Tensor,
    seconds: Sequence[Tensor],
    temperature: float,
    patients: Tensor | None = None,
    watched: bool = True,
) -> Any:
    """One encoder pass over view 1 [B, leads, T] and every second view -> (NT-Xent, metrics), means over the latter.

    `watched`: with the figures of the embeddings. A temperature that `recognise` returns with the embeddings takes
    precedence over `temperature`.
    """
    found = recognise(x, *seconds)
    z, t = found if isinstance(found, tuple) else (found, temperature)
    z1, *others = z.chunk(1 + len(seconds))
    losses, accuracies = zip(*(nt_xent(z1, z2, t, patients) for z2 in others))
    figures = {"accuracy": _mean(accuracies)}
    if watched:
        figures |= embedding_figures(z1.detach(), others[0].detach())
    return _mean(losses), figures


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean()


# ---- under engines --------------------------------------------------------------------------------------------------


class Engine(Protocol):
    """What the game needs of a DeepSpeed engine: a forward pass, a backward pass that reduces gradients, a step."""

    @property
    def module(self) -> nn.Module: ...
    def __call__(self, *views: Tensor) -> Any: ...
    def backward(self, loss: Tensor) -> Any: ...
    def step(self) -> Any: ...


class Still:
    """An engine on one process that computes gradients, and leaves the weights as they are."""

    def __init__(self, module: nn.Module, device: torch.device, bf16: bool) -> None:
        self.module, self.device, self.bf16 = module, device, bf16

    def __call__(self, *views: Tensor) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            return self.module(*views)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        pass

    def torch_autocast_enabled(self) -> bool:
        return self.bf16

    def torch_autocast_dtype(self) -> torch.dtype:
        return torch.bfloat16


class NonFiniteError(RuntimeError):
    """A loss or the gradient at the mask is not finite on some rank; raised on all ranks, instead of the step.

    `stop`: whether any rank was asked to stop.
    """

    def __init__(self, said: str, stop: bool = False) -> None:
        super().__init__(said)
        self.stop = stop


class Game:
    """Plays one optimiser step from `len(pairs)` contrast batches on the two engines (`masker` None: no adversary).

    `hop`: samples per cell of a mask. `total`: steps of the run, to which the schedules in `cfg` are relative. `skip`
    ends an engine's step without an update, so that the next one can be played.
    """

    def __init__(
        self,
        encoder: Engine,
        masker: Engine | None,
        cfg: GameConfig,
        temperature: float,
        hop: int = 1,
        total: int = 1,
        skip: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        self.encoder, self.masker, self.temperature = encoder, masker, temperature
        self.dials, self._cfg, self.hop, self._total = cfg.at(1.0), cfg, hop, total
        self._skip, self._watched = skip, True

    def step(
        self, pairs: Sequence[Pair], step: int, stop: bool = False, watched: bool = True
    ) -> tuple[dict[str, Tensor], bool]:
        """Updates both players. Returns this rank's metrics (means over the pairs, on the device; `watched`: also those
        of masks and embeddings) and whether any rank was asked to stop. Raises `NonFiniteError` on all ranks before the
        player concerned is updated."""
        self.dials, self._watched = self._cfg.at(step / self._total), watched
        with self._statistics_kept():
            return self._step(pairs, step, stop)

    def _step(self, pairs: Sequence[Pair], step: int, stop: bool) -> tuple[dict[str, Tensor], bool]:
        masker = self.masker
        trains = masker is not None and step % self.dials.masker_interval == 0 and self.dials.share > 0
        if masker is not None and trains and self.dials.schedule == "alternating":
            figures, stop = self._encoder_phase(pairs, None, stop)
            self._masker_phase(masker, pairs, stop)
            return figures, stop
        return self._encoder_phase(pairs, masker if trains else None, stop)

    def _encoder_phase(
        self, pairs: Sequence[Pair], trained: Engine | None, stop: bool
    ) -> tuple[dict[str, Tensor], bool]:
        """The encoder's update and, in the same pass, that of the `trained` masker."""
        figures: list[dict[str, Tensor]] = []
        all_finite: list[Tensor] = []  # one bool per pair
        for pair in pairs:
            played, finite = self._play(pair, trained, len(pairs))
            figures.append(played)
            all_finite.append(finite)
            if len(all_finite) == len(pairs):
                both = [self.encoder] if trained is None else [self.encoder, trained]
                stop = self._agree(torch.stack(all_finite).all(), stop, "no weight was changed", both)
            heartbeat.doing("update")
            self.encoder.step()
            if trained is not None:
                trained.step()
        return {name: _mean([f[name] for f in figures]) for name in figures[0]}, stop

    def _play(self, pair: Pair, trained: Engine | None, accumulation: int) -> tuple[dict[str, Tensor], Tensor]:
        heartbeat.doing("forward")
        if self.masker is None:
            loss, figures = self._contrast(self.encoder, pair, None, self._watched)
            heartbeat.doing("backward")
            self.encoder.backward(loss)
            return {"loss": loss.detach(), **figures}, loss.detach().isfinite()
        with contextlib.nullcontext() if trained is not None else torch.no_grad():
            masks, chosen = self.hide(self.masker, pair)
        hidden = chosen.detach().requires_grad_(trained is not None)
        loss, figures = self._contrast(self.encoder, pair, hidden, self._watched)
        heartbeat.doing("backward")
        self.encoder.backward(loss)
        price = cost(masks, self.dials)
        finite = (loss + price).detach().isfinite()
        if trained is not None:
            assert hidden.grad is not None
            finite = finite & hidden.grad.isfinite().all()
            adversary = -self.dials.strength * accumulation * hidden.grad
            trained.backward((chosen * adversary).sum() + price)
        figures = {"loss": loss.detach(), "penalty": price.detach(), **figures}
        if self._watched:
            figures |= mask_figures(masks.detach(), hidden.detach(), self.dials)
        return figures, finite

    def _masker_phase(self, masker: Engine, pairs: Sequence[Pair], stop: bool = False) -> None:
        """The second half of the alternating schedule: the updated encoder, frozen and called without its engine."""
        all_finite: list[Tensor] = []
        for pair in pairs:
            heartbeat.doing("masker's forward")
            masks, chosen = self.hide(masker, pair)
            chosen.retain_grad()
            with frozen(self.encoder.module):  # the backward too, which recomputes chunks
                with _autocast(self.encoder):
                    loss, _ = self._contrast(self.encoder.module, pair, chosen)
                price = cost(masks, self.dials)
                heartbeat.doing("masker's backward")
                masker.backward(-self.dials.strength * loss + price)
            assert chosen.grad is not None
            finite = (loss + price).detach().isfinite() & chosen.grad.isfinite().all()
            all_finite.append(finite)
            if len(all_finite) == len(pairs):
                kept = "the masker was not changed, the encoder was already updated in this step"
                self._agree(torch.stack(all_finite).all(), stop, kept, [masker])
            masker.step()

    def masks_of(self, masker: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """The masks of signals [B, leads, T], as log-odds [B, N, R, *S]."""
        return soft_masks(masker(v), self.dials, self.hop)

    def hide(self, masker: Callable[[Tensor], Tensor], pair: Pair) -> tuple[Tensor, Tensor]:
        """(all masks [B, N, R, *S], the chosen ones soft-binarised [n, B, R, *S]) of a pair."""
        masks, key = self.masks_of(masker, pair.v), pair.key.with_view(MASK_VIEW)
        return masks, with_random_blocks(self._given(self._chosen(masks, key), pair), key, self.dials)

    def _chosen(self, masks: Tensor, key: Key) -> Tensor:
        return binarise(choose(masks, key, self.dials.use), self.dials)

    def _given(self, chosen: Tensor, pair: Pair) -> Tensor:
        """The masks that the ECGs get: their own, or those of others."""
        return chosen if self.dials.mask_of == "own" else of_others(chosen, pair.patients)

    def _contrast(self, recognise: Callable[..., Any], pair: Pair, hidden: Tensor | None, watched: bool = False) -> Any:
        seconds = [pair.v] if hidden is None else self.covered(pair.v, hidden)
        return contrast(recognise, pair.x, seconds, self.temperature, pair.patients, watched)

    def covered(self, v: Tensor, hidden: Tensor) -> list[Tensor]:
        """The second views: v under each of the n masks [n, B, R, *S]."""
        return [cover(v, h, self.dials, self.hop) for h in hidden]

    @torch.no_grad()
    def cosines(self, pair: Pair) -> Tensor:
        """The cosine of the embeddings of the two views of each ECG, [B], as the encoder is and without an update."""
        with self._evaluating():
            found = self.encoder(pair.x, pair.v)
        z1, z2 = (found[0] if isinstance(found, tuple) else found).float().chunk(2)
        return nn.functional.cosine_similarity(z1, z2)

    @torch.no_grad()
    def evaluate(self, pair: Pair) -> dict[str, Tensor]:
        """NT-Xent `loss` and `accuracy` of a pair without an update, over all ranks.

        Batch norm uses its running statistics, which come from the same kind of pass: view 1 and masked views 2
        together. With a masker also `masked_loss`, without the random blocks of `share`, and `others_masks_loss`, where
        each ECG gets the mask of another one: the control that shows whether masks are specific to an ECG.
        """
        with self._evaluating():
            if self.masker is None:
                loss, figures = self._contrast(self.encoder, pair, None)
                return {"loss": loss, "accuracy": figures["accuracy"]}
            key = pair.key.with_view(MASK_VIEW)
            own = self._chosen(self.masks_of(self.masker, pair.v), key)
            played = with_random_blocks(self._given(own, pair), key, self.dials)
            loss, figures = self._contrast(self.encoder, pair, played)
            masked = loss if played is own else self._contrast(self.encoder, pair, own)[0]
            others, _ = self._contrast(self.encoder, pair, own.roll(max(1, own.shape[1] // 2), 1))  # of another patient
            figures = {"accuracy": figures["accuracy"], "masked_loss": masked, "others_masks_loss": others}
            return {"loss": loss, **figures}

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Inside the block, both players are in eval mode."""
        modules = [e.module for e in (self.encoder, self.masker) if e is not None]
        try:
            for module in modules:
                module.eval()
            yield
        finally:
            for module in modules:
                module.train()

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Gives batch norm the statistics back that it had before a step which is not finite."""
        modules = [e.module for e in (self.encoder, self.masker) if e is not None]
        kept = [(b, b.clone()) for module in modules for b in module.buffers()]
        try:
            yield
        except NonFiniteError:
            with torch.no_grad():
                for buffer, before in kept:
                    buffer.copy_(before)
            raise

    def _agree(self, finite: Tensor, stop: bool, kept: str, engines: Sequence[Engine]) -> bool:
        """Whether any rank was asked to stop. If all is not finite on all ranks, skips the step of the engines."""
        flags = torch.stack([(~finite).float(), torch.full_like(finite, stop, dtype=torch.float32)])
        broken, stop_any = distributed.largest_over_ranks(flags).tolist()
        if broken:
            for engine in engines:
                self._skip(engine)
            said = f"the loss or the gradient at the mask is not finite on at least one rank; {kept}"
            raise NonFiniteError(said, bool(stop_any))
        return bool(stop_any)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block, the module's parameters get no gradient."""
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        for p in trained:
            p.requires_grad_(False)
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _autocast(engine: Any) -> contextlib.AbstractContextManager[None]:
    """The autocast of the engine's own forward, which a direct call of `module` bypasses."""
    if not engine.torch_autocast_enabled():
        return contextlib.nullcontext()
    return torch.autocast(engine.device.type, dtype=engine.torch_autocast_dtype())
