"""How many processes can share a run: asked by a launch script before it starts any.

    python -m trainer.world PER_NODE HOST,HOST,... CONFIG.yaml key=value ...

prints the number of processes and of nodes, where the hosts have room for PER_NODE processes each: the largest number
that divides the lanes of the run. A line on stderr says what is idle.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from trainer.config import PretrainConfig
from trainer.data.order import default_lanes
from umbra.config import command, load, split_words
from umbra.errors import UserError

CONFIGS = {"": "trainer.config:PretrainConfig"}


@dataclass(frozen=True)
class Fit:
    """`world` of the `room` processes that could run, on the first `nodes` of the hosts; their `lanes`."""

    lanes: int
    room: int
    world: int
    nodes: int
    hosts: tuple[str, ...]

    @property
    def idle(self) -> str:
        """What is idle, in a line; empty if nothing is."""
        if self.world == self.room:
            return ""
        first, last = self.world, self.room - 1
        ranks = f"rank {first} is" if first == last else f"ranks {first} to {last} are"
        whole = f" (all of {', '.join(self.hosts[self.nodes :])})" if self.hosts[self.nodes :] else ""
        said = f"{self.room} processes cannot share {self.lanes} lanes (data.lanes), {self.world} can"
        return f"warning: {said}: {ranks} idle{whole}"


def fit(lanes: int, per_node: int, hosts: tuple[str, ...]) -> Fit:
    """The largest world size that divides `lanes`, for hosts with room for `per_node` processes each."""
    room = per_node * len(hosts)
    world = max(size for size in range(1, min(lanes, room) + 1) if lanes % size == 0)
    return Fit(lanes, room, world, -(-world // per_node), hosts)


def main(argv: list[str]) -> None:
    if len(argv) < 2 or not argv[0].isdigit() or argv[0] == "0" or "=" in argv[1]:
        raise UserError("usage: python -m trainer.world PER_NODE HOST,HOST,... CONFIG.yaml key=value ...")
    cfg = load(PretrainConfig, *split_words(argv[2:], ["--dry-run"]))
    cfg.check()
    found = fit(cfg.data.lanes or default_lanes(cfg.contrast), int(argv[0]), tuple(argv[1].split(",")))
    if found.idle:
        print(found.idle, file=sys.stderr)
    print(found.world, found.nodes)


if __name__ == "__main__":
    command(main)
