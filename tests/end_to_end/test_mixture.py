"""Runs under the real launcher that mix two data sets: their records prove each source for itself, over other world
sizes and with a source that leaves; what was pre-trained on goes with the encoder."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file

from tests.support.handmade import ARGS, ENCODER, make_run, make_shards
from tests.support.launch import ROOT, launch
from tests.support.misbehaving import Server
from tests.support.pretrain_words import SMALL, called, losses
from trainer.config import DataConfig
from trainer.data.audit import judge
from trainer.data.audit_records import history_of
from trainer.data.mixture import Mixture, Source
from trainer.data.mixtures import mixtures
from trainer.data.sources import opened
from trainer.evaluate import mask_lift
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.leaks import check
from trainer.export import drawn, export
from umbra.directory import read_config
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError
from umbra.schema import read_manifest

LONG = 500  # seconds for a start of a run on a busy machine


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Two data sets of 48 and 22 training ECGs, one of them with held-out ones."""
    root = tmp_path_factory.mktemp("sets")
    one = {"val": ["SR"] * 6, "train": ["SR", "STACH"] * 24, "test": ["SR", "STACH"] * 2}
    return {
        "big": make_shards(root / "big", one, 1, shards_of_train=6),
        "small": make_shards(root / "small", {"train": ["AFIB"] * 22, "test": ["SR", "STACH"] * 2}, 2, 10**6, None, 2),
    }


def words(sets: dict[str, Path], run: Path, *more: str) -> list[str]:
    places = [f"data.path.{name}={place}" for name, place in sets.items()]
    config = ["trainer/pretrain.py", "configs/pretrain/adversarial.yaml", *places, f"run={run}", *SMALL]
    return [*config, "data.lanes=4", "data.block_shards=2", "data.audit=true", *more]


def rows_by_order(sets: dict[str, Path]) -> np.ndarray:
    """The rows of the first 14 steps of a mixture of 2 : 1, by its order alone."""
    mixture = Mixture((Source("big", (8,) * 6, 2, 3), Source("small", (11, 11), 1, 1)), 0, 16, 4, 1, 2)
    train = opened(DataConfig(path={name: str(root) for name, root in sets.items()}), "train")
    return np.stack([train.rows_of(mixture.step(step)).ravel() for step in range(14)])


def rows_of(run: Path) -> np.ndarray:
    """The rows [steps, batch] of the final history of a run."""
    history, _ = history_of(run, "", [])
    parts = [part.rows(part.first, part.stop).transpose(1, 0, 2) for part in history]
    return np.concatenate([part.reshape(part.shape[0], -1) for part in parts])


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_a_mixture_over_two_world_sizes_and_without_a_source_from_a_step_on(sets, tmp_path):
    run, mixed = tmp_path / "run", ["data.weights={big: 2, small: 1}", "zero=1"]
    for steps, processes, more in ((6, 2, mixed), (14, 1, mixed), (22, 2, ["data.weights.small=0", "zero=1"])):
        code, output = launch(words(sets, run, f"steps={steps}", *more), processes, LONG)
        assert code == 0, output[-3000:]
        assert "# from step 0: 66.67 % big, 48 ECGs, each once in 4.5 steps, in epoch 0 after 0\n" in output
    assert re.search(r"# from step 14: 100 % big, 48 ECGs, each once in 3 steps, in epoch 3 after \d+\n", output)
    assert np.array_equal(rows_of(run)[:14], rows_by_order(sets))
    verdict = judge(run)
    assert verdict.problems == []
    states = {name: [e.state for e in verdict.epochs if e.source == name] for name in sets}
    assert states == {"big": [*["complete"] * 5, "unfinished"], "small": [*["complete"] * 3, "cut"]}
    assert launch(["-m", "trainer.data.audit", str(run)])[0] == 0
    record, marks = json.loads((run / "run.json").read_text()), marks_of(sets)
    assert {name: source["fingerprint"] for name, source in record["sources"].items()} == marks
    assert (record["fingerprint"], record["data"]) == ("+".join(marks.values()), {"samples": 70, "patients": 35})
    assert read_config(export(run)).data["sources"].keys() == sets.keys()
    with pytest.raises(UserError, match=r"could be delineated|pip install"):  # the ECGs of both, as those of one set
        mask_lift.main([str(run), "by=", "ecgs=4", "split=train", *(f"data.{n}={p}" for n, p in sets.items())])


def marks_of(sets: dict[str, Path]) -> dict[str, str]:
    return {name: read_manifest(root).fingerprint for name, root in sets.items()}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_remote_source_beside_a_local_one_gives_the_same_run(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    near, far = tmp_path / "near", tmp_path / "far"
    assert launch(words(sets, near, "steps=9"), 1, LONG)[0] == 0
    with Server(sets["big"]).serving() as server:
        given = words(sets | {"big": f"{server.url}?token=t0p"}, far, "steps=9", f"data.cache={tmp_path / 'cache'}")
        code, output = launch(given, 1, LONG)
    assert code == 0, output[-3000:]
    assert losses(far) == losses(near)
    assert judge(far).problems == []
    kept = yaml.safe_load((far / "config.yaml").read_text())["data"]["path"]
    assert kept == {"big": server.url, "small": str(sets["small"])}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.weights.smal=2"], "data.weights.smal: data.path has no such source; did you mean 'small'?"),
        (["data.weights={big: -1}"], "data.weights.big=-1.0 must be a finite number >= 0"),
        (["data.weights={big: 0, small: 0}"], "data.weights leaves no source: give one of them a weight above 0"),
        (["data.path.x y=DIR"], "a source cannot be called 'x y'"),
        (["data.path.third="], "data.path.third is empty: give its folder, data.path.third=DIR"),
        (["data.path.third=/no/such"], "/no/such/manifest.json does not exist"),
        (["data.exclude=[train-000000.tar]"], "is not a training shard, SOURCE/SHARD; did you mean '"),
        (["data.cache=x"], "data.cache=x has no effect with a local data.path"),
        (
            ["data.weights={small: 50}", "batch.global=24"],
            "ECGs of a step are of small, which has 22 training ECGs: lower its weight",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(sets, tmp_path, more, said, monkeypatch, capsys):
    given = words(sets, tmp_path / "run", "batch.global=20", *more, "--dry-run")[1:]
    code, output, error = called(given, monkeypatch, capsys)
    assert (code, output) == (2, "")
    assert said in error
    assert error.count("\n") == 1


def test_a_dry_run_says_what_is_mixed(sets, tmp_path, monkeypatch, capsys):
    code, output, _ = called([*words(sets, tmp_path / "run", "steps=10")[1:], "--dry-run"], monkeypatch, capsys)
    assert code == 0
    assert "# 70 training ECGs, 4 steps an epoch, 10 steps of 16, 4 lanes" in output
    assert "# from step 0: 68.57 % big, 48 ECGs, each once in 4.375 steps, in epoch 0 after 0\n" in output
    assert "# from step 0: 31.43 % small, 22 ECGs, each once in 4.375 steps, in epoch 0 after 0\n" in output
    assert "patients of the held-out ECGs" not in output
    assert subprocess.run(["ls", str(tmp_path / "run")], capture_output=True, cwd=ROOT).returncode != 0


def test_a_dry_run_counts_held_out_patients_that_another_source_trains_on(sets, tmp_path, monkeypatch, capsys):
    places = sets | {"small": make_shards(tmp_path / "same", {"train": ["SR"] * 24}, 5)}  # patients 0 to 11
    code, output, _ = called([*words(places, tmp_path / "run")[1:], "--dry-run"], monkeypatch, capsys)
    assert code == 0
    assert "# 3 patients of the held-out ECGs are in the train split of another source: heldout/loss is too" in output


@pytest.fixture
def finished(sets, tmp_path) -> Path:
    """A run directory as a run of both sources leaves it, with batch norm."""
    marks, train = marks_of(sets), opened(DataConfig(path={n: str(p) for n, p in sets.items()}), "train")
    kept = mixtures(train.offered(), {"big": 3}, [], {}, 16, 4)
    facts = ENCODER | {"args": ARGS | {"norm": "batch"}}
    places = {"path": {name: str(root) for name, root in sets.items()}, "weights": {"big": 3.0}}
    run = make_run(tmp_path / "run", (3,), sources=kept[0][1], fingerprint="+".join(marks.values()), encoder=facts)
    (run / "config.yaml").write_text(yaml.safe_dump({"data": places}))
    state = {"step": 3, "config": {"data": places}, "fingerprint": "x", "world": 1, "mixtures": kept}
    (run / "checkpoints" / "step-3" / "state.json").write_text(json.dumps(state))
    weights = build_encoder(ENCODER["name"], 12, 256, facts["args"]).state_dict()
    save_file({f"backbone.{k}": v for k, v in weights.items()}, run / "checkpoints" / "step-3" / "weights.safetensors")
    return run


def test_an_encoder_names_all_sources_and_the_guard_looks_in_each(sets, finished, tmp_path):
    encoder, marks = export(finished), marks_of(sets)
    about, card = read_config(encoder), (encoder / "README.md").read_text()
    assert {name: source["fingerprint"] for name, source in about.data["sources"].items()} == marks
    assert all(f"| of source `{name}` | " in card and marks[name] in card for name in sets)
    assert about.training["batch_norm"]["ecgs"] == 48 + 22
    test = make_shards(tmp_path / "test", {"test": ["SR"] * 2, "train": ["SR"] * 2}, 1, 10**6)  # a patient of small
    away = shutil.copytree(encoder, tmp_path / "away")

    def seen(where: Path, **given) -> dict:
        config = TransferConfig(encoder=str(where), data=str(test), output="x", allow_leak=True, **given)
        return check(config, about)["by_patient"]

    both = {name: str(root) for name, root in sets.items()}
    for found in (seen(encoder), seen(away, pretrained_on=both), seen(encoder, pretrained_on={"b": both["big"]})):
        assert found == {"checked": True, "windows": 2, "patients": 1, "why": ""}
    assert seen(away)["why"].count("the encoder does not lie in the directory of its run") == 2
    part = seen(away, pretrained_on={"b": both["big"]})
    assert (part["checked"], part["windows"]) == (False, 0)
    assert part["why"].startswith("small: the encoder does not lie in the directory of its run; give the folder")
    with pytest.raises(UserError, match=r"was pre-trained on \w+, \w+: name the data set that it was pre-trained on"):
        seen(encoder, pretrained_on=str(test))
    (finished / "config.yaml").write_text(yaml.safe_dump({"data": {"path": {"big": both["big"]}}}))
    assert seen(encoder)["why"].startswith("small: the run was last without it; give the folder of its")


def test_batch_norm_is_estimated_on_ecgs_of_each_source_by_its_weight(sets):
    train = opened(DataConfig(path={n: str(p) for n, p in sets.items()}, weights={"big": 3.0}), "train")
    assert (drawn(train, [], 8) < 48).tolist() == [True] * 6 + [False] * 2
    assert (drawn(train, ["big/train-000000.tar"], 8) >= 8).all()
