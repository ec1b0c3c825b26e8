"""Why a study's methods differ: its maskers pooled over rotations, and pairs beside scores."""

import json

import numpy as np
import pytest

from tests.support.handmade import make_shards
from tests.support.masker_runs import masker_run, real_ecgs
from tests.support.study import predict, scores, study_of
from trainer import figures
from trainer.data.shards import Shards
from trainer.evaluate import mask_lift
from trainer.study import hardness
from trainer.study.cells import Cell, base_of, run_directory
from trainer.study.config import keep_config
from trainer.study.why import study_of as read_study
from umbra.config import load
from umbra.errors import UserError


@pytest.fixture
def output(tmp_path, monkeypatch):
    """Two rotations and two seeds of a game, of a baseline and of a method that is not done."""
    real_ecgs(monkeypatch)
    made = tmp_path / "made"
    config = study_of(made, ["adversarial", "none", "cmsc"], seeds=[0, 1])
    made.mkdir()
    keep_config(config, made)
    label = np.arange(20) % 2
    for rotation in config.rotations:
        base = base_of(config, rotation)
        kinds = {"train": ["SR"] * 4, "val": ["SR"] * 6 + ["AFIB"] * 6}
        data = make_shards(base / "data", kinds, seed=rotation, first_patient=10_000 * rotation)
        for method in ("adversarial", "none"):
            for seed in config.seeds:
                run = run_directory(base, method, seed)
                masker_run(run, data, [f"seed={seed}", f"game.enabled={str(method == 'adversarial').lower()}"])
                row = {"step": 9, "heldout/accuracy": 0.5 + 0.1 * seed, "heldout/effective_rank": 7.0 + rotation}
                (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
                told = scores(np.random.default_rng(seed), label, 0.5)
                predict(config, method, rotation, told, label, label + 50 * rotation, seed=seed)
                (Cell(rotation, method, seed, "rhythm", 1.0).directory(made) / "result.json").write_text("{}")
    return made.rename(tmp_path / "moved")


def test_maskers_of_all_rotations_are_pooled_and_seeds_averaged(output, monkeypatch, capsys):
    real, waves = mask_lift.delineate, []
    monkeypatch.setattr(mask_lift, "delineate", lambda *given: waves.append(real(*given)) or waves[-1])
    figures.main(["why", str(output), "bootstrap=40"])
    said = capsys.readouterr().out
    assert "# not done in all of rotations [0, 1] and left out: cmsc" in said
    assert all(f"\n{group}: {count} ECGs; " in said for group, count in (("all", 24), ("SR", 12), ("AFIB", 12)))
    assert "| adversarial | masker, another ECG's | " in said
    assert "| none | " not in said[: said.index("## How hard")]
    assert "| 1 | adversarial | 4 | 0.55 | 7.5 | " in said
    assert "| 2 | none | 4 | 0.55 | 7.5 | " in said
    assert "No rank correlations" in said
    assert (output / "why.md").read_text() in said
    assert (output / "why.png").stat().st_size > 1000
    content = json.loads((output / "why.json").read_text())
    assert {row["method"] for row in content["lifts"]} == {"adversarial"}
    assert len(content["lifts"]) == 3 * 3 * 6
    assert content["pairs"][0]["scores"][0]["value"] > 0.5
    found = {(r["group"], r["masks"], r["wave"]): r for r in content["lifts"]}
    row = found["AFIB", "masker", "QRS"]
    assert (row["ecgs"], row["beats"]) == (12, sum(d.beats for d in [*waves[6:12], *waves[18:24]]))
    by_hand = []
    for seed in (0, 1):
        masks, qrs = [], []
        for rotation in (0, 1):
            run = output / f"rotation-{rotation}" / "runs" / f"adversarial-seed{seed}"
            shards = Shards(output / f"rotation-{rotation}" / "data", "val")
            cfg = load(mask_lift.PretrainConfig, run / "config.yaml")
            made = mask_lift.masks_of_run(run, cfg, shards, shards.read_mv(np.arange(12)))[6:, 0]
            masks += list(made)
            qrs += [m[d.waves[1]] for m, d in zip(made, waves[12 * rotation + 6 : 12 * rotation + 12])]
        by_hand.append(np.concatenate(qrs).mean() / np.mean(masks))
    assert by_hand[0] != by_hand[1]
    assert row["lift"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert row["low"] <= row["lift"] <= row["high"]


def test_some_rotations_of_a_study_that_still_runs(output):
    (Cell(1, "none", 1, "rhythm", 1.0).directory(output) / "result.json").unlink()
    assert read_study(output).methods == ["adversarial"]
    assert read_study(output, [0]).methods == ["adversarial", "none"]
    with pytest.raises(UserError, match=r"the study has no 3, only \[0, 1\]"):
        read_study(output, [3])
    for method in ("adversarial", "none"):
        (Cell(0, method, 0, "rhythm", 1.0).directory(output) / "result.json").unlink()
    with pytest.raises(UserError, match="no method is done in all of rotations"):
        read_study(output)
    with pytest.raises(UserError, match=r"has no config\.yaml: give the output folder of a study"):
        read_study(output / "rotation-0")
    with pytest.raises(UserError, match=r"study is not set: python -m trainer\.figures why STUDY"):
        figures.main(["why"])


def test_a_run_whose_checkpoint_is_gone_has_no_masks_but_its_scores(output, capsys):
    (output / "rotation-1" / "runs" / "adversarial-seed1" / "checkpoints" / "step-3" / "COMMITTED").unlink()
    figures.main(["why", str(output)])
    said = capsys.readouterr().out
    assert "# adversarial: runs without a checkpoint" in said
    assert "## Where masks fall" not in said
    assert "| 1 | adversarial | 4 | 0.55 |" in said


def rows_of(accuracy, values):
    of = {"task": "sex", "fraction": 0.1, "metric": "auroc"}
    return [
        {"method": f"m{n}", "runs": 1, "heldout/accuracy": a, "scores": [of | {"value": v}]}
        for n, (a, v) in enumerate(zip(accuracy, values))
    ]


def test_correlations_are_those_of_the_ranks_with_and_without_each_method():
    """By the formula without ties, 1 - 6 sum of squared differences of ranks / (n (n^2 - 1))."""

    def formula(x, y):
        d = np.argsort(np.argsort(x)) - np.argsort(np.argsort(y))
        return 1 - 6 * (d**2).sum() / (len(x) * (len(x) ** 2 - 1))

    x, y = np.array([0.2, 0.9, 0.4, 0.5, 0.3]), np.array([0.6, 0.8, 0.61, 0.9, 0.5])
    (row,) = hardness.correlations(rows_of(x, y))
    without = [formula(np.delete(x, k), np.delete(y, k)) for k in range(5)]
    assert (row["rho"], row["least"], row["most"]) == pytest.approx((formula(x, y), min(without), max(without)))
    assert (row["figure"], row["task"], row["methods"]) == ("heldout/accuracy", "sex", 5)
    assert f"| 5 | {row['rho']:+.2f} | {min(without):+.2f} to {max(without):+.2f} |" in hardness.markdown(rows_of(x, y))


def test_a_correlation_that_hangs_on_one_method_says_so_and_few_have_none():
    (row,) = hardness.correlations(rows_of([0.5, 1, 1, 1], [0.9, 0.8, 0.7, 0.6]))
    assert row["rho"] < -0.7
    assert row["most"] == 0, "without the first method there is no order"
    assert hardness.correlations(rows_of([0.1, 0.2, 0.3], [1, 2, 3]))[0]["rho"] is None
    assert hardness.correlations(rows_of([1, 1, 1, 1], [1, 2, 3, 4]))[0]["rho"] is None
