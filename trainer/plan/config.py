"""What a plan is for: the GPUs, their links, the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from trainer.config import PretrainConfig
from trainer.plan.measured import DEVICES
from umbra.config import check_fields, load, setting, split_words
from umbra.errors import UserError, nearest
from umbra.layers import keys


@dataclass
class PlanConfig:
    """The machine and the data of a planned run."""

    gpus: int = setting(8, ">= 1 and <= 1000000")
    """GPUs (processes) of the run."""
    per_node: int = setting(8, ">= 1 and <= 1000")
    """GPUs of a node."""
    gpu: str = "NVIDIA H100"
    """The device, one of those measured."""
    ecgs: float = setting(1e6, ">= 2 and <= 1e15")
    """Training ECGs."""
    leads: int = setting(12, ">= 1 and <= 1000")
    """Leads of an ECG."""
    rate: float = setting(250.0, ">= 50 and <= 20000")
    """Samples a second of an ECG."""
    seconds: float = setting(10.0, "> 0 and <= 100000")
    """Length of an ECG."""
    ecg_per_second: float = setting(0.0, ">= 0")
    """What one such device trains on with this config, measured by you (0: from the table of measured figures)."""
    floor_ms: float = setting(0.0, ">= 0")
    """The shortest step of one device, however few its ECGs, measured by you (0: from the table)."""
    gpu_gb_s: float = setting(450.0, "> 0")
    """Link of a GPU within a node, one way, GB/s."""
    node_gb_s: float = setting(50.0, "> 0")
    """All network cards of a node together, one way, GB/s."""
    call_us: float = setting(0.0, ">= 0")
    """What a collective takes besides its bytes, in microseconds: the time of one that moves a few (0: not known)."""
    storage_gb_s: float = setting(0.0, ">= 0")
    """What the storage of the shards gives to all nodes together, GB/s (0: not known)."""

    @property
    def samples(self) -> int:
        return round(self.rate * self.seconds)

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.per_node)

    def check(self) -> None:
        """Raises `UserError` for a value that cannot be."""
        check_fields(self)
        if self.gpu not in DEVICES and not self.ecg_per_second:
            near = nearest(self.gpu, DEVICES)
            known = f"did you mean '{near}'?" if near else f"known: {', '.join(DEVICES)}."
            raise UserError(f"gpu={self.gpu} was not measured; {known} Or give your own figure, ecg_per_second=N")


def read(argv: Sequence[str]) -> tuple[PretrainConfig, PlanConfig]:
    """The run and its plan from one command line. Raises `UserError`."""
    path, words = split_words(argv)
    own = {f.name for f in fields(PlanConfig)}
    mine = [word for word in words if word.partition("=")[0] in own]
    plan = load(PlanConfig, None, mine)
    plan.check()
    rest = [word for word in words if word not in mine]
    for word in rest:
        key = word.partition("=")[0]
        if "." not in key and key not in dict(keys(PretrainConfig)) and (near := nearest(key, own)):
            raise UserError(f"'{word}': unknown key '{key}'; did you mean '{near}'?")
    cfg = load(PretrainConfig, path, rest)
    cfg.data = replace(cfg.data, path=cfg.data.path or "DIR")
    cfg.check()
    return cfg, plan
