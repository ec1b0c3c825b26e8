"""The config keys `data.*` of a pre-training run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from trainer.data.places import Place, any_remote, named
from umbra.config import setting
from umbra.errors import UserError, near_miss
from umbra.layers import TextOrTexts

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # of a source


@dataclass
class DataConfig:
    """The data set, how a process reads it, and in which order."""

    path: TextOrTexts = ""
    """The folder of the sharded data set, or its URL (`https://`, `s3://`, `gs://`, ...), or `pipe:COMMAND`; or several
    by name, which are mixed: `{ptbxl: DIR, mimic: DIR}`, or `data.path.ptbxl=DIR` (docs/data/mixing.md)."""
    lanes: int = setting(0, ">= 0")
    """Number of equal segments into which the sample order of an epoch is split; must be a multiple of the world
    size. 0: the largest divisor of the contrast batch up to 64."""
    block_shards: int = setting(8, ">= 1")
    """Number of shards that are shuffled together. Ideally `lanes * block_shards` shards fit into the memory of all
    machines."""
    partner: str = setting("same", choices=("same", "patient"))
    """The older name of `pair=patient`, for runs that began with it."""
    threads: int = setting(2, ">= 1 and <= 256")
    """Threads per process that copy samples; the same number of threads reads shards ahead."""
    ahead: int = setting(2, ">= 1 and <= 1000")
    """Batches that each process prefetches, all of them in memory."""
    exclude: list[str] = field(default_factory=list)
    """Names of training shards to leave out (of a mixture: SOURCE/SHARD). A change on resume starts a new epoch at the
    resumed step."""
    weights: dict[str, float] = field(default_factory=dict)
    """How many ECGs a mixture takes of each source of `path`, such as `{ptbxl: 1, mimic: 3}` (a source without a
    weight: 1; 0 leaves it out, as if it were not named). Empty: as many as it has, so that each ECG is seen equally
    often."""
    cache: str = ""
    """Only with a remote `path`: a folder on a local disk of each machine, into which shards are prefetched by
    `threads` (at least 4) threads."""
    cache_gb: float = setting(0.0, ">= 0")
    """Maximum size of `cache` in GB (0: twice the minimum that works)."""
    audit: bool = False
    """Whether to record the samples of each step, for `python -m trainer.data.audit RUN`."""

    def __post_init__(self) -> None:
        several = isinstance(self.path, dict)
        self.path = {str(k): str(v) for k, v in self.path.items()} if several else str(self.path)

    @property
    def place(self) -> Place:
        """`path` without the sources whose weight is 0."""
        if not isinstance(self.path, dict):
            return str(self.path)
        return {name: path for name, path in sorted(self.path.items()) if self.weights.get(name, 1)}

    @property
    def weights_in_use(self) -> dict[str, float]:
        """`weights` without those of 0: empty where no other is given, as if those sources were not named."""
        return {name: weight for name, weight in self.weights.items() if weight}

    def check(self) -> None:
        """Raises `UserError` for sources and weights that cannot be."""
        if empty := [name for name, path in named(self.path).items() if not path]:
            raise UserError(f"data.path.{empty[0]} is empty: give its folder, data.path.{empty[0]}=DIR")
        if odd := [name for name in named(self.path) if isinstance(self.path, dict) and not NAME.fullmatch(name)]:
            raise UserError(f"data.path: a source cannot be called '{odd[0]}': use letters, digits, - and _")
        if odd := [name for name in self.weights if name not in named(self.path)]:
            raise UserError(f"data.weights.{odd[0]}: data.path has no such source{near_miss(odd[0], named(self.path))}")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise UserError(f"data.weights.{name}={weight} must be a finite number >= 0")
        if not self.place:
            raise UserError("data.weights leaves no source: give one of them a weight above 0")
        for key in ("cache", "cache_gb"):
            if (value := getattr(self, key)) and not any_remote(self.place):
                raise UserError(f"data.{key}={value} has no effect with a local data.path: leave it out")
