"""What is right and wrong after a soak, and its report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.soak.run import Launch, Run, left_over
from trainer.data.audit import judge
from trainer.run.checkpoint import begun, committed
from umbra.files import TEMPORARY

GROWTH = 0.03  # of memory from the mark to the end
WINDOW = 0.3  # of the time between them: its first and last part are compared, memory by their medians
MORE = 2  # open files or threads that both processes may have more, of something that is open for a moment
BY_ITSELF = "ended by itself"  # instead of a fault
OWN = {"config.yaml", "run.json", "run.lock", "metrics.jsonl", "figures", "checkpoints", "audit", "wandb"}


@dataclass(frozen=True)
class Check:
    name: str
    right: bool
    seen: str


@dataclass(frozen=True)
class Outcome:
    """`faults`: (fault, step, what was seen); `minutes` of the disturbed run; `starts` of it."""

    checks: list[Check]
    faults: list[tuple[str, int, str]]
    steps: int
    minutes: float
    starts: int


def audit(
    alone: Run,
    disturbed: Run,
    steps: int,
    mark: float,
    minutes: float,
    faults: list[tuple[str, int, str]],
    token: str,
) -> Outcome:
    checks = [epochs(disturbed), same_bytes(alone, disturbed, steps), *steady(alone.launches[-1], mark)]
    checks += [files(disturbed), processes(token), ends(faults)]
    return Outcome(checks, faults, steps, minutes, len(disturbed.launches))


def epochs(run: Run) -> Check:
    """Every epoch on the surviving line of steps is complete, but the last, in which the run ends."""
    verdict = judge(run.folder)
    states = [epoch.state for epoch in verdict.epochs]
    right = not verdict.problems and all(state == "complete" for state in states[:-1])
    right = right and states[-1] in ("complete", "unfinished")
    said = f"{states.count('complete')} complete, {verdict.struck} steps lost and done again"
    return Check("epochs", right, "; ".join([said, *verdict.problems[:3]]))


def same_bytes(alone: Run, disturbed: Run, steps: int) -> Check:
    """The weights and optimiser state at the end are those of the undisturbed run, to the bit."""
    found = [committed(run.folder).get(steps) for run in (alone, disturbed)]
    if not all(found):
        return Check("final weights", False, "a run has no checkpoint of its last step")
    one, other = ({p.relative_to(f): p for p in f.rglob("*") if p.is_file()} for f in found if f)
    names = [name for name in one if name.name != "state.json"]  # which has the run's directory
    unlike = [str(n) for n in names if n not in other or one[n].read_bytes() != other[n].read_bytes()]
    said = f"not equal: {', '.join(unlike[:3])}" if unlike else f"{len(names)} files of the last checkpoint are equal"
    return Check("final weights", not unlike and len(one) == len(other), said)


def steady(launch: Launch, mark: float) -> Iterator[Check]:
    """Memory, open files and threads of an undisturbed launch do not grow from minute `mark` on.

    Files and threads come and go: they have grown if there were never nearly as few as before.
    """
    begin, last = launch.uses[0].at / 60, launch.uses[-1].at / 60
    at = mark if last >= 2 * mark else begin + (last - begin) / 3
    uses = [use for use in launch.uses if use.at >= 60 * at]
    count = max(1, round(WINDOW * len(uses)))
    first, end = uses[:count], uses[-count - 2 : -2] or uses[-1:]  # in the last seconds processes end
    own, rss = ([median(getattr(use, name) for use in part) for part in (first, end)] for name in ("own", "rss"))
    growth = own[1] / own[0] - 1
    said = f"{own[0]:.0f} MiB at minute {at:.1f}, {own[1]:.0f} MiB at minute {last:.1f} ({100 * growth:+.1f} %)"
    yield Check("memory", growth <= GROWTH, f"{said}; with mapped files {rss[0]:.0f} and {rss[1]:.0f} MiB")
    for name in ("files", "threads"):
        (low, high), (least, most) = (
            (min(counts), max(counts)) for part in (first, end) for counts in [[getattr(use, name) for use in part]]
        )
        seen = f"{low} to {high}, then {least} to {most}"
        yield Check("open files" if name == "files" else name, least <= high + MORE, seen)


def files(run: Run) -> Check:
    """The run directory holds what a run leaves: no half-written file or checkpoint, no lock, no heartbeat."""
    odd = [path.name for path in run.folder.iterdir() if path.name not in OWN]
    odd += [str(path.relative_to(run.folder)) for path in run.folder.rglob(f"*{TEMPORARY}*")]
    odd += [path.name for step, path in begun(run.folder).items() if step not in committed(run.folder)]
    kept = len(committed(run.folder))
    return Check(
        "files", not odd and kept == 2, f"left over: {', '.join(odd[:5])}" if odd else f"{kept} checkpoints kept"
    )


def processes(token: str) -> Check:
    limit = time.monotonic() + 20
    while (left := left_over(token)) and time.monotonic() < limit:
        time.sleep(0.5)
    return Check("processes", not left, f"left over: {'; '.join(left[:3])[:200]}" if left else "none left")


def ends(faults: list[tuple[str, int, str]]) -> Check:
    """No launch ended before all steps were done without a fault."""
    count = [name for name, *_ in faults].count(BY_ITSELF)
    return Check("ends without a fault", not count, f"{count or 'none'}")


def markdown(words: str, outcome: Outcome) -> str:
    """The report of a soak that was started with these words."""
    when = time.strftime("%Y-%m-%d")
    kinds = {name: [seen for kind, _, seen in outcome.faults if kind == name] for name, *_ in outcome.faults}
    right = all(check.right for check in outcome.checks)
    machine = f"{os.cpu_count()} cores ({platform.machine()}, load {os.getloadavg()[1]:.0f})"
    lines = [
        "# A run under faults",
        "",
        f"`python -m benchmarks.soak {words}`, {when}: {outcome.steps} steps of a narrow encoder with its",
        f"masker on synthetic ECGs, two processes under the real launcher on {machine}, first",
        f"undisturbed, then {outcome.minutes:.1f} minutes under {len(outcome.faults)} faults, with {outcome.starts}",
        "starts of the same command (those that were refused among them).",
        "",
        f"**{'All is as it should be.' if right else 'Something is wrong.'}**",
        "",
        "| checked | | seen |",
        "|---|---|---|",
        *(f"| {check.name} | {'right' if check.right else '**wrong**'} | {check.seen} |" for check in outcome.checks),
        "",
        "| fault | times | what was seen |",
        "|---|---:|---|",
        *(f"| {name} | {len(seen)} | {_counted(seen)} |" for name, seen in kinds.items()),
        "",
    ]
    return "\n".join(lines)


def _counted(seen: list[str]) -> str:
    return "; ".join(f"{text} ({seen.count(text)})" if len(seen) > 1 else text for text in dict.fromkeys(seen))
