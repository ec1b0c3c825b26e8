"""Where does a step synchronise with the device? `python -m benchmarks.host_reads [key=value]`.

Lists the code that reads a tensor on the host, or copies one from it, in a step of the game under DeepSpeed engines
with gradient clipping: the project's own and DeepSpeed's, at each ZeRO stage and precision. On a GPU each of these
drains the queue of kernels; on a CPU there is nothing to wait for.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.step import make_pair
from trainer import distributed
from trainer.config import DataConfig, PlayerConfig, PretrainConfig
from trainer.game.game import Game
from trainer.game.maskers.registry import build_masker
from trainer.game.masking import GameConfig
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.run.engines import make_engine
from umbra.config import check_fields, command, load, setting
from umbra.encoders.registry import build_encoder

ROOT = Path(__file__).parents[1]
aten = torch.ops.aten
# Operations that synchronise: a value as a Python number, a result whose size depends on values, a tensor from a list.
OPERATIONS = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.equal: "equal",
    aten.repeat_interleave: "repeat_interleave",
    aten.lift_fresh: "from the host",
}
# Calls that copy to the host.
CALLS = {
    Tensor.tolist: "tolist",
    Tensor.cpu: "cpu",
    Tensor.numpy: "numpy",
}


@dataclass
class ReadsConfig:
    """The configurations to measure."""

    zero: list[int] = setting([0, 1, 2])
    """ZeRO stages of DeepSpeed, each run in every `precision`."""
    precision: list[str] = setting(["fp32", "bf16"])
    """Precisions, each run at every stage `zero`."""
    game: GameConfig = field(default_factory=GameConfig)
    """The settings of the game."""
    steps: int = setting(2, ">= 1")
    """Steps that are counted, after one warm-up step."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        check_fields(self)
        for zero, precision in product(self.zero, self.precision):
            PretrainConfig(zero=zero, precision=precision, game=self.game, data=DataConfig(path="none")).check()


Place = tuple[str, str]  # (file:line (function), what it does)


class Reads:
    """Counts synchronisations inside `with`, by the innermost frame outside torch."""

    def __init__(self) -> None:
        self.found: Counter[Place] = Counter()
        self._modes = (_Operations(self), _Calls(self))

    def note(self, what: str) -> None:
        frame: Any = sys._getframe(2)
        while _is_torch(frame.f_code.co_filename):
            frame = frame.f_back
        path = _short(frame.f_code.co_filename)
        self.found[f"{path}:{frame.f_lineno} ({frame.f_code.co_name})", what] += 1

    def __enter__(self) -> Reads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if _indexes(func) else []
        if func.overloadpacket in OPERATIONS or masks:
            self.reads.note(OPERATIONS.get(func.overloadpacket, "index by a mask"))
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if what := CALLS.get(func):
            self.reads.note(what)
        return func(*args, **(kwargs or {}))


def _indexes(func: Any) -> bool:
    return func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)


def _is_torch(path: str) -> bool:
    return "/torch/" in path or path == __file__


def _short(path: str) -> str:
    if "/deepspeed/" in path:  # checked first: the environment may be inside the repository
        return path[path.rfind("/deepspeed/") + 1 :]
    return str(Path(path).relative_to(ROOT)) if path.startswith(str(ROOT)) else path


def main(argv: list[str]) -> int:
    cfg = load(ReadsConfig, None, argv)
    cfg.check()
    world, most = distributed.initialise(), {"ours": 0.0, "deepspeed": 0.0}
    for zero, precision in product(cfg.zero, cfg.precision):
        found = {place: n / cfg.steps for place, n in sorted(reads_of(cfg, world, zero, precision).items())}
        if world.is_main:
            print(f"zero={zero} {precision}, {world.size} x {world.device.type}, per step:")
            for (where, what), n in found.items():
                print(f"{n:>6g} {what:<18}{where}", flush=True)
        theirs = sum(n for (where, _), n in found.items() if where.startswith("deepspeed/"))
        here = {"ours": sum(found.values()) - theirs, "deepspeed": theirs}
        most = {side: max(most[side], here[side]) for side in most}
    if world.is_main:
        print(json.dumps({**most, "device": world.device.type}))
    distributed.finalise()
    return 0


def reads_of(cfg: ReadsConfig, world: distributed.World, zero: int, precision: str) -> Counter[Place]:
    """Synchronisations in `cfg.steps` steps of small networks, after one warm-up step."""
    run, hop = PretrainConfig(zero=zero, precision=precision), cfg.game.hop(100)
    torch.manual_seed(0)
    backbone = build_encoder("resnet18", 12, 1000, {"width": 8, "embedding": 16})
    masker = build_masker("unet", 12, cfg.game.channels(12, hop), hop, 8, 1, 5)
    players = ContrastiveEncoder(backbone, Projector(16, 32, 16)), masker
    encoder, adversary = (make_engine(player, PlayerConfig(), run, world.device) for player in players)
    game, pair = Game(encoder, adversary, cfg.game, 0.1, hop), make_pair(4, 1000, world.device)
    game.step([pair], 0)
    with Reads() as reads:
        for step in range(cfg.steps):
            game.step([pair], step + 1)
    return reads.found


if __name__ == "__main__":
    command(main)
