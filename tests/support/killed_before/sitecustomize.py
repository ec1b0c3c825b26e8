"""Kills this process and its group at the moment before a file gets the name in KILLED_BEFORE (a path's end)."""

import os
import signal
import sys


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and os.fspath(arguments[1]).endswith(os.environ["KILLED_BEFORE"]):
        os.killpg(0, signal.SIGKILL)


if os.environ.get("KILLED_BEFORE"):
    sys.addaudithook(_watch)
