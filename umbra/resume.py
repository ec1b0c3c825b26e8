"""Which config keys may change when a run, build or study is resumed, and the comparison that finds other changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UNSET = object()

# Keys and sections that may change on resume. All others determine the result.
FREE: dict[str, tuple[str, ...]] = {
    "run": (  # a different number of steps stretches the remaining schedule
        *(
            "run",
            "resume",
            "method",
            "steps",
            "epochs",
            "max_minutes",
            "max_skipped",
            "log",
            "checkpoint",
            "hang",
            "wandb",
        ),
        *(
            "data.path",
            "data.weights",
            "data.threads",
            "data.ahead",
            "data.exclude",
            "data.cache",
            "data.cache_gb",
            "data.audit",
        ),
        *("batch.device", "compile"),
    ),
    "build": ("input", "output", "workers", "task", "tasks", "key_file", "timeout"),
    "study": (
        *("rotations", "methods", "seeds", "tasks", "fractions", "reference", "bootstrap", "minutes", "output"),
        *("draws", "equal_compute", "name", "data", "processes", "workers", "part", "parts"),
    ),
}


@dataclass(frozen=True)
class Change:
    """A key whose value differs; a missing value is `UNSET`."""

    key: str
    old: Any
    new: Any


def changes(
    kind: str, old: Mapping[str, Any], new: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[Change]:
    """The changes that prevent resuming a `run`, `build` or `study` of config `old` with `new` (nested).

    `defaults`: the values of keys that `old` lacks because an earlier version did not have them.
    """
    before, now = flat(defaults or {}) | flat(old), flat(new)
    found = (Change(key, before.get(key, UNSET), now.get(key, UNSET)) for key in before | now)
    return [c for c in found if not is_free(kind, c.key) and c.old != c.new]


def is_free(kind: str, key: str) -> bool:
    """Whether a dotted key may change when a `run`, `build` or `study` is resumed."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE[kind])


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys flattened to dotted ones; an empty section gives none."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
