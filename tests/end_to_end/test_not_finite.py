"""A real run whose learning rate throws the weights out of range: skipped steps, the end, and the replay."""

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.handmade import make_shards
from tests.support.launch import launch
from tests.support.pretrain_words import losses, run_words

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("processes", "zero"), [(0, 0), (2, 3)])
def test_steps_are_skipped_and_kept_until_too_many_in_a_row_and_played_again(processes, zero, tmp_path):
    shards = make_shards(tmp_path / "shards", {"train": ["SR", "AFIB"] * 16})
    other = [f"data.path={{one: {shards}, two: {make_shards(tmp_path / 'two', {'train': ['SR'] * 32}, 1)}}}"]
    words = run_words(
        shards,
        tmp_path / "run",
        *(other if processes else []),
        "optim.encoder.lr=1e30",
        "max_skipped=2",
        "steps=20",
        f"zero={zero}",
        "batch.contrast=8",
    )
    code, output = launch(words, processes)
    assert code == 2, output[-3000:]
    first, last = (int(step) for step in re.findall(r"step (\d+)(?: was skipped|: the loss)", output)[::2])
    assert last == first + 2
    assert f"# WARNING: step {first} was skipped (1 in a row of at most 2): the loss or the gradient" in output
    assert f"error: step {last}: the loss or the gradient" in output
    assert "3 steps in a row, and there is no checkpoint yet; lower optim.encoder.lr" in output
    assert len(losses(tmp_path / "run")) == first - 1
    kept = tmp_path / "run" / "faults"
    assert sorted(path.name for path in kept.iterdir()) == sorted(f"step-{n}" for n in range(first, last + 1))
    ranks = [json.loads(path.read_text()) for path in sorted((kept / f"step-{first}").glob("rank-*.json"))]
    rows = [row for rank in ranks for micro in rank["rows"] for row in micro]
    assert (len(ranks), len(set(rows))) == (max(processes, 1), 16)
    named = r"(one|two)/train-\d+\.tar\[\d+\]" if processes else r"train-\d+\.tar\[\d+\]"
    assert re.fullmatch(named, ranks[0]["samples"][0][0])
    weights = [load_file(kept / f"step-{n}" / "weights.safetensors") for n in (first, last)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if processes:  # the run goes on with a source more, whose rows are numbered before those of the others
        config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        config["data"]["path"]["another"] = str(make_shards(tmp_path / "another", {"train": ["SR"] * 8}, 2))
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    code, output = launch(["-m", "trainer.replay", str(tmp_path / "run"), f"step={first}"])
    assert code == 0, output
    assert f"# step {first}: 16 ECGs of {len(ranks)} processes" in output
    assert "reproduced: the loss or the gradient at the mask is not finite" in output
    assert re.search(r"^encoder: the first output that is not finite is that of backbone", output, re.M), output
    if processes:
        code, output = launch(["-m", "trainer.replay", str(tmp_path / "run"), f"step={first}", f"data.one={shards}"])
        assert (code, output.count("\n")) == (2, 2)
        assert re.search(r"error: the step was of other data than .*, such as (one|two)/train-", output), output
    code, output = launch(["-m", "trainer.replay", str(tmp_path / "run"), "step=1"])
    assert (code, output.count("\n")) == (2, 1)
    assert "steps that were kept are " in output
