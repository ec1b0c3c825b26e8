"""What could not be written, on a full disk or a lost one, without an end of the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from umbra.errors import UserError


class Problems:
    """What could not be written by this process; the collectives go on, so that all ranks come to the same end."""

    def __init__(self) -> None:
        self.first = ""

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UserError, RuntimeError) as error:
            first = _first_of_torch(error)
            self.first = self.first or (str(first).strip().splitlines() or [type(first).__name__])[0]

    def warn(self, what: str) -> None:
        """Says, if there was a problem, that `what` is not there and that the run goes on."""
        if self.first:
            print(f"# WARNING: {what} could not be written ({self.first}): the run goes on without it", flush=True)


def _first_of_torch(error: BaseException) -> BaseException:
    """torch's writer, a RuntimeError, fails once more as it closes the file: the error before says more."""
    while isinstance(error, RuntimeError) and isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return error
