"""What two processes write in the background is byte for byte what they write at once, at every ZeRO stage."""

import json

import pytest

from tests.support.launch import launch
from trainer.run.checkpoint import committed

RICH = {"adamw": True, "learn": True, "norm": "batch"}


def files(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("stages", "steps"), [((0, 2), 2), pytest.param((1, 3), 3, marks=pytest.mark.full)], ids=["0 and 2", "1 and 3"]
)
def test_checkpoints_of_the_background_have_the_same_bytes(stages, steps, tmp_path):
    cases = [{**RICH, "zero": zero, "accumulation": 1 + zero // 2, "steps": steps} for zero in stages]
    words = ["tests/multiprocess/saving_worker.py", json.dumps({"cases": cases, "into": str(tmp_path)})]
    code, output = launch(words, 2, 200)
    assert code == 0, output[-4000:]
    for number, zero in enumerate(stages):
        at_once, background = (committed(tmp_path / f"{number}-{how}") for how in "ab")
        assert list(at_once) == list(background) == list(range(1, steps + 1))
        for step, path in at_once.items():
            right = files(path)
            assert files(background[step]) == right, (zero, step)
            assert sum(name.name.endswith("_states.pt") for name in right) == (2, 6, 6, 8)[zero]
        assert len({(path / "weights.safetensors").read_bytes() for path in at_once.values()}) == steps
