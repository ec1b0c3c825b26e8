import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import handmade
from tests.support.handmade import make_shards
from tests.support.masker_runs import masker_run, real_ecgs
from trainer import figures, pretrain
from trainer.data.shards import Shards
from trainer.evaluate import mask_lift
from trainer.game.players import make_players
from umbra.directory import save_weights
from umbra.errors import UserError
from umbra.leads import CANONICAL


@pytest.fixture(params=[[]])
def run(request, tmp_path, monkeypatch):
    """A run of an untrained masker, on synthetic ECGs of 6 s."""
    real_ecgs(monkeypatch)
    data = make_shards(tmp_path / "data", {"train": ["SR"] * 16, "val": ["SR"] * 12 + ["AFIB"] * 12})
    return masker_run(tmp_path / "run", data, request.param)


def test_masks_of_a_run_are_measured_drawn_and_written(run, capsys):
    figures.main(["masks", str(run), "ecgs=24", "draw=2", "bootstrap=50"])
    out = capsys.readouterr().out
    assert "24 of 24 ECGs" in out
    assert re.search(r"Upright P waves in (\d+) of \d+ beats, in 24 of 24 ECGs", out)
    assert all(f"{group}: 12 ECGs" in out for group in ("SR", "AFIB"))
    rows = json.loads((run / "figures" / "mask_lift.json").read_text())
    assert {row["masks"] for row in rows} == set(mask_lift.MASKS)
    assert len(rows) == 3 * 3 * 6
    block = {r["wave"]: r["lift"] for r in rows if r["masks"] == "random block" and r["group"] == "all"}
    assert block.pop("noise") is block.pop("quiet") is None, "these recordings have no noise"
    assert list(block.values()) == pytest.approx([1] * 4, abs=0.25)
    assert (run / "figures" / "mask_lift-1.png").is_file()
    assert not (run / "figures" / "mask_lift-2.png").exists()


def test_a_rhythm_without_p_has_an_empty_cell(run, capsys, monkeypatch):
    """ECGs of AFIB as if delineated without P; of SR one lacks it too."""
    real, seen = mask_lift.delineate, []

    def without_p(signal, rate):
        found = real(signal, rate)
        seen.append(found)
        if len(seen) == 1 or len(seen) > 12:
            found.waves[0] = False
            return replace(found, count=(0, *found.count[1:]))
        return found

    monkeypatch.setattr(mask_lift, "delineate", without_p)
    figures.main(["masks", str(run), "ecgs=24", "draw=0", "bootstrap=20"])
    out = capsys.readouterr().out
    rows = {
        (r["group"], r["masks"], r["wave"]): r for r in json.loads((run / "figures" / "mask_lift.json").read_text())
    }
    for group, ecgs in (("AFIB", 0), ("SR", 11), ("all", 11)):
        beats = sum(d.beats for n, d in enumerate(seen) if group in ("all", "SR" if n < 12 else "AFIB"))
        waves = sum(d.count[0] for d in seen[1:12]) if ecgs else 0
        row = rows[group, "random block", "P"]
        assert (row["found"], row["beats"], row["ecgs_with"]) == (waves, beats, ecgs)
        assert f"Upright P waves in {waves} of {beats} beats, in {ecgs} of {12 * (1 + (group == 'all'))} ECGs" in out
        assert (row["lift"] is None) == (row["low"] is None) == (group == "AFIB")
        assert rows[group, "random block", "QRS"]["lift"] is not None
    table = out[out.index("AFIB: 12 ECGs") :]
    assert re.search(r"\| random block \|  \| \d\.\d\d", table)


@pytest.mark.parametrize(
    ("run", "kinds"),
    [
        (["game.family=lead"], set(mask_lift.MASKS)),
        (["game.masks=2"], {*(f"mask {n}{of}" for n in (1, 2) for of in ("", ", another ECG's")), "random block"}),
        (["game.family=spectral", "game.masks=2", "game.use=all"], None),
    ],
    indirect=["run"],
)
def test_every_family_is_measured_mask_by_mask(run, kinds):
    figures.main(["masks", str(run), "ecgs=8", "draw=1", "bootstrap=20", "by=''"])
    rows = json.loads((run / "figures" / "mask_lift.json").read_text())
    assert kinds is None or {row["masks"] for row in rows} == kinds
    assert len({row["lift"] for row in rows if row["wave"] == "QRS"}) == len({row["masks"] for row in rows})


def test_masks_are_those_of_the_checkpoint(run):
    cfg = pretrain.load(pretrain.PretrainConfig, run / "config.yaml")
    shards = Shards(cfg.data.path, "val")
    ecgs = shards.read_mv(np.arange(4))
    before = mask_lift.masks_of_run(run, cfg, shards, ecgs)
    assert before.shape == (4, 1, 600)
    assert before.mean() == pytest.approx(0.5, abs=0.1)
    path = run / "checkpoints" / "step-3" / "weights.safetensors"
    _, masker = make_players(cfg, shards)
    torch.manual_seed(7)
    save_weights(path, {f"masker.{k}": torch.randn_like(v) for k, v in masker.state_dict().items()})
    assert not np.array_equal(mask_lift.masks_of_run(run, cfg, shards, ecgs), before)


@pytest.mark.parametrize("run", [["pair=crops", "pair.seconds=2.5"]], indirect=True)
def test_a_masker_of_shorter_views_masks_one_after_the_other(run):
    cfg = pretrain.load(pretrain.PretrainConfig, run / "config.yaml")
    shards = Shards(cfg.data.path, "val")
    ecgs = shards.read_mv(np.arange(4))
    masks = mask_lift.masks_of_run(run, cfg, shards, ecgs)
    assert masks.shape == (4, 1, 600)
    for start, stop in ((0, 250), (250, 350), (350, 600)):
        alone = np.concatenate([ecgs[..., start : start + 250], ecgs[..., :350] * 0], -1)
        piece = mask_lift.masks_of_run(run, cfg, shards, alone)
        assert np.array_equal(masks[..., start:stop], piece[..., : stop - start])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to draw: python -m trainer.figures masks RUN"),
        (["masks"], "run is not set"),
        (["masks", "RUN", "lead=V9"], "lead=V9 is not among the leads"),
        (["masks", "RUN", "by=rythm"], "by=rythm: .* does not exist"),
        (["masks", "RUN", "data=/no/where"], "/no/where"),
        (["masks", "RUN", "ecgs=0"], "ecgs=0 must be >= 2"),
        (["masks", "RUN", "bootstrap=0"], "bootstrap=0 must be >= 2"),
        (["curves", "RUN", "RUN"], "say what to draw"),
    ],
)
def test_mistakes_are_one_clear_line(run, words, said):
    with pytest.raises(UserError, match=said):
        figures.main([word.replace("RUN", str(run)) for word in words])


def test_a_run_without_a_masker_has_no_masks(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("enabled: true", "enabled: false"))
    with pytest.raises(UserError, match="without a masker"):
        figures.main(["masks", str(run)])


def test_data_of_another_shape_than_the_runs_are_refused(run):
    encoder = {"name": "resnet18", "args": {}, "leads": list(CANONICAL), "samples": 1200, "rate": 200.0}
    record = {"encoder": encoder, "scaling": handmade.SCALING, "fingerprint": "", "key_id": ""}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="has other leads, rate or length"):
        figures.main(["masks", str(run)])
