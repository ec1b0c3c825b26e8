"""Encoders on what other recorders see: `python -m benchmarks.recorders encoders=[A,B] data=DIR output=OUT`.

Linear probes of each encoder directory on the test records of a sharded data set, with the 12, 6, 2 and 1 leads of the
CinC Challenge 2021 and with strips of 10, 5 and 2.5 s; the others are hidden from the encoder when the probe is fitted
and when it is tested. One table a task: macro AUROC (R2 of numbers), 95 % by patients; differences from the first
encoder are paired by patients. `OUT/` has the results.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.evaluate.compare import CompareConfig, Scored, differences, read_result
from trainer.evaluate.comparison import ended
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.many import run_all
from trainer.evaluate.result import RESULT
from trainer.views.lead_drop import SUBSETS
from umbra.config import check_fields, command, load, setting
from umbra.errors import UserError
from umbra.layers import config_file


@dataclass
class RecordersConfig:
    """Which encoders, tasks and recorders."""

    encoders: list[str] = field(default_factory=list)
    """Encoder directories; the first is the reference."""
    data: str = ""
    """The sharded data set."""
    output: str = ""
    """The folder of the results."""
    tasks: list[str] = field(default_factory=lambda: ["rhythm", "sex"])
    """Names of configs/transfer/*.yaml."""
    leads: list[int] = setting([12, 6, 2, 1], ">= 1")
    """Numbers of leads, of the sets of the challenge."""
    seconds: list[float] = setting([10.0, 5.0, 2.5], "> 0")
    """Lengths, with all leads."""
    transfer: list[str] = field(default_factory=list)
    """Further `key=value` arguments of every evaluation."""


@dataclass(frozen=True)
class Recorder:
    """What is seen of a record: one of `SUBSETS`, the first `seconds`."""

    leads: int
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.leads} lead{'s' * (self.leads > 1)}, {self.seconds:g} s"

    def words(self) -> list[str]:
        leads = [f"leads=[{','.join(SUBSETS[self.leads])}]"] if self.leads < 12 else []
        return [*leads, f"seconds={self.seconds:g}"]


def main(words: list[str]) -> None:
    config = load(RecordersConfig, None, words)
    check_fields(config)
    for key in ("encoders", "data", "output", "leads", "seconds"):
        if not getattr(config, key):
            raise UserError(f"{key} is empty: python -m benchmarks.recorders encoders=[A,B] data=DIR output=OUT")
    if unknown := [n for n in config.leads if n not in SUBSETS]:
        raise UserError(f"leads has {unknown[0]}, known are the sets of {', '.join(map(str, SUBSETS))} leads")
    whole = max(config.seconds)
    recorders = [Recorder(n, whole) for n in config.leads]
    recorders += [Recorder(12, s) for s in sorted(config.seconds, reverse=True) if s < whole]
    found = {r: [results(config, encoder, r) for encoder in config.encoders] for r in recorders}
    for t, task in enumerate(config.tasks):
        print(table(task, config.encoders, {r: [of[t] for of in each] for r, each in found.items()}))
    print(json.dumps({r.name: [[s.value for s in of] for of in each] for r, each in found.items()}))


def results(config: RecordersConfig, encoder: str, recorder: Recorder) -> list[Scored]:
    """The result of each task."""
    base = Path(config.output) / f"{config.encoders.index(encoder)}-{recorder.leads}-{recorder.seconds:g}"
    configs = []
    for task in config.tasks:
        place = [f"encoder={encoder}", f"data={config.data}", f"output={base / task}"]
        path = config_file(f"configs/transfer/{task}.yaml")
        configs.append(load(TransferConfig, path, [*place, *recorder.words(), *config.transfer]))
        configs[-1].check()
    with contextlib.redirect_stdout(io.StringIO()):
        return [read_result(Path(one.output) / RESULT) for one, _ in run_all(configs, print)]


def table(task: str, encoders: Sequence[str], rows: dict[Recorder, list[Scored]]) -> str:
    """A line a recorder: the value of each encoder, and each later encoder's difference from the first."""
    head = [task, *encoders, *(f"{encoder} - {encoders[0]}" for encoder in encoders[1:])]
    lines = [head, ["---"] * len(head)]
    for recorder, scored in rows.items():
        apart = [d for d in differences(CompareConfig(), scored) if d.figure == d.reference.metric]
        cells = [ended(s.value, s.low, s.high) for s in scored]
        cells += [d.why or ended(d.value, d.low, d.high, "+") for d in apart]
        lines.append([recorder.name, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    command(main)
