"""`data.path`: one place of a data set, or several by name."""

from __future__ import annotations

from trainer.data.remote.fetch import is_remote, without_secrets

Place = str | dict[str, str]


def named(place: Place) -> dict[str, str]:
    """The places by the names of their sources; the name of a single one is empty."""
    return {n: str(p) for n, p in place.items()} if isinstance(place, dict) else {"": str(place)}


def any_remote(place: Place) -> bool:
    """Whether a data set of `place` is remote."""
    return any(map(is_remote, named(place).values()))


def public(place: Place) -> Place:
    """A `data.path` without the names, passwords and queries of its URLs."""
    if isinstance(place, dict):
        return {name: without_secrets(path) for name, path in place.items()}
    return without_secrets(place)
