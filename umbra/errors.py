"""Errors that are reported to the user as one line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """An error that the user can fix: one line that says what is wrong, where, and what to do. Exit code 2.

    `alone`: may occur in only one of several processes, so that even a quiet process prints it.
    """

    alone = False


@contextlib.contextmanager
def building(part: str) -> Iterator[None]:
    """Converts torch's errors for impossible sizes into a `UserError` that names the `part` of the config."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"the {part} cannot be built from its keys {part}.*: {''.join(reason)}") from error


def require_extra(extra: str, *packages: str) -> None:
    """Exits with one line and code 2 if one of the `packages` that an optional `extra` installs is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {missing[0]} is not installed: pip install 'umbra[{extra}]'", file=sys.stderr)
        sys.exit(2)
