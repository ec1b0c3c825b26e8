"""A checkpoint is gone on with by another number of processes: the whole state is the same, and so is the next step.

Before it, a step that is not finite is skipped, and leaves nothing behind.
"""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.devices import on_each
from tests.support.launch import launch
from trainer.run import reshape
from trainer.run.checkpoint import committed

RICH = {"adamw": True, "learn": True, "norm": "batch"}
QUICK = [{**RICH, "zero": zero, "accumulation": 1 + zero % 2} for zero in (0, 1, 2, 3)]
FULL = [{**RICH, "zero": z, "accumulation": a} for z, a in itertools.product((0, 1, 2, 3), (1, 2))]
FULL += [{"adamw": True, "zero": z, "dials": {"schedule": "alternating"}} for z in (1, 2, 3)]
BETA = 0.9  # of AdamW's first moment


def play(cases, processes, into, of="", device="cpu"):
    words = ["tests/multiprocess/resume_worker.py", json.dumps({"cases": cases, "into": str(into), "of": str(of)})]
    code, output = launch(words, processes, 280, device)
    assert code == 0, output[-4000:]


def compare(cases, there, worlds, here, world):
    """What `world` processes made `here` of the checkpoints `there` of `worlds` processes."""
    for number, case in enumerate(cases):
        old, new = ([root / str(number) / "checkpoints" / f"step-{n}" for n in (3, 4)] for root in (there, here))
        weights = [[load_file(path / "weights.safetensors") for path in paths] for paths in (old, new)]
        assert all(torch.equal(weights[0][0][name], weights[1][0][name]) for name in weights[0][0]), case
        assert weights[0][0].keys() == weights[1][0].keys()
        for name, right in weights[0][1].items():
            assert torch.allclose(weights[1][1][name].double(), right.double(), rtol=1e-5, atol=1e-6), (case, name)
        if case["zero"]:
            for player in ("encoder", "masker"):
                before, after = (
                    [reshape.read(path / player / "state", count) for path in paths]
                    for paths, count in ((old, worlds), (new, world))
                )
                assert before[0].step == after[0].step == 3
                same_moments(before[0], after[0], weights[0][0], player)
                assert distance(gradient(before), gradient(after)) < 1e-5, (case, player)


def same_moments(one, two, weights, player):
    prefix = "masker." if player == "masker" else ""
    for moment in reshape.MOMENTS:
        assert one.moments[moment].keys() == two.moments[moment].keys()
        for name, values in one.moments[moment].items():
            assert len(values) == weights[prefix + name].numel()
            assert torch.equal(values, two.moments[moment][name]), name


def gradient(states):
    """The clipped gradient of the step between two states, by the update of AdamW's first moment."""
    first, second = (torch.cat([m for _, m in sorted(state.moments["exp_avg"].items())]).double() for state in states)
    return (second - BETA * first) / (1 - BETA)


def distance(got, right):
    return ((got - right).norm() / right.norm()).item()


@pytest.fixture(scope="module", params=on_each())
def before(request, tmp_path_factory):
    """(where, of how many processes, the device) of what was saved at every stage."""
    device, place = request.param, tmp_path_factory.mktemp("before")
    count = 2 if device == "cpu" else 1
    play(QUICK, count, place, device=device)
    return place, count, device


def test_one_process_goes_on_where_others_stopped_at_every_stage(before, tmp_path):
    place, count, device = before
    play(QUICK, 0, tmp_path, place, device)
    compare(QUICK, place, count, tmp_path, 1)


def test_what_is_written_in_the_background_has_the_bytes_of_what_is_written_at_once(before):
    place, _, device = before
    if device != "cpu":
        pytest.skip("copies of a GPU's state name another device")
    for number, case in enumerate(QUICK):
        at_once, background = (committed(place / str(number) / where) for where in ("", "background"))
        assert list(at_once) == list(background) == [3, 4]
        for step, path in at_once.items():
            right = files(path)
            assert files(background[step]) == right, (case, step)
            assert sum(name.name.endswith("_states.pt") for name in right) == (2, 6, 6, 8)[case["zero"]]
        assert files(at_once[3]) != files(at_once[4])


def files(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_one_two_and_four_processes_go_on_where_others_stopped(tmp_path):
    for world in (1, 2, 4):
        play(FULL, world, tmp_path / f"{world}")
    for old, new in ((1, 2), (2, 1), (4, 2), (2, 4), (2, 2)):
        play(FULL, new, tmp_path / f"{old}-{new}", tmp_path / f"{old}")
        compare(FULL, tmp_path / f"{old}", old, tmp_path / f"{old}-{new}", new)
