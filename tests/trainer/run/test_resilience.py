"""Signals: what is said, what they mean, and that output that cannot be written is no error."""

import os
import signal
import subprocess
import sys

import pytest

from trainer.run.resilience import SIGNALS, Stop


@pytest.mark.parametrize(
    ("number", "reason", "said"),
    [
        (signal.SIGINT, "Ctrl-C", "\n# Ctrl-C: saving, Ctrl-C again ends now\n"),
        (signal.SIGHUP, "the terminal was closed", "\n# the terminal was closed: saving\n"),
        (signal.SIGTERM, "signal SIGTERM", "\n# signal SIGTERM: saving\n"),
        (signal.SIGUSR1, "signal SIGUSR1", "\n# signal SIGUSR1: saving\n"),
    ],
)
def test_a_signal_asks_and_is_said_once_by_one_process(number, reason, said, capfd, request):
    hup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, hup))
    before = [signal.getsignal(n) for n in SIGNALS]
    for speaks in (True, False):
        with Stop(speaks=speaks).listening() as stop:
            assert not stop.asked
            os.kill(os.getpid(), number)
            assert stop.asked
            assert stop.reason == reason
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.reason == reason
        assert capfd.readouterr().out == (said if speaks else "")
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop().listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_ctrl_c_ends_at_once_even_where_python_does_not_run():
    code = """
import os, signal, sys
from trainer.run.resilience import Stop
with Stop().listening():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGINT
    assert (done.stdout, done.stderr) == ("\n# Ctrl-C: saving, Ctrl-C again ends now\n", "")


def test_what_cannot_be_written_is_dropped():
    code = """
import os, sys
from trainer.run import terminal
terminal.prepare()
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
print("into nothing", flush=True)
terminal.tell("nor this")
print("kept", file=sys.stderr, flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "kept\n")
