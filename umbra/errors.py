"""A mistake of the user, as one line."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake that the user can fix: one line that says what, where and how. Exit code 2 at the command line.

    `alone`: this process may be the only one of many that met it, and prints it in any case.
    """

    alone = False


@contextlib.contextmanager
def building(part: str) -> Iterator[None]:
    """Turns what torch says of a size that it cannot build into a `UserError` that names the `part` of the config."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise UserError(f"the {part} cannot be built from its keys {part}.*: {''.join(reason)}") from error


def require_extra(extra: str, *packages: str) -> None:
    """Ends the process with one line and exit code 2 if a package that the commands of an `extra` need is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: {missing[0]} is not installed: pip install 'umbra[{extra}]'", file=sys.stderr)
        sys.exit(2)
