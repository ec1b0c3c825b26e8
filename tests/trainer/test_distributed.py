import socket
import subprocess
import sys

import pytest
import torch

from trainer import distributed
from umbra.config import command
from umbra.errors import UserError


@pytest.mark.parametrize(
    ("local", "rank", "expected"),
    [([0], 0, (0,)), ([0, 1, 2, 0, 1, 2], 4, (3, 4, 5)), ([0, 1, 0, 1, 2], 1, (0, 1)), ([0, 0, 0], 1, (1,))],
)
def test_the_ranks_of_a_machine_follow_from_the_local_ranks(local, rank, expected, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", str(local[rank]))
    monkeypatch.setattr(distributed, "gather", lambda mine: local)
    assert distributed.ranks_of_machine(distributed.World(rank, len(local), torch.device("cpu"))) == expected


def test_ranks_dealt_out_over_machines_in_turn_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "gather", lambda mine: [0, 0, 1, 1])
    with pytest.raises(UserError, match="block distribution"):
        distributed.ranks_of_machine(distributed.World(2, 4, torch.device("cpu")))


def test_alone_a_value_is_gathered_as_it_is():
    assert distributed.gather("x") == ["x"]


@pytest.mark.parametrize(("alone", "waits"), [(True, []), (False, [60.0])])
def test_a_quiet_process_prints_at_once_what_it_alone_met(alone, waits, monkeypatch, capsys):
    """Else it first leaves time for the process that prints: the launcher kills all others when one exits."""
    waited = []
    monkeypatch.setattr("umbra.config.time.sleep", waited.append)

    def main(words):
        error = UserError("disk full")
        error.alone = alone
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        command(main, quiet=True)
    assert (ended.value.code, capsys.readouterr().err, waited) == (2, "error: disk full\n", waits)


@pytest.mark.parametrize(
    ("inside", "code", "said"),
    [("pass", 0, ""), ("sys.exit(2)", 2, ""), ("sys.exit(None)", 0, ""), ("sys.exit('error: no')", 1, "error: no\n")],
)
def test_a_process_ends_with_its_code_its_words_and_its_exit_handlers(inside, code, said):
    text = "import atexit, sys\nfrom trainer import distributed\natexit.register(print, 'bye')\n"
    text += f"with distributed.ended():\n    print('hello')\n    {inside}\n"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (code, "hello\nbye\n", said)


def test_an_error_ends_a_process_with_its_traceback():
    text = "from trainer import distributed\nwith distributed.ended():\n    1 / 0\n"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_a_port_that_is_taken_is_named_by_the_first_process_alone(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank, torchruns in (("1", "False"), ("0", "True")):  # who does not open it
            monkeypatch.setenv("RANK", rank)
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", torchruns)
            distributed._check_port()
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
        with pytest.raises(UserError, match=rf"port {port}, .* \(Address already in use\).*--master_port N"):
            distributed.initialise()
    distributed._check_port()
