"""What `config.json` of an encoder directory holds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypedDict

FORMAT = 1
SCALINGS = ("fixed", "record")


class Architecture(TypedDict):
    """A registered encoder and its `encoder.args.*`."""

    name: str
    args: dict[str, Any]


class ScalingOf(TypedDict):
    """The arguments of `Scaling`: mean and standard deviation per lead in mV."""

    mode: str
    mean_mv: list[float]
    std_mv: list[float]


@dataclass(frozen=True)
class EncoderConfig:
    """Contents of `config.json` in an encoder directory.

    `rate` in Hz; input is `[B, len(leads), samples]` in `units`; `dim` is the number of features (0: not known yet);
    `training`, `data` and `versions` document the origin of the weights.
    """

    architecture: Architecture
    dim: int
    rate: float
    leads: list[str]
    samples: int
    scaling: ScalingOf
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    units: str = "mV"
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"
