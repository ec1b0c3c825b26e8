"""What a run on many GPUs would take, on paper: memory, storage, communication, hours and the bottleneck.

    python -m trainer.plan CONFIG.yaml gpus=256 ecgs=10e6 key=value ...

Keys of the machine and the data (see `--help`) and of the run (`batch.global=4096`, `zero=1`). From steps that were
measured on one device, or your own `ecg_per_second=N`, and the formulas in docs/planning.md. Nothing is written.
"""

from __future__ import annotations

from trainer.config import PretrainConfig
from trainer.data.order import default_lanes
from trainer.game.flops import training_flops
from trainer.game.players import players_for
from trainer.plan import memory
from trainer.plan.config import PlanConfig, read
from trainer.plan.measured import DEVICES, figure_for
from trainer.plan.step import Speed, Step, ecg_bytes, link_of, shard_bytes, speed_of, step_of
from trainer.views.pairing import pairing
from umbra.config import command
from umbra.errors import UserError, building

CONFIGS = {"": "trainer.plan.config:PlanConfig"}
MIB = 2**20
UNKNOWN = """\
not known    what one device does at another batch than the measured one; whether communication overlaps with compute
             (here it does not); the file system and network at that load; fragments and workspaces of the device's
             memory; faults. Nothing here was measured on several GPUs."""


def main(argv: list[str]) -> None:
    cfg, plan = read(argv)
    _check_share(cfg, plan)
    both = players_for(cfg, plan.leads, plan.samples, plan.rate)
    tensors = memory.tensors(both)
    sizes = [sum(player) for player in tensors]
    view = pairing(cfg.pair, plan.samples, plan.rate).samples
    gflop = training_flops(cfg, *both, plan.leads, view) / 1e9
    speed = speed_of(cfg, plan, gflop)
    with building("step of a few ECGs", {"leads": plan.leads, "rate": plan.rate, "seconds": plan.seconds}):
        kept = memory.activations(cfg, both, plan.leads, view, plan.rate)
    rows = cfg.contrast / plan.gpus
    print(f"run          {plan.gpus} x {plan.gpu} on {plan.nodes} nodes, zero={cfg.zero}; {plan.ecgs:,.0f} ECGs of "
          f"{plan.leads} x {plan.samples}; {rows:g} ECGs a forward pass and GPU")  # fmt: skip
    print("\n".join(_lanes(cfg, plan) + _memory(cfg, plan, sizes, kept)))
    step = step_of(cfg, cfg.zero, plan.gpus, tensors, speed, link_of(plan))
    print("\n".join(_storage(cfg, plan, sizes, step) + _speed(cfg, plan, gflop, speed, step)))
    print(UNKNOWN)


def _check_share(cfg: PretrainConfig, plan: PlanConfig) -> None:
    if cfg.contrast % plan.gpus:
        key = "batch.contrast" if cfg.batch.contrast else "batch.global"
        raise UserError(
            f"{key}={cfg.contrast} cannot be shared by {plan.gpus} GPUs: use {_shared_batch(cfg, plan)}, or other gpus="
        )
    if plan.ecgs < cfg.batch.global_:
        raise UserError(f"batch.global={cfg.batch.global_} is larger than ecgs={plan.ecgs:,.0f}: use a smaller one")


def _shared_batch(cfg: PretrainConfig, plan: PlanConfig) -> str:
    """The nearest contrast batch that the GPUs can share, and the global batch where that must be another."""
    whole, contrast = cfg.batch.global_, cfg.contrast
    more = -(-contrast // plan.gpus) * plan.gpus
    if not cfg.batch.contrast:
        return f"batch.global={more}"
    fit = [size for size in range(plan.gpus, whole + 1, plan.gpus) if whole % size == 0]
    if fit:
        return f"batch.contrast={min(fit, key=lambda size: abs(size - contrast))}"
    return f"batch.contrast={more} batch.global={-(-whole // more) * more}"


def _lanes(cfg: PretrainConfig, plan: PlanConfig) -> list[str]:
    if (cfg.data.lanes or default_lanes(cfg.contrast)) % plan.gpus == 0:
        return []
    return [f"to set       data.lanes={plan.gpus}: the default cannot be shared by that many processes"]


def _memory(cfg: PretrainConfig, plan: PlanConfig, sizes: list[int], kept: float) -> list[str]:
    """A line for each ZeRO stage, in MiB on each GPU."""
    rows = cfg.contrast / plan.gpus
    at_once = min(rows, cfg.batch.device or rows)
    head = ["memory, MiB", "weights", "gradients", "optimiser", "buffers", "activations", "sum"]
    lines = ["".join(f"{word:>13}" if i else f"{word:<13}" for i, word in enumerate(head))]
    for stage in range(4):
        held = memory.states(stage, sizes, plan.gpus)
        parts = [held.weights, held.gradients, held.optimiser, held.buffers, at_once * kept]
        numbers = "".join(f"{part / MIB:>13,.1f}" for part in [*parts, sum(parts)])
        lines.append(f"  zero={stage:<6}{numbers}" + (" <- this run" if stage == cfg.zero else ""))
    few = " and ".join(map(str, memory.FEW))
    said = f"{sum(sizes):,} parameters; activations: fp32, {kept / MIB:.2f} MiB an ECG, measured here on {few} ECGs"
    known = figure_for(plan.gpu, cfg.encoder.name, plan.samples) if plan.gpu in DEVICES else None
    if known and known[1] and (figure := known[0]).mib:
        said += f" (on one {figure.device} {figure.batch} of 12 x {figure.samples} took {figure.mib:,.0f} MiB)"
    lines.append(f"             {said}")
    return lines


def _storage(cfg: PretrainConfig, plan: PlanConfig, sizes: list[int], step: Step) -> list[str]:
    read = cfg.batch.global_ * ecg_bytes(plan) / step.seconds
    saved = 3 * memory.FP32 * sum(sizes)
    given = f" of {plan.storage_gb_s:g} GB/s given" if plan.storage_gb_s else ""
    return [
        f"storage      {shard_bytes(plan) / 1e9:,.1f} GB of shards; {cfg.checkpoint.keep} checkpoints of "
        f"{saved / 1e9:.2f} GB",
        f"reading      {read / 1e9:.3f} GB/s together{given}, {read / 1e9 / plan.nodes:.3f} GB/s a node",
    ]


def _speed(cfg: PretrainConfig, plan: PlanConfig, gflop: float, speed: Speed, step: Step) -> list[str]:
    compute, floor = step.compute * 1e3, " (its shortest step: too few ECGs a GPU)" if step.at_floor else ""
    total = cfg.total_steps(int(plan.ecgs // cfg.batch.global_))
    wanted = cfg.batch.global_ * ecg_bytes(plan) / step.seconds / 1e9
    reading = wanted / plan.storage_gb_s if plan.storage_gb_s else 0.0
    each = f" of {plan.call_us:g} us" if plan.call_us else ", whose own time is not known: call_us=N"
    hours = total * step.seconds * max(1.0, reading) / 3600
    return [
        f"one device   {speed.ecg_per_second:,.0f} ECG/s, {gflop:.2f} GFLOP an ECG: {speed.source}",
        f"a step       {compute:.1f} ms of compute{floor} + {step.communication * 1e3:.1f} ms of communication "
        f"({step.received / 1e6:,.1f} MB to each GPU at {link_of(plan).bytes_per_s / 1e9:g} GB/s; "
        f"{step.calls} calls{each})",
        f"all          {cfg.batch.global_ / step.seconds / max(1.0, reading):,.0f} ECG/s; {total:,} steps; "
        f"{hours:,.2f} hours, {hours * plan.gpus:,.0f} GPU hours",
        f"bottleneck   {_bottleneck(plan, step, reading)}",
    ]


def _bottleneck(plan: PlanConfig, step: Step, reading: float) -> str:
    if reading > 1:
        return f"storage: {reading:.1f} times what it gives is wanted"
    if step.communication > step.compute:
        where = "network between the nodes" if plan.nodes > 1 else "links between the GPUs"
        return f"communication over the {where}: a larger batch.global, or another zero"
    if step.at_floor:
        return "the shortest step of a GPU: a larger batch.global, or fewer GPUs"
    return "compute"


if __name__ == "__main__":
    command(main)
