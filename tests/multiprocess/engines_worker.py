"""Plays the game under real engines, case by case, and compares the updates with plain PyTorch on the global batch.

Started by test_engines.py through the launcher; rank 0 prints one JSON line a case.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as torch_dist
from torch import nn

from trainer import dist
from trainer.checkpoint import whole_weights
from trainer.config import BatchConfig, PlayerConfig, PretrainConfig
from trainer.engines import _deepspeed_config
from trainer.game import MASK_VIEW, Game, Pair
from trainer.losses import nt_xent
from trainer.masking import GameConfig, binarise, choose, soft_masks
from trainer.masking import cost as price
from trainer.views import Key

RATES = {"encoder": 0.5, "masker": 2.0}
SHARE, STEPS, TEMPERATURE = 4, 3, 0.3


def players(masks: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2), nn.GroupNorm(4, 16), nn.GELU(), nn.AdaptiveAvgPool1d(2), nn.Flatten(),
        nn.Linear(32, 8),
    )  # fmt: skip
    masker = nn.Sequential(nn.Conv1d(4, 8, 5, padding=2), nn.GELU(), nn.Conv1d(8, masks, 5, padding=2))
    return {"encoder": encoder, "masker": masker}


def global_pair(step: int, micro: int, world: int) -> Pair:
    generator = torch.Generator().manual_seed(100 * step + micro)
    x, v = torch.randn(2, SHARE * world, 4, 64, generator=generator)
    return Pair(x, v, Key(0, step, torch.arange(SHARE * world) + 1000 * micro))


def mine(pair: Pair, rank: int) -> Pair:
    part = slice(rank * SHARE, (rank + 1) * SHARE)
    return Pair(pair.x[part], pair.v[part], Key(0, pair.key.epoch, pair.key.index[part]))


def reference(cfg: GameConfig, accumulation: int, world: int) -> dict[str, nn.Module]:
    """Single process, sums the same losses: the encoder minimises their mean, the masker -strength * mean + penalty."""
    both = players(cfg.masks)
    optimisers = {n: torch.optim.SGD(m.parameters(), lr=RATES[n]) for n, m in both.items()}
    for step in range(STEPS):
        pairs = [global_pair(step, micro, world) for micro in range(accumulation)]

        def losses(pairs=pairs):
            total, cost = 0.0, 0.0
            for pair in pairs:
                masks = soft_masks(both["masker"](pair.v), cfg)
                hidden = binarise(choose(masks, pair.key.with_view(MASK_VIEW), cfg.use), cfg)
                seconds = [pair.v * (1 - h) for h in hidden]
                z1 = both["encoder"](pair.x)
                pair_loss = sum(nt_xent_alone(z1, both["encoder"](s)) for s in seconds) / len(seconds)
                total, cost = total + pair_loss / len(pairs), cost + price(masks, cfg) / len(pairs)
            return total, cost

        loss, cost = losses()
        encoder_gradient = torch.autograd.grad(loss, list(both["encoder"].parameters()), retain_graph=True)
        masker_loss = -cfg.strength * loss + cost
        if cfg.schedule == "simultaneous":
            masker_gradient = torch.autograd.grad(masker_loss, list(both["masker"].parameters()))
            apply(both, optimisers, "masker", masker_gradient)
            apply(both, optimisers, "encoder", encoder_gradient)
        else:
            apply(both, optimisers, "encoder", encoder_gradient)
            loss, cost = losses()
            masker_loss = -cfg.strength * loss + cost
            masker_gradient = torch.autograd.grad(masker_loss, list(both["masker"].parameters()))
            apply(both, optimisers, "masker", masker_gradient)
    return both


def nt_xent_alone(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """NT-Xent on one process, written independently of the gathering one."""
    z = nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    similar = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    partner = torch.cat([torch.arange(len(z1), len(z)), torch.arange(len(z1))])
    return (torch.logsumexp(similar, 1) - similar[torch.arange(len(z)), partner]).mean()


def apply(both, optimisers, name, gradient) -> None:
    for p, g in zip(both[name].parameters(), gradient):
        p.grad = g
    optimisers[name].step()


def engines(cfg: GameConfig, zero: int, accumulation: int, bf16: bool) -> dict[str, object]:
    import deepspeed

    run = PretrainConfig(zero=zero, batch=BatchConfig(accumulation, 1), game=cfg)
    made = {}
    for name, module in players(cfg.masks).items():
        optimiser = torch.optim.SGD(module.parameters(), lr=RATES[name])
        config = _deepspeed_config(PlayerConfig(clip=0.0), run, bf16)
        if zero == 3:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        made[name], *_ = deepspeed.initialize(model=module, optimizer=optimiser, config=config)
    return made


def flat(weights) -> torch.Tensor:
    return torch.cat([w.detach().flatten().double() for w in weights])


def play(world: dist.World, cfg: GameConfig, zero: int, accumulation: int, bf16: bool) -> dict[str, float]:
    two = engines(cfg, zero, accumulation, bf16)
    game = Game(two["encoder"], two["masker"], cfg, TEMPERATURE)
    for step in range(STEPS):
        game.step([mine(global_pair(step, m, world.size), world.rank) for m in range(accumulation)], step)
    errors = {}
    start, wanted = players(cfg.masks), reference(cfg, accumulation, world.size)
    for name, engine in two.items():
        got = flat(whole_weights(engine).values())
        right, first = flat(wanted[name].state_dict().values()), flat(start[name].state_dict().values())
        errors[name] = ((got - right).norm() / (right - first).norm()).item()
    return errors


def loss_over_ranks(world: dist.World) -> float:
    """Largest deviation of the gathered loss and its gradient from the one-process formula."""
    torch.manual_seed(1)
    z1, z2 = torch.randn(2, 5 * world.size, 7, dtype=torch.float64)
    whole1, whole2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    expected = nt_xent_alone(whole1, whole2)
    expected.backward()
    part = slice(5 * world.rank, 5 * world.rank + 5)
    a, b = z1[part].clone().requires_grad_(), z2[part].clone().requires_grad_()
    loss, _ = nt_xent(a, b, TEMPERATURE)
    loss.backward()
    mean = loss.detach().clone()
    torch_dist.all_reduce(mean)
    worst = abs(mean / world.size - expected.detach()).item()
    for got, want in ((a.grad, whole1.grad[part]), (b.grad, whole2.grad[part])):
        worst = max(worst, (got / world.size - want).abs().max().item())
    return worst


def main() -> None:
    cases = json.loads(next(a for a in sys.argv[1:] if a.startswith("[")))
    world = dist.initialise(timeout_s=120)
    say = print if world.is_main else (lambda *a, **k: None)
    say(json.dumps({"case": "loss", "error": loss_over_ranks(world)}), flush=True)
    for zero, accumulation, bf16, dials in cases:
        cfg = GameConfig(slope=5, strength=1.3, **dials)
        errors = play(world, cfg, zero, accumulation, bf16)
        say(json.dumps({"case": [zero, accumulation, bf16, dials], **errors}), flush=True)
    dist.finalise()


if __name__ == "__main__":
    main()
