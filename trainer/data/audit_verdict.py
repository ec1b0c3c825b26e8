"""What the audit of a run says."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 12


@dataclass
class Epoch:
    """Steps `first` to `last` of the final history. `seen`: number of samples; `remainder`: training rows not seen;
    `due`: steps of a whole epoch; `state`: complete, cut (by a change of data.exclude), unfinished or wrong. Of a
    `source` of a mixture, `due` are its samples, and two epochs may share a step.
    """

    number: int
    first: int
    last: int
    due: int
    seen: int
    state: str
    remainder: list[int] = field(default_factory=list)
    source: str = ""


@dataclass
class Verdict:
    """`epochs` of the final history, number of discarded steps (`struck`), and what is wrong, if anything."""

    epochs: list[Epoch]
    struck: int
    problems: list[str]


def some(values: list[int]) -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more


def describe(epoch: Epoch) -> str:
    """One line about an epoch."""
    if epoch.source:
        return _describe_source(epoch)
    steps = f"epoch {epoch.number}: steps {epoch.first} to {epoch.last}"
    once = f"{epoch.seen} samples, each once"
    return {
        "complete": f"{steps}, complete: {once}; {len(epoch.remainder)} not seen: {some(epoch.remainder) or 'none'}",
        "cut": f"{steps} of {epoch.due}, ended by a change of data.exclude: {once}",
        "unfinished": f"{steps}, {epoch.last - epoch.first + 1} of {epoch.due} steps so far: {once}",
        "wrong": f"{steps}: WRONG, {epoch.seen} samples",
    }[epoch.state]


def _describe_source(epoch: Epoch) -> str:
    return (
        f"{epoch.source}, epoch {epoch.number}: steps {epoch.first} to {epoch.last}, "
        + {
            "complete": f"complete: {epoch.seen} samples, each once",
            "cut": f"{epoch.seen} of {epoch.due} samples, each once; ended by a change of the mixture",
            "unfinished": f"{epoch.seen} of {epoch.due} samples so far, each once",
            "wrong": f"WRONG, {epoch.seen} of {epoch.due} samples",
        }[epoch.state]
    )
