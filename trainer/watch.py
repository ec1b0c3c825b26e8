"""A page about a run, from what its directory holds: `python -m trainer.watch RUN [every=SECONDS]`.

Writes `RUN/watch.html`, one self-contained page: progress, alarms, curves, masks over time, the config. The same
command draws it again; with `every` it is drawn every so many seconds until the run ends, and a browser that shows it
follows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from trainer.observe.page import draw, has_lines, is_running
from umbra.config import check_fields, command, load, setting
from umbra.errors import UserError

PAGE = "watch.html"


@dataclass
class WatchConfig:
    """Which run is drawn, and how often."""

    run: str = ""
    """The run directory."""
    every: float = setting(0.0, ">= 0")
    """Seconds after which the page is drawn again, until the run ends (0: drawn once)."""

    def check(self) -> None:
        """Raises `UserError` for a value that cannot work."""
        if not self.run:
            raise UserError("run is not set: python -m trainer.watch RUN [every=SECONDS]")
        check_fields(self)


CONFIGS = {"": "trainer.watch:WatchConfig"}


def main(argv: list[str]) -> None:
    words = [f"run={argv[0]}", *argv[1:]] if argv and "=" not in argv[0] else argv
    cfg = load(WatchConfig, None, words)
    cfg.check()
    run, going_on = Path(cfg.run), True
    while cfg.every and is_running(run) and not has_lines(run):
        time.sleep(cfg.every)
    while going_on:
        going_on = bool(cfg.every) and is_running(run)  # asked before drawing, so that the last page shows the end
        draw(run, run / PAGE, cfg.every if going_on else 0.0)
        if going_on:
            time.sleep(cfg.every)
    print(f"written: {run / PAGE}")


if __name__ == "__main__":
    command(main)
