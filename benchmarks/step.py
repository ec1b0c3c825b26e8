"""What does the adversary cost? `python -m benchmarks.step [key=value]`: the adversarial step against plain SimCLR's,
against the published schedule with the same networks and a true adversary, and against the published setting.

Same encoder, batch and precision, all under DeepSpeed in this one process, in alternating steps; medians. With
`against=COMMIT` instead: the adversarial step of this tree against that of an older commit, see `_against`.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._against import against
from trainer import distributed
from trainer.config import MaskerConfig, PlayerConfig, PretrainConfig
from trainer.game.compiled import compile_networks, try_compiler
from trainer.game.game import Game, Pair, frozen
from trainer.game.losses import nt_xent
from trainer.game.maskers.registry import build_masker
from trainer.game.masking import GameConfig, cost, cover
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.plan.memory import Kept
from trainer.run.engines import make_engine
from trainer.views import Key
from umbra.config import check_fields, command, load, setting
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIMCLR, OURS, FIVE, PAPER = "SimCLR", "adversarial", "five passes", "paper"


@dataclass
class StepConfig:
    """The steps to time: `batch` ECGs of `seconds`, for each length in `samples` and each of `encoders`; `steps` of
    each kind, after two warm-up steps. `clock`: wall, or cpu (the time of this process alone, for a busy machine; best
    with `threads=1`). `compile`: all networks, as a run does (`auto`: on GPUs), except when counting FLOPs.
    `paper_width`: width of the published masker (0: leave it out), timed with `paper_batch` ECGs. `against`: a commit
    to compare with.
    """

    encoders: list[str] = field(default_factory=lambda: ["resnet18", "vit_s"])
    args: dict[str, Any] = field(default_factory=dict)
    batch: int = 16
    samples: list[int] = field(default_factory=lambda: [1000, 2500])
    seconds: float = 10.0
    steps: int = 9
    threads: int = 0
    clock: str = "wall"
    compile: str = setting("auto", choices=("auto", "true", "false"))
    paper_width: int = 512
    paper_batch: int = 2
    paper_steps: int = 2
    against: str = ""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        check_fields(self)
        if self.clock not in CLOCKS:
            raise UserError(f"clock={self.clock} is unknown; use {' or '.join(CLOCKS)}")


Step = Callable[[Pair, int], object]


def main(argv: list[str]) -> int:
    cfg = load(StepConfig, None, argv)
    cfg.check()
    if cfg.against:
        against(cfg)
        return 0
    world = distributed.initialise()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    rows = [compare(cfg, world, name, samples) for name in cfg.encoders for samples in cfg.samples]
    worst = {
        "adversarial_over_simclr": max(row[OURS] / row[SIMCLR] for row in rows),
        "five_pass_over_ours": min(row[FIVE] / row[OURS] for row in rows),
    }
    if cfg.paper_width:
        paper = compare(cfg, world, cfg.encoders[0], cfg.samples[0], paper=True)
        worst["paper_over_ours"] = paper[PAPER] / paper[OURS]
    print(json.dumps({**{k: round(v, 3) for k, v in worst.items()}, "device": world.device.type}))
    distributed.finalise()
    return 0


def compare(
    cfg: StepConfig, world: distributed.World, name: str, samples: int, paper: bool = False
) -> dict[str, float]:
    """Times the sides in turn, prints their table -> seconds per step of each."""
    gc.collect()
    torch._dynamo.reset()  # of one method it compiles eight variants, then none
    batch, steps = (cfg.paper_batch, cfg.paper_steps) if paper else (cfg.batch, cfg.steps)
    sides: dict[str, Game] = {OURS: build(cfg, world, name, samples, GameConfig())}
    if paper:
        setting = GameConfig(masks=2, threshold="half", slope=50, penalty="paper", schedule="alternating")
        sides[PAPER] = build(cfg, world, name, samples, setting, MaskerConfig("paper", cfg.paper_width))
    else:
        sides = {SIMCLR: build(cfg, world, name, samples, GameConfig(enabled=False)), **sides}
        sides[FIVE] = build(cfg, world, name, samples, GameConfig())
    pair = make_pair(batch, samples, world.device)
    played = {side: player(side, game) for side, game in sides.items()}
    seconds = timed(played, pair, steps, 2 - paper, CLOCKS[cfg.clock])
    how = f"{'compiled, ' if compiles(cfg, world.device) else ''}{cfg.clock} time, "
    print(f"{name} {cfg.args or ''} batch {batch} x 12 x {samples}, {how}{world.device.type}", flush=True)
    print(f"{'step':<14}{'ms':>10}{'GFLOP':>10}{'ECG/s':>10}{'peak MiB':>10}")
    for side, play in played.items():
        flops, memory = measured(partial(play, pair, 0), world.device)
        print(f"{side:<14}{seconds[side] * 1e3:>10.1f}{flops:>10.2f}{batch / seconds[side]:>10.1f}{memory:>10.0f}")
    return seconds


def timed(played: dict[str, Step], pair: Pair, steps: int, warm: int, now: Callable[[], float]) -> dict[str, float]:
    """Median seconds per step of each side, after `warm` warm-up steps of each; one step of each side per round.

    Each round begins with the next side, so that every side comes first equally often.
    """
    times: dict[str, list[float]] = {side: [] for side in played}
    sides = list(played)
    for step in range(warm + steps):
        for side in sides[step % len(sides) :] + sides[: step % len(sides)]:
            began = now()
            played[side](pair, step)
            if pair.x.is_cuda:
                torch.cuda.synchronize()
            times[side].append(now() - began)
    return {side: median(t[warm:]) for side, t in times.items()}


def build(
    cfg: StepConfig,
    world: distributed.World,
    name: str,
    samples: int,
    game: GameConfig,
    masker: MaskerConfig | None = None,
    zero: int = 0,
) -> Game:
    run, size = PretrainConfig(zero=zero), masker or MaskerConfig()
    torch.manual_seed(0)
    backbone = build_encoder(name, 12, samples, cfg.args)
    recogniser, hop = ContrastiveEncoder(backbone, Projector(backbone.dim)), game.hop(samples / cfg.seconds)
    network: Any = None
    if game.enabled:
        network = build_masker(size.name, 12, game.channels(12, hop), hop, size.width, size.depth, size.kernel)
    if compiles(cfg, world.device):
        try_compiler(world.device)
        compile_networks(filter(None, [recogniser, network]))
    encoder = make_engine(recogniser, PlayerConfig(), run, world.device)
    adversary = make_engine(network, PlayerConfig(lr=1e-4), run, world.device) if network else None
    return Game(encoder, adversary, game, 0.1, hop)


def compiles(cfg: StepConfig, device: torch.device) -> bool:
    return cfg.compile == "true" or (cfg.compile == "auto" and device.type == "cuda")


def player(side: str, game: Game) -> Step:
    if side in (FIVE, PAPER):
        return lambda pair, step: five_passes(game, pair)
    return lambda pair, step: game.step([pair], step, watched=False)  # most steps are between two lines of the log


def five_passes(game: Game, pair: Pair) -> None:
    """A step on the published schedule, with a true adversary: the encoder is trained on both views, one pass each,
    with detached masks; then the masker, with the encoder frozen, on two more passes; a fifth pass embeds the clean
    view 2."""
    assert game.masker is not None
    loss, _ = _two_passes(game, game.encoder, pair, detached=True)
    game.encoder.backward(loss)
    game.encoder.step()
    with frozen(game.encoder.module):
        loss, masks = _two_passes(game, game.encoder.module, pair, detached=False)
    game.masker.backward(-game.dials.strength * loss + cost(masks, game.dials))
    game.masker.step()
    with torch.no_grad():
        game.encoder.module(pair.v)


def _two_passes(game: Game, recognise: Any, pair: Pair, detached: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(NT-Xent of the two views, in separate passes; the raw masks)."""
    assert game.masker is not None
    masks, chosen = game.hide(game.masker, pair)
    hidden = chosen[0].detach() if detached else chosen[0]
    z1, z2 = recognise(pair.x), recognise(cover(pair.v, hidden, game.dials, game.hop))
    return nt_xent(z1, z2, game.temperature)[0], masks


def make_pair(batch: int, samples: int, device: torch.device) -> Pair:
    x, v = torch.randn(2, batch, 12, samples, device=device)
    return Pair(x, v, Key(0, 0, torch.arange(batch, device=device)))


def measured(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """GFLOP of a step's networks, forward and backward, and its peak memory in MiB besides weights and optimiser.

    On a GPU the allocator's peak; elsewhere that of the tensors that autograd saves for the backward.
    """
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return counter.get_total_flops() / 1e9, (torch.cuda.max_memory_allocated() - before) / 2**20
    alive = Kept()
    with saved_tensors_hooks(alive.pack, alive.unpack):
        step()
    return counter.get_total_flops() / 1e9, alive.most / 2**20


if __name__ == "__main__":
    command(main)
