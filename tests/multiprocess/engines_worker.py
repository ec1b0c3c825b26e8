"""Plays the game under real engines, case by case, and compares the updates with plain PyTorch on the global batch.

Started by test_engines.py through the launcher; rank 0 prints one JSON line a case.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import nn

from trainer import distributed
from trainer.config import BatchConfig, PlayerConfig, PretrainConfig
from trainer.game.batchnorm import over_all_ranks
from trainer.game.game import MASK_VIEW, Game, Pair
from trainer.game.losses import nt_xent
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig, binarise, choose, cover, soft_masks, with_random_blocks
from trainer.game.masking import cost as price
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.game.temperature import Temperature
from trainer.run import engines
from trainer.run.checkpoint import whole_weights
from trainer.views import Key
from umbra.encoders.registry import build_encoder

RATES = {"encoder": 0.5, "masker": 2.0}
ADAMW = {"encoder": PlayerConfig(3e-3, 0.3, 0.02), "masker": PlayerConfig(1e-3, 0.1, 0.001)}
SHARE, TEMPERATURE, HOP = 4, 0.3, 8


@dataclass
class Case:
    """`device` and `learn` as `batch.device` and `learn_temperature`; `adamw`: AdamW with decay and clipping, else SGD.

    `norm`: `group`, or `batch`, torch's in the reference. `plain`: float64, without DeepSpeed, gradients averaged over
    the ranks by hand.
    """

    zero: int = 0
    accumulation: int = 1
    bf16: bool = False
    dials: dict[str, Any] = field(default_factory=dict)
    device: int = 0
    learn: bool = False
    adamw: bool = False
    plain: bool = False
    norm: str = "group"
    steps: int = 3

    @property
    def game(self) -> GameConfig:
        return GameConfig(**{"slope": 5, "strength": 1.3, "masks": 1, **self.dials})

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.plain else torch.float32


def players(case: Case) -> dict[str, nn.Module]:
    """Small smooth networks, the same on all ranks."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 16) if case.norm == "group" else nn.BatchNorm1d(16)
    conv = nn.Conv1d(4, 16, 5, padding=2, bias=case.norm == "group")
    backbone = nn.Sequential(conv, norm, nn.GELU(), nn.AdaptiveAvgPool1d(2), nn.Flatten())
    views = 1 + (case.game.masks if case.game.use == "all" else 1)
    temperature = Temperature(TEMPERATURE) if case.learn else None
    encoder = ContrastiveEncoder(backbone, nn.Linear(32, 8), temperature, chunk=views * case.device)
    masker = nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2), nn.GELU(), nn.Conv1d(8, case.game.channels(4, HOP), 5, padding=2)
    )
    return {"encoder": encoder.to(case.dtype), "masker": masker.to(case.dtype)}


def global_pair(step: int, micro: int, world: int, dtype: torch.dtype) -> Pair:
    """Some ECGs are of one patient, on one rank and on several."""
    generator = torch.Generator().manual_seed(100 * step + micro)
    x, v = torch.randn(2, SHARE * world, 4, 64, generator=generator, dtype=torch.float64).to(dtype)
    index = torch.arange(SHARE * world) + 1000 * micro
    return Pair(x, v, Key(0, step, index), index // 2 % 5)


def mine(pair: Pair, world: distributed.World, share: int = SHARE) -> Pair:
    """This rank's part, on its device."""
    part = slice(world.rank * share, (world.rank + 1) * share)
    assert pair.patients is not None
    x, v, index, patients = (t[part].to(world.device) for t in (pair.x, pair.v, pair.key.index, pair.patients))
    return Pair(x, v, Key(0, pair.key.epoch, index), patients)


# ---- one process, plain PyTorch --------------------------------------------------------------------------------------


def nt_xent_alone(
    z1: torch.Tensor, z2: torch.Tensor, temperature: Any = TEMPERATURE, patients: torch.Tensor | None = None
) -> torch.Tensor:
    """NT-Xent on one process, written independently of the gathering one."""
    z = nn.functional.normalize(torch.cat([z1, z2]), dim=1)
    who = torch.arange(len(z1)) if patients is None else patients
    who = torch.cat([who, who])
    partner = torch.cat([torch.arange(len(z1), len(z)), torch.arange(len(z1))])
    left_out = (who[:, None] == who).index_put((torch.arange(len(z)), partner), torch.tensor(False))
    similar = (z @ z.T / temperature).masked_fill(left_out, -torch.inf)
    return (torch.logsumexp(similar, 1) - similar[torch.arange(len(z)), partner]).mean()


def costs(both: dict[str, nn.Module], pairs: list[Pair], cfg: GameConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, penalty) of all contrast batches, with the graph through both players."""
    total, cost = torch.zeros(()), torch.zeros(())
    for pair in pairs:
        masks, key = soft_masks(both["masker"](pair.v), cfg, HOP), pair.key.with_view(MASK_VIEW)
        hidden = with_random_blocks(binarise(choose(masks, key, cfg.use), cfg), key, cfg)
        seconds = [cover(pair.v, h, cfg, HOP) for h in hidden]
        found = both["encoder"](torch.cat([pair.x, *seconds]))
        z, temperature = found if isinstance(found, tuple) else (found, TEMPERATURE)
        z1, *others = z.split(len(pair.x))
        losses = [nt_xent_alone(z1, z2, temperature, pair.patients) for z2 in others]
        total = total + sum(losses) / len(losses) / len(pairs)
        cost = cost + price(masks, cfg) / len(pairs)
    return total, cost


def gradients(both: dict[str, nn.Module], pairs: list[Pair], cfg: GameConfig) -> dict[str, Any]:
    """The encoder minimises the loss, the masker -strength * loss + penalty."""
    loss, cost = costs(both, pairs, cfg)
    aims = {"encoder": loss, "masker": -cfg.strength * loss + cost}
    return {n: torch.autograd.grad(aim, list(both[n].parameters()), retain_graph=True) for n, aim in aims.items()}


def reference(case: Case, world: int) -> dict[str, nn.Module]:
    """Both players after the updates that one process makes on the global batches."""
    both = players(Case(**{**vars(case), "device": 0}))
    optimisers = {name: optimiser(case, name, module) for name, module in both.items()}
    for step in range(case.steps):
        pairs = [global_pair(step, micro, world, case.dtype) for micro in range(case.accumulation)]
        found = gradients(both, pairs, case.game)
        update(case, both, optimisers, "encoder", found["encoder"])
        if case.game.schedule == "alternating":
            found = gradients(both, pairs, case.game)
        update(case, both, optimisers, "masker", found["masker"])
    return both


def optimiser(case: Case, name: str, module: nn.Module) -> torch.optim.Optimizer:
    if not case.adamw:
        return torch.optim.SGD(module.parameters(), lr=RATES[name])
    player, decayed = ADAMW[name], [p for n, p in module.named_parameters() if n != "temperature.log_scale"]
    rest = [p for n, p in module.named_parameters() if n == "temperature.log_scale"]
    groups = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=player.lr, weight_decay=player.weight_decay)


def update(case: Case, both: Any, optimisers: Any, name: str, gradient: Any) -> None:
    for p, g in zip(both[name].parameters(), gradient):
        p.grad = g
    if case.adamw:
        torch.nn.utils.clip_grad_norm_(both[name].parameters(), ADAMW[name].clip)
    optimisers[name].step()


# ---- under engines, on all ranks -------------------------------------------------------------------------------------


class Plain:
    """What `Game` calls of an engine, without DeepSpeed: sums of `accumulation` backwards, averaged over the ranks."""

    def __init__(self, case: Case, name: str, module: nn.Module) -> None:
        self.case, self.name, self.module, self.calls = case, name, module, 0
        self.optimiser = optimiser(case, name, module)

    def __call__(self, *x: torch.Tensor) -> Any:
        return self.module(*x)

    def backward(self, loss: torch.Tensor) -> None:
        (loss / self.case.accumulation).backward()

    def torch_autocast_enabled(self) -> bool:
        return False

    def step(self) -> None:
        self.calls += 1
        if self.calls % self.case.accumulation:
            return
        for p in self.module.parameters():
            torch_dist.all_reduce(p.grad)
            p.grad /= torch_dist.get_world_size()
        found = [p.grad for p in self.module.parameters()]
        update(self.case, {self.name: self.module}, {self.name: self.optimiser}, self.name, found)
        self.module.zero_grad()


def build(case: Case, world: distributed.World) -> dict[str, Any]:
    import deepspeed

    precision = "bf16" if case.bf16 else "fp32"
    run = PretrainConfig(zero=case.zero, batch=BatchConfig(case.accumulation, 1), precision=precision, game=case.game)
    made: dict[str, Any] = {}
    for name, module in players(case).items():
        over_all_ranks(module)
        if case.plain:
            made[name] = Plain(case, name, module.to(world.device))
        elif case.adamw:
            made[name] = engines.make_engine(module, ADAMW[name], run, world.device)
        else:
            config = engines._deepspeed_config(PlayerConfig(clip=0.0), run, case.bf16)
            made[name], *_ = deepspeed.initialize(model=module, optimizer=optimiser(case, name, module), config=config)
    return made


def partition_all() -> None:
    """ZeRO 3 keeps parameters as small as these whole, unless told otherwise."""
    original = engines._deepspeed_config

    def config(player: PlayerConfig, cfg: PretrainConfig, bf16: bool) -> dict[str, Any]:
        made = original(player, cfg, bf16)
        if cfg.zero == 3:
            made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    engines._deepspeed_config = config


def flat(weights: Any) -> torch.Tensor:
    return torch.cat([w.detach().flatten().double().cpu() for w in weights])


def play(world: distributed.World, case: Case) -> dict[str, float]:
    """How far each player and the `running` statistics are from where they belong, relative to their way there."""
    two = build(case, world)
    game = Game(two["encoder"], two["masker"], case.game, TEMPERATURE, HOP)
    for step in range(case.steps):
        pairs = [global_pair(step, m, world.size, case.dtype) for m in range(case.accumulation)]
        game.step([mine(pair, world) for pair in pairs], step)
    errors = {}
    start, wanted = players(case), reference(case, world.size)
    for name, engine in two.items():
        weights = engine.module.state_dict() if case.plain else whole_weights(engine)
        states = weights, wanted[name].state_dict(), start[name].state_dict()
        running = [key for key, _ in wanted[name].named_buffers()]
        errors[name] = distance(*(flat(v for k, v in state.items() if k not in running) for state in states))
        for key in running:
            errors["running"] = max(errors.get("running", 0.0), distance(*(flat([state[key]]) for state in states)))
    return errors


def distance(got: torch.Tensor, right: torch.Tensor, first: torch.Tensor) -> float:
    return ((got - right).norm() / (right - first).norm()).item()


# ---- single figures --------------------------------------------------------------------------------------------------


def loss_over_ranks(world: distributed.World) -> float:
    """Largest deviation of the gathered loss and its gradient from the one-process formula."""
    torch.manual_seed(1)
    z1, z2 = torch.randn(2, 5 * world.size, 7, dtype=torch.float64)
    patients = torch.randint(4 * world.size, (5 * world.size,))
    whole1, whole2 = z1.clone().requires_grad_(), z2.clone().requires_grad_()
    expected = nt_xent_alone(whole1, whole2, patients=patients)
    expected.backward()
    part = slice(5 * world.rank, 5 * world.rank + 5)
    a, b = (z[part].to(world.device, copy=True).requires_grad_() for z in (z1, z2))
    loss, _ = nt_xent(a, b, TEMPERATURE, patients[part].to(world.device))
    loss.backward()
    mean = loss.detach().clone()
    torch_dist.all_reduce(mean)
    worst = abs(mean.cpu() / world.size - expected.detach()).item()
    for got, want in ((a.grad, whole1.grad[part]), (b.grad, whole2.grad[part])):
        worst = max(worst, (got.cpu() / world.size - want).abs().max().item())
    return worst


def gradients_of_batches(
    world: distributed.World, norm: str, activation: str, batches: int, size: int
) -> dict[str, dict[str, float]]:
    """Both players' gradients at the game's own dials and networks, before the optimiser, against one process."""
    cfg, run = GameConfig(), PretrainConfig(precision="fp32")
    torch.manual_seed(0)
    backbone = build_encoder(
        "resnet18", 12, 256, {"width": 16, "embedding": 32, "norm": norm, "activation": activation}
    )
    both = {"encoder": ContrastiveEncoder(backbone, Projector(32, 64, 16)), "masker": UNet(12, cfg.masks, 10, width=16)}
    right_ones = copy.deepcopy(both)  # of torch's own batch norm
    over_all_ranks(both["encoder"])
    two = {n: engines.make_engine(m, PlayerConfig(lr=0.0, clip=0.0), run, world.device) for n, m in both.items()}
    game, far = Game(two["encoder"], two["masker"], cfg, TEMPERATURE), {"encoder": [], "masker": []}
    for pair in ecgs(batches, size):
        share = size // world.size
        game._play(mine(pair, world, share), game.masker, 1)
        got = {name: flat(p.grad for p in module.parameters()) for name, module in both.items()}
        for module in both.values():
            module.zero_grad()
        for name, right in alone(right_ones, pair, cfg).items():
            far[name].append(((got[name] - right).norm() / right.norm()).item())
        for engine in two.values():
            engine.step()
    return {name: {"median": median(errors), "worst": max(errors)} for name, errors in far.items()}


def ecgs(batches: int, size: int) -> Iterator[Pair]:
    for batch in range(batches):
        x, v = torch.randn(2, size, 12, 256, generator=torch.Generator().manual_seed(batch)).cumsum(-1) / 8
        yield Pair(x, v, Key(0, batch, torch.arange(size)), torch.arange(size) // 2)


def alone(both: dict[str, nn.Module], pair: Pair, cfg: GameConfig) -> dict[str, torch.Tensor]:
    found = gradients(both, [pair], cfg)
    return {name: flat(gradient) for name, gradient in found.items()}


def main() -> None:
    cases = json.loads(next(a for a in sys.argv[1:] if a.startswith("[")))
    world = distributed.initialise(timeout_s=120)
    torch.backends.cudnn.allow_tf32 = False
    say = print if world.is_main else (lambda *a, **k: None)
    say(json.dumps({"case": "loss", "error": loss_over_ranks(world)}), flush=True)
    # In a small batch one ReLU that rounding switches is seen; after batch norm it moves a whole channel's statistics.
    for norm, activation, batches, size in (
        ("group", "relu", 20, 128),
        ("group", "gelu", 20, 16),
        ("batch", "gelu", 5, 16),
    ):
        found = gradients_of_batches(world, norm, activation, batches, size)
        say(json.dumps({"case": f"gradients, {norm} norm", **found}), flush=True)
    partition_all()
    for case in cases:
        say(json.dumps({"case": case, **play(world, Case(**case))}), flush=True)
    distributed.finalise()


if __name__ == "__main__":
    with distributed.ended():
        main()
