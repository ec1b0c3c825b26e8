"""What may change when a run, a build or a study goes on, and the one comparison that tells what else has changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNSET = object()

# Keys and sections that may differ from one start to the next. All others belong to the result.
FREE: dict[str, tuple[str, ...]] = {
    "run": (  # another number of steps stretches the rest of the schedule
        *("run", "resume", "steps", "epochs", "max_minutes", "log", "checkpoint", "wandb"),
        *("data.path", "data.threads", "data.ahead", "data.exclude", "data.cache", "data.cache_gb", "data.audit"),
        *("batch.device", "compile"),
    ),
    "build": ("input", "output", "workers", "task", "tasks", "key_file", "timeout"),
    "study": (
        *("rotations", "methods", "seeds", "tasks", "fractions", "reference", "bootstrap", "minutes", "output"),
        "processes",
    ),
}


@dataclass(frozen=True)
class Change:
    """One key whose value differs; a value that is not there is `UNSET`."""

    key: str
    old: Any
    new: Any


def changes(kind: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What keeps a `run`, `build` or `study` of the nested config `old` from going on under `new`."""
    before, now = flat(old), flat(new)
    found = (Change(key, before.get(key, UNSET), now.get(key, UNSET)) for key in before | now)
    return [c for c in found if not is_free(kind, c.key) and c.old != c.new]


def is_free(kind: str, key: str) -> bool:
    """Whether a dotted key may change when a `run`, `build` or `study` goes on."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE[kind])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones; an empty section has none."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
