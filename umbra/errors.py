"""Errors that are reported to the user as one line."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

CUTOFF = 0.6  # similarity (difflib) from which a known word is suggested for an unknown one
SHOWN = 20


class UserError(ValueError):
    """An error that the user can fix: one line that says what is wrong, where, and what to do. Exit code 2.

    `alone`: may occur in only one of several processes, so that even a quiet process prints it.
    """

    alone = False


def nearest(word: object, known: Iterable[str]) -> str:
    """The known word that is most similar to `word`, in any case; empty if none is similar."""
    names = {name.lower(): name for name in known}
    return next((names[n] for n in difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=CUTOFF)), "")


def near_miss(word: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: `; did you mean 'X'?`, or `; known: ...` if none is similar."""
    names = list(known)
    if near := nearest(word, names):
        return f"; did you mean '{near}'?"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; known: {', '.join(names[:SHOWN]) or 'none'}{more}"


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts `where: ` in front of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


@contextlib.contextmanager
def building(part: str, keys: Mapping[str, object]) -> Iterator[None]:
    """Converts torch's errors for impossible sizes into a `UserError` that names the `part` and its config `keys`."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = "".join(str(error).strip().splitlines()[:1])
        if isinstance(error, MemoryError) or re.search("memory|alloc|overflow", str(error), re.IGNORECASE):
            reason = "it does not fit into memory; use smaller sizes"
        sizes = ", ".join(f"{key}={value}" for key, value in keys.items())
        raise UserError(f"the {part} cannot be built with {sizes}: {reason}") from error


def require_extra(extra: str, *packages: str) -> None:
    """Exits with one line and code 2 if one of the `packages` that an optional `extra` installs is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {missing[0]} is not installed: pip install 'umbra[{extra}]'", file=sys.stderr)
        sys.exit(2)


def of_the_hub(error: Exception) -> str:
    """What the hub's client says, on one line and without the token: of one with a line break it shows the header."""
    said = " ".join((str(error) or type(error).__name__).split())
    return re.sub(r"Bearer .*", "Bearer ...", said)[:200]
