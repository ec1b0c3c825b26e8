"""How many bytes does a step move? `python -m benchmarks.traffic [key=value]`: an adversarial step of commit `against`
and of this tree, in bf16 autocast, counted on the CPU.

Each operator counts what it reads and writes, once; views and allocations are free. Forward and backward of both
players and all between them count, in a step between two lines of the log; the optimisers' updates do not. The CPU
stands for a GPU: group norm and layer norm are given fp32 under autocast, as they are there, and the layout is the
GPU's. What an operator of cuDNN does inside (changes of layout) is not seen. Where the networks are compiled, a kernel
counts what goes in and comes out of it, as torch's compiler plans it by its rules for GPUs of what may be one kernel,
without building it; what is not compiled counts as above.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[1]
OLD, NEW = "old", "new"
COUNT = "count"  # the word that makes this script count the tree that it imports
ROWS = 14


@dataclass
class TrafficConfig:
    """The step to count: `batch` ECGs of 12 x `samples`, the defaults otherwise."""

    against: str = "42d8aac"
    """The commit to compare with, checked out into a temporary worktree."""
    encoder: str = "resnet18"
    """The encoder, with `args`."""
    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the encoder."""
    batch: int = 256
    """ECGs of a step; weights, which count once a step, weigh less per ECG in a larger batch."""
    samples: int = 2500
    """Samples per lead, of 10 s."""
    compiled: bool = True
    """Whether to count the compiler's kernels too, which takes minutes."""


def main(words: list[str]) -> None:
    from benchmarks._tree import worktree
    from umbra.config import load

    cfg = load(TrafficConfig, None, words)
    with worktree(cfg.against) as folder:
        found = {side: counted(tree, cfg) for side, tree in ((OLD, folder), (NEW, ROOT))}
    new, old = found[NEW], found[OLD]
    print(f"{cfg.encoder} {cfg.args or ''} batch {cfg.batch} x 12 x {cfg.samples}, bf16 autocast; per ECG")
    show("operator", old["bytes"], new["bytes"], old["calls"], new["calls"], cfg.batch)
    show("type", old["types"], new["types"], {}, {}, cfg.batch)
    totals = {side: sum(found[side]["bytes"].values()) for side in found}
    calls = {side: sum(found[side]["calls"].values()) for side in found}
    figures = {"bytes_ratio": totals[NEW] / totals[OLD]}
    if cfg.compiled:
        kernels = new["compiled"]
        print(f"compiled: {kernels['bytes'] / cfg.batch / 2**20:.2f} MiB in {kernels['calls']} kernels and operators")
        figures["compiled_bytes_ratio"] = kernels["bytes"] / totals[OLD]
    figures["calls_ratio"] = calls[NEW] / calls[OLD]
    if cfg.compiled:
        figures["compiled_calls_ratio"] = kernels["calls"] / calls[OLD]
    print(json.dumps({name: round(value, 3) for name, value in figures.items()} | {"against": cfg.against}))


def show(
    what: str, old: dict[str, int], new: dict[str, int], before: dict[str, int], after: dict[str, int], batch: int
) -> None:
    """A table of MiB per ECG, the largest first."""
    print(f"{what:<36}{'old MiB':>10}{'new MiB':>10}" + (f"{'calls':>8}{'calls':>8}" if before else ""))
    names = sorted({*old, *new}, key=lambda name: -max(old.get(name, 0), new.get(name, 0)))
    for name in names[:ROWS]:
        line = f"{name:<36}{old.get(name, 0) / batch / 2**20:>10.2f}{new.get(name, 0) / batch / 2**20:>10.2f}"
        print(line + (f"{before.get(name, 0):>8}{after.get(name, 0):>8}" if before else ""))
    line = f"{'all':<36}{sum(old.values()) / batch / 2**20:>10.2f}{sum(new.values()) / batch / 2**20:>10.2f}"
    print(line + (f"{sum(before.values()):>8}{sum(after.values()):>8}" if before else ""))


def counted(tree: Path, cfg: TrafficConfig) -> dict[str, Any]:
    """The counts of a tree, by a fresh process that imports it; of the compiler's kernels only for this tree."""
    given = dataclasses.asdict(dataclasses.replace(cfg, compiled=cfg.compiled and tree == ROOT))
    done = subprocess.run(
        [sys.executable, "-P", __file__, COUNT, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        timeout=3600,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- one side: the names of both trees ------------------------------------------------------------------------------


def measure(cfg: TrafficConfig) -> dict[str, Any]:
    """Counts of a step of the tree that is imported."""
    play, networks = make_step(cfg)
    with as_on_gpu():
        with Traffic() as seen:
            play()
        found: dict[str, Any] = {"bytes": seen.bytes, "calls": seen.calls, "types": seen.types}
        if cfg.compiled:
            found["compiled"] = measure_compiled(play, networks)
    return found


def make_step(cfg: TrafficConfig) -> tuple[Callable[[], object], list[Any]]:
    """A step of the game without DeepSpeed, and its two networks."""
    import benchmarks.step as step

    names: Any = step  # what moved between the two trees keeps its name there
    game, size, hop = names.GameConfig(), names.MaskerConfig(), names.GameConfig().hop(cfg.samples / 10)
    torch.manual_seed(0)
    backbone = names.build_encoder(cfg.encoder, 12, cfg.samples, cfg.args)
    recogniser = getattr(names, "ContrastiveEncoder", None) or names.Recogniser
    encoder = recogniser(backbone, names.Projector(backbone.dim))
    masker = names.build_masker(size.name, 12, game.channels(12, hop), hop, size.width, size.depth, size.kernel)
    played = names.Game(Bare(encoder), Bare(masker), game, 0.1, hop)
    pair = names.make_pair(cfg.batch, cfg.samples, torch.device("cpu"))
    play = names.player(names.OURS, played)
    return lambda: play(pair, 0), [encoder, masker]


class Bare:
    """What the game needs of an engine, under bf16 autocast; its update does nothing but free the gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *x: Tensor) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.module(*x)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.module.zero_grad()

    def torch_autocast_enabled(self) -> bool:
        return True


@contextlib.contextmanager
def as_on_gpu() -> Iterator[None]:
    """Autocast turns the input of norms into fp32, which the CPU's does not, and activations are channels-last."""

    def widened(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wide(x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, *rest: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return norm(x, shape, weight, bias, *rest)
            with torch.autocast("cpu", enabled=False):
                return norm(x.float(), shape, *(t if t is None else t.float() for t in (weight, bias)), *rest)

        return wide

    with contextlib.ExitStack() as stack:
        for name in ("group_norm", "layer_norm"):
            stack.enter_context(mock.patch.object(F, name, widened(getattr(F, name))))
        with contextlib.suppress(ImportError):
            from umbra.encoders import layout

            stack.enter_context(mock.patch.object(layout, "memory_format", _channels_last))
        yield


def _channels_last(device: torch.device) -> torch.memory_format:
    return torch.channels_last


class Traffic(TorchDispatchMode):
    """Counts inside `with` the bytes that operators read and write, by operator and by type, and their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.largest: Counter[torch.dtype] = Counter()  # elements of the largest tensor that was written
        self.paused = False

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.paused and not is_free(func):
            read = tensors((args, kwargs))
            written = tensors([out, [t for t, a in zip(args, func._schema.arguments) if _is_written(a)]])
            if read or written:
                self.note(func.overloadpacket.__name__, read, written)
        return out

    def note(self, name: str, read: list[Tensor], written: list[Tensor]) -> None:
        unique = {id(t): t for t in written}.values()
        self.calls[name] += 1
        for tensor in [*read, *unique]:
            count = size(tensor)
            self.bytes[name] += count
            self.types[str(tensor.dtype).removeprefix("torch.")] += count
        for tensor in unique:
            self.largest[tensor.dtype] = max(self.largest[tensor.dtype], tensor.numel())


def is_free(func: Any) -> bool:
    """Views, allocations and questions about a tensor."""
    if func.namespace != "aten" or func.overloadpacket.__name__.startswith(("empty", "new_empty", "_unsafe_view")):
        return True
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def tensors(values: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = list(values.values())
    return [t for value in values for t in tensors(value)] if isinstance(values, (list, tuple)) else []


def size(tensor: Tensor) -> int:
    """Bytes of the elements in memory: those that an expanded axis repeats count once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride()):
        count *= length if stride else min(length, 1)
    return count * tensor.element_size()


class Planned(Exception):
    """The compiler has planned its kernels, and is not to build them."""


def measure_compiled(play: Callable[[], object], networks: list[Any]) -> dict[str, int]:
    """Bytes and calls of a step with compiled networks: of the compiler's kernels, and of the operators outside.

    The compiler plans its kernels and builds none; what it plans for is then run by operators.
    """
    from torch._functorch import config as autograd
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.graph import GraphLowering

    from umbra.encoders.fused import prepare_compiler

    prepare_compiler()
    kernels: list[int] = []
    seen = Traffic()

    def planned(graph: Any) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        kernels.extend(node.get_read_write_buffers_sizes() for node in graph.scheduler.nodes)
        raise Planned

    def plan(module: Any, inputs: Any, **how: Any) -> Any:
        whole = copy.deepcopy(module)
        try:
            compile_fx_inner(module, inputs, **how)
        except Exception as error:
            if not isinstance(error, Planned) and not isinstance(getattr(error, "inner_exception", None), Planned):
                raise

        def run(values: list[Any]) -> Any:
            before, seen.paused = seen.paused, True
            try:
                return whole(*values)
            finally:
                seen.paused = before
                values.clear()

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(module: Any, inputs: Any) -> Any:
        return compile_fx(module, inputs, inner_compile=plan)

    for network in networks:
        network.whole = torch.compile(network.whole, dynamic=False, backend=backend)
    with mock.patch.object(GraphLowering, "compile_to_module", planned), config.patch(fx_graph_cache=False):
        with autograd.patch(enable_autograd_cache=False), by_rules_for_gpus(), seen:
            play()
    used = [count for count in kernels if count]
    return {"bytes": sum(used) + sum(seen.bytes.values()), "calls": len(used) + sum(seen.calls.values())}


@contextlib.contextmanager
def by_rules_for_gpus() -> Iterator[None]:
    """The compiler decides what is one kernel as for a GPU: by its Triton backend, with loops brought into the order of
    others to be one with them. Tensors are still joined as for this CPU, which costs a copy; where a reduction is split
    depends on a GPU's size and is not seen."""
    from torch._inductor import ir, scheduler
    from torch._inductor.codegen.triton import TritonScheduling
    from torch._inductor.virtualized import V

    def backend(self: Any, device: torch.device) -> Any:
        V.graph.add_device_info(device)
        return TritonScheduling(self)

    with contextlib.ExitStack() as stack:
        for module in (ir, scheduler):
            stack.enter_context(mock.patch.object(module, "is_gpu", return_value=True))
        stack.enter_context(mock.patch.object(scheduler.BaseSchedulerNode, "is_cpu", return_value=False))
        stack.enter_context(mock.patch.object(scheduler.Scheduler, "create_backend", backend))
        yield


if __name__ == "__main__":
    if sys.argv[1:2] == [COUNT]:
        print(json.dumps(measure(TrafficConfig(**json.loads(sys.argv[2])))))
    else:
        from umbra.config import command

        command(main)
