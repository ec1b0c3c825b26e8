"""Stops this process (SIGSTOP), or with a number of seconds lets it sleep, at a moment of the work.

STOPPED_AT is `RANK EVENT WORD`: Python's audit event whose first or second argument, as text, ends with WORD, in the
process of that rank. STOPPED_FOR: the seconds.
"""

import os
import signal
import sys
import time


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == _event and any(isinstance(a, str | os.PathLike) and str(a).endswith(_word) for a in arguments[:2]):
        if seconds := os.environ.get("STOPPED_FOR"):
            time.sleep(float(seconds))
        else:
            os.kill(os.getpid(), signal.SIGSTOP)


if os.environ.get("STOPPED_AT"):
    _rank, _event, _word = os.environ["STOPPED_AT"].split()
    if os.environ.get("RANK") == _rank:
        sys.addaudithook(_watch)
