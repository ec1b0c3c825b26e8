"""Faults during training end in one line that says what to set; engines and ranks are stand-ins."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trainer import pretrain
from trainer.config import PretrainConfig
from trainer.run import faults, loop
from umbra.config import load
from umbra.errors import UserError

CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Watch:
    def give_way(self):
        pass


def run_of(*words, rank=1, size=2, norm=None):
    return SimpleNamespace(
        cfg=load(PretrainConfig, None, ["batch.global=64", *words]),
        world=SimpleNamespace(rank=rank, size=size, is_main=rank == 0),
        engines={"encoder": SimpleNamespace(module=nn.Sequential(norm or nn.Identity()))},
        metrics=SimpleNamespace(close=lambda summary: None),
        cache=None,
        recorder=None,
        at=6,
    )


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(CPU)])
@pytest.mark.parametrize(
    ("words", "norm", "said"),
    [
        ([], None, "set batch.device=16 (now 32 ECGs per forward pass)"),
        (["batch.contrast=16"], None, "set batch.device=4 (now 8 ECGs per forward pass)"),
        (["batch.device=5"], None, "set batch.device=2 (now 5 ECGs per forward pass)"),
        (["batch.device=1"], None, "use a smaller encoder or masker"),
        ([], nn.BatchNorm1d(2), "with batch norm use more processes, or a smaller batch.contrast"),
    ],
)
def test_out_of_memory_on_one_rank_is_a_line_with_a_batch_that_may_fit(error, words, norm, said, monkeypatch):
    def train(run, stop):
        raise error

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(UserError) as ended:
        pretrain._train(run_of(*words, norm=norm), Watch())
    assert str(ended.value).startswith("rank 1 on ")
    assert " is out of memory in step 7: " in str(ended.value)
    assert said in str(ended.value)
    assert ended.value.alone


def test_what_cannot_be_written_beside_the_checkpoints_is_no_end_of_a_run(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrain, "loss_curves", full)
    pretrain._end(SimpleNamespace(folder=tmp_path, total=3), 3, "")
    engine = SimpleNamespace(module=nn.Linear(2, 2), zero_optimization_stage=lambda: 0)
    fault = faults.Fault(2, 3, 0, 0, 0, 1, "nan", [[1]], [["a[0]"]])
    with monkeypatch.context() as now:
        now.setattr(faults, "write_text", full)
        assert faults.keep(tmp_path, fault, {"encoder": engine}) is None
    assert not list((tmp_path / "faults").iterdir())
    assert faults.keep(tmp_path, fault, {"encoder": engine}) == tmp_path / "faults" / "step-3"
    said = capsys.readouterr().out
    for what in ("figures/curves.png", "faults/step-3"):
        assert f"{what} could not be written ([Errno 28] No space left on device): the run goes on without it" in said
    assert "# finished at step 3 of 3" in said


def test_another_error_stays_what_it_is(monkeypatch):
    def train(run, stop):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(loop, "train", train)
    with pytest.raises(RuntimeError, match="shapes differ"):
        pretrain._train(run_of(), Watch())
