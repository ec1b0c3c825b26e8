"""What a planned run takes: seconds of a step, storage, hours, and what holds it back. Pure functions of figures."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import PretrainConfig
from trainer.plan.config import PlanConfig
from trainer.plan.measured import figure_for
from trainer.plan.traffic import calls, exchanged, ring
from umbra.schema import Geometry

META = 512  # bytes of a sample's metadata in a shard


@dataclass(frozen=True)
class Speed:
    """One device: its ECGs a second, its shortest step in seconds, and where both are from."""

    ecg_per_second: float
    floor_s: float
    source: str


@dataclass(frozen=True)
class Step:
    """Seconds of an optimiser step of all processes: on the devices, and of communication, which does not overlap.

    `at_floor`: whether a device has so few ECGs that its shortest step counts. `received`: bytes for each process, in
    that many `calls`.
    """

    compute: float
    communication: float
    received: float
    calls: int
    at_floor: bool

    @property
    def seconds(self) -> float:
        return self.compute + self.communication


def speed_of(cfg: PretrainConfig, plan: PlanConfig, gflop: float) -> Speed:
    """The user's figure, or the nearest measured one, scaled by the operations of a step (`gflop` per ECG)."""
    if plan.ecg_per_second:
        return Speed(plan.ecg_per_second, plan.floor_ms / 1e3, "given by ecg_per_second")
    figure, same = figure_for(plan.gpu, cfg.encoder.name, plan.samples)
    factor = figure.gflop / gflop
    source = f"{figure.encoder}, {figure.batch} x 12 x {figure.samples} on one {figure.device}, {figure.source}"
    if abs(factor - 1) > 0.02:
        source += f", times {factor:.3g} by the operations of a step"
    if not same:
        source += f"; {cfg.encoder.name} itself was not measured: a guess"
    return Speed(figure.ecg_per_second * factor, (plan.floor_ms or figure.floor_ms) / 1e3, source)


@dataclass(frozen=True)
class Link:
    """Bytes a second of the slowest link of a ring over all processes, and the seconds that a call takes besides."""

    bytes_per_s: float
    call_s: float = 0.0


def step_of(cfg: PretrainConfig, stage: int, world: int, tensors: list[list[int]], speed: Speed, link: Link) -> Step:
    """A step of `world` devices of this speed, whose collectives are rings over these links.

    tensors: the numbers of parameters in the tensors of each player.
    """
    rows, times = cfg.contrast / world, cfg.accumulation
    once = max(rows / speed.ecg_per_second, speed.floor_s)
    sizes = [sum(player) for player in tensors]
    received = ring(stage, sizes, world, times) + times * exchanged(rows, cfg.projector.out, world)
    number = calls(stage, tensors, times) if world > 1 else 0
    communication = received / link.bytes_per_s + number * link.call_s
    return Step(once * times, communication, received, number, once > rows / speed.ecg_per_second)


def link_of(plan: PlanConfig) -> Link:
    """The slowest link of a ring over all processes: within a node, or all cards of a node.

    Several nodes: rings enter and leave a node over its cards, together as fast as these (the bus bandwidth of
    nccl-tests, doc/PERFORMANCE.md).
    """
    gb_s = plan.gpu_gb_s if plan.gpus <= plan.per_node else min(plan.node_gb_s, plan.gpu_gb_s)
    return Link(1e9 * gb_s, plan.call_us / 1e6)


def shard_bytes(plan: PlanConfig) -> float:
    """Bytes of the training shards."""
    return plan.ecgs * Geometry(plan.leads, plan.samples, META).stride


def ecg_bytes(plan: PlanConfig) -> int:
    """Bytes that are read for one ECG: int16 samples."""
    return Geometry(plan.leads, plan.samples, META).array_bytes
