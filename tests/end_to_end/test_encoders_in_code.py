"""The code of docs/encoders-in-code.md, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.handmade import ecg, make_run
from tests.support.hub_server import point_client_at, serving
from trainer.export import export
from umbra import load_encoder

PAGE = Path(__file__).parents[2] / "docs" / "encoders-in-code.md"


def block(section):
    """The Python code of a section of the page."""
    part = PAGE.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", part, re.DOTALL)[1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an encoder and the arrays of the page: two classes, two ECGs a patient."""
    export(make_run(tmp_path / "RUN"))
    rng = np.random.default_rng(0)
    label = np.repeat(rng.integers(0, 2, 32), 2)
    np.save(tmp_path / "ecgs.npy", np.stack([ecg(("SR", "AFIB")[k], rng) for k in label]) / 1000)
    np.save(tmp_path / "labels.npy", label)
    np.save(tmp_path / "patients.npy", np.arange(64) // 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_probe_of_scikit_learn(place, capsys):
    exec(block("scikit-learn"), {})
    assert float(capsys.readouterr().out) > 0.9


def test_the_loop_of_fine_tuning_learns_in_thirty_lines_and_saves_what_it_has_learned(place, capsys):
    code, names = block("Fine-tuning with PyTorch"), {}
    assert len([line for line in code.splitlines() if line and not re.match("import|from", line)]) <= 30
    torch.manual_seed(0)
    exec(code, names)
    printed = [
        [float(number) for number in re.findall(r"\d\.\d+", line)] for line in capsys.readouterr().out.splitlines()
    ]
    assert len(printed) == 10
    assert printed[-1][0] < printed[0][0]
    assert printed[-1][1] > 0.9
    assert set(names["y"][names["test"]].tolist()) == {0, 1}
    assert not set(names["patient"][names["train"]]) & set(names["patient"][names["test"]])
    tuned, before = load_encoder("FINETUNED"), load_encoder("RUN/encoder")
    x = names["x"][:3]
    with torch.no_grad():
        assert torch.equal(tuned(x), names["encoder"].eval()(x))
        assert not torch.allclose(tuned(x), before(x), atol=1e-3)


def test_the_way_to_the_hub_and_back(place, monkeypatch):
    names = {}
    with serving() as hub:
        point_client_at(hub, monkeypatch, place / "cache")
        exec(block("To the hub and back"), names)
    for name, value in load_encoder("RUN/encoder").state_dict().items():
        assert torch.equal(names["encoder"].state_dict()[name], value)
