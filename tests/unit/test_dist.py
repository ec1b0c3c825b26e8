import sys

import pytest
import torch

from sharding.config import UserError, command
from trainer import dist


@pytest.mark.parametrize(
    ("local", "rank", "expected"),
    [([0], 0, (0,)), ([0, 1, 2, 0, 1, 2], 4, (3, 4, 5)), ([0, 1, 0, 1, 2], 1, (0, 1)), ([0, 0, 0], 1, (1,))],
)
def test_the_ranks_of_a_machine_follow_from_the_local_ranks(local, rank, expected, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", str(local[rank]))
    monkeypatch.setattr(dist, "gather", lambda mine: local)
    assert dist.ranks_of_machine(dist.World(rank, len(local), torch.device("cpu"))) == expected


def test_ranks_dealt_out_over_machines_in_turn_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(dist, "gather", lambda mine: [0, 0, 1, 1])
    with pytest.raises(UserError, match="block distribution"):
        dist.ranks_of_machine(dist.World(2, 4, torch.device("cpu")))


def test_alone_a_value_is_gathered_as_it_is():
    assert dist.gather("x") == ["x"]


@pytest.mark.parametrize(("alone", "said"), [(True, "error: disk full\n"), (False, "")])
def test_a_quiet_process_prints_what_it_alone_met(alone, said, monkeypatch, capsys):
    def main(words):
        error = UserError("disk full")
        error.alone = alone
        raise error

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as ended:
        command(main, quiet=True)
    assert (ended.value.code, capsys.readouterr().err) == (2, said)
