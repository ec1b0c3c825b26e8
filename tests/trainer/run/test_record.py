"""`run.json`: what a run that goes on takes from it, and one line where it is damaged."""

import json

import pytest

from tests.support.handmade import make_run, make_shards
from trainer.config import PretrainConfig
from trainer.data.shards import Shards
from trainer.run import record
from trainer.run.record import new_record, read_record
from umbra.config import load
from umbra.errors import UserError


@pytest.fixture
def cfg_and_train(tmp_path):
    data = make_shards(tmp_path / "data", {"train": ["SR"] * 8})
    run = make_run(tmp_path / "run")
    return load(PretrainConfig, None, [f"data.path={data}", f"run={run}"]), Shards(data, "train")


def test_a_run_that_goes_on_keeps_its_id_at_wandb(cfg_and_train):
    known = new_record(*cfg_and_train, steps=10, bf16=False, world=1)
    assert known.wandb_id == "x"
    assert known.data == {"samples": 8, "patients": 4}


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', b"\xff\xfe"])
def test_a_damaged_run_json_is_one_line_with_the_way_out(content, cfg_and_train):
    cfg, train = cfg_and_train
    path = cfg.run + "/run.json"
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(
        UserError, match=r"run\.json is damaged \(.*delete it and run the same pretrain command"
    ) as said:
        new_record(cfg, train, steps=10, bf16=False, world=1)
    assert "\n" not in str(said.value)


def test_a_full_disk_is_one_line_with_the_way_out(cfg_and_train, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    made = new_record(*cfg_and_train, steps=10, bf16=False, world=1)
    monkeypatch.setattr(record, "write_text", full)
    with pytest.raises(UserError, match=r"run\.json cannot be written \(No space left on device\): make room, and run"):
        record.write_record(cfg_and_train[0], made, "finished")


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"encoder": {}})])
def test_readers_say_what_is_wrong_with_it(content, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json (is damaged|lacks)"):
        read_record(run)
