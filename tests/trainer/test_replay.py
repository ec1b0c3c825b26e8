"""Which data a step that was not finite is played again from; the whole command is tested in end_to_end."""

import pytest

from trainer import replay
from trainer.config import DataConfig
from trainer.run.faults import Fault
from umbra.errors import UserError


def fault_of(*sources: str) -> Fault:
    return Fault(2, 3, 0, 0, 0, 1, "nan", [[1]], [["a/t[0]"]], list(sources))


def test_a_step_of_a_mixture_is_of_its_own_sources_whatever_the_run_has_now():
    now = DataConfig(path={"a": "A", "b": "B", "c": "C"}, weights={"b": 0.0})
    assert replay._sources_then(now, fault_of("b", "c")) == {"b": "B", "c": "C"}
    assert replay._sources_then(now, fault_of()) == {"a": "A", "c": "C"}  # kept by an earlier version
    assert replay._sources_then(DataConfig(path="DIR"), fault_of()) == "DIR"
    with pytest.raises(UserError, match=r"was of d too, which the run has left since: give data={b: B, d: DIR}"):
        replay._sources_then(now, fault_of("b", "d"))
