"""Ctrl-C and the terminal of a run that a launcher has started.

A terminal sends Ctrl-C to all processes of its foreground group, also to the launcher, which then prints a traceback,
returns the prompt and kills the run 30 s later. So the first process of a run takes the foreground: Ctrl-C reaches it
alone, all processes of the run stop together after a checkpoint, and the launcher sees an ordinary end.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import termios
from typing import Any, TextIO, cast


def prepare() -> None:
    """To be called once, before torch is loaded: Ctrl-C ends a process that does not train yet, without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout, sys.stderr = (cast(TextIO, Lenient(stream)) for stream in (sys.stdout, sys.stderr))
    if os.environ.get("LOCAL_RANK") == "0":
        with contextlib.suppress(OSError, termios.error):  # there is no terminal
            _take(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))


class Lenient:
    """A stream that drops what cannot be written: a closed terminal, or `| tee` that Ctrl-C has ended, is no error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tell(text: str) -> None:
    """Prints a line from a signal handler, where `print` may find its stream in use."""
    with contextlib.suppress(OSError):
        os.write(1, f"{text}\n".encode())


def _take(terminal: int) -> None:
    """Makes this process a group of its own in the foreground, if the launcher's is there; given back at exit.

    Ctrl-Z goes to the launcher's group again, of which the shell knows. Terminals that stop background output are left
    as they are, as the launcher could not write.
    """
    launcher = os.getpgrp()
    stops = termios.tcgetattr(terminal)[3] & termios.TOSTOP
    if launcher == os.getpid() or os.tcgetpgrp(terminal) != launcher or stops:
        return
    os.setpgid(0, 0)
    _bring_forward(terminal, launcher, os.getpid())

    def suspend(*_: object) -> None:
        atexit.unregister(give_back)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.setpgid(0, launcher)
            _bring_forward(terminal, os.getpid(), launcher)
        os.killpg(os.getpgrp(), signal.SIGTSTP)  # stops here, until `fg` or `bg`
        with contextlib.suppress(OSError, termios.error):
            _take(terminal)

    def give_back() -> None:
        with contextlib.suppress(OSError):
            _bring_forward(terminal, os.getpid(), launcher)

    signal.signal(signal.SIGTSTP, suspend)
    atexit.register(give_back)


def _bring_forward(terminal: int, before: int, group: int) -> None:
    """Makes `group` the terminal's foreground group, if it is `before` now."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
    try:
        if os.tcgetpgrp(terminal) == before:
            os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
