import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import norm
from sklearn.metrics import r2_score, roc_auc_score

from tests.support.study import predict, scores, study_of
from trainer.study.cells import Cell, base_of, run_directory
from trainer.study.comparing import compare, holm, seed_error
from trainer.study.config import Primary
from trainer.study.pooling import pool
from trainer.study.pretext import pretext
from trainer.study.report import markdown
from umbra.errors import UserError


def test_ranks_pool_probes_whose_probabilities_lie_on_scales_of_their_own(tmp_path):
    """Each rotation ranks perfectly, the second on a far lower scale: pooled ranks keep that, probabilities do not."""
    config = study_of(tmp_path, ["adversarial"])
    label = np.array([0, 1, 0, 1])
    high, low = np.array([0.6, 0.9, 0.7, 0.8]), np.array([0.1, 0.4, 0.2, 0.3])
    for rotation, p in enumerate((high, low)):
        predict(config, "adversarial", rotation, np.stack([1 - p, p], 1), label, np.arange(4) + 10 * rotation)
    (row,), _ = compare(config)
    assert row["value"] == 1.0
    assert row["mean_over_rotations"] == 1.0
    assert row["pooled_predictions"] == roc_auc_score(np.tile(label, 2), np.concatenate([high, low])) == 0.75
    pooled = pool(config, "adversarial", 0, "rhythm", 1.0)
    assert pooled.scores()[:4, 1].tolist() == [0.2, 0.8, 0.4, 0.6]
    assert pooled.rotation.tolist() == [0] * 4 + [1] * 4


def test_a_class_that_one_rotation_dropped_is_not_scored_but_its_records_count_as_others(tmp_path):
    config = study_of(tmp_path, ["adversarial"])
    rng = np.random.default_rng(0)
    label = np.array([0, 1, 2] * 4)
    predict(config, "adversarial", 0, rng.random((12, 3)), label, np.arange(12), names=("A", "B", "C"))
    predict(config, "adversarial", 1, rng.random((8, 2)), np.array([0, 1] * 4), np.arange(8) + 20)
    (row,), _ = compare(config)
    assert row["test_counts"] == {"A": 8, "B": 8}
    assert row["records"] == 20


def test_paired_difference_uses_the_same_patients_and_states_what_it_can_resolve(tmp_path):
    config = study_of(tmp_path, ["adversarial", "none", "random"], bootstrap=800)
    rng = np.random.default_rng(3)
    for rotation in (0, 1):
        label, patient = np.arange(150) % 2, np.arange(150) // 2 + 1000 * rotation
        strong = scores(rng, label, 0.8)
        noise = 0.02 * rng.normal(size=150)
        close = np.clip(strong + np.stack([noise, -noise], 1), 0, 1)
        for method, score in [("adversarial", strong), ("none", close), ("random", scores(rng, label, 0.0))]:
            predict(config, method, rotation, score, label, patient)
    rows, (near, far) = compare(config)
    value = {row["method"]: row["value"] for row in rows}
    assert near["difference"] == pytest.approx(value["adversarial"] - value["none"])
    assert near["low"] <= near["difference"] <= near["high"]
    assert far["low"] > 0, "0.8 of a deviation against chance is found in 300 records"
    assert near["resolvable"] == pytest.approx(2.8 * near["standard_error"])
    assert near["standard_error"] < far["standard_error"] / 3, "nearly equal scores must pair"


def test_seeds_are_averaged(tmp_path):
    config = study_of(tmp_path, ["adversarial"], seeds=[0, 1], rotations=[0])
    label = np.array([0, 1] * 20)
    good, bad = np.stack([1 - label, label], 1) * 0.9, np.full((40, 2), 0.5)
    for seed, score in enumerate((good, bad)):
        predict(config, "adversarial", 0, score, label, np.arange(40), seed=seed)
    (row,), _ = compare(config)
    assert row["by_seed"] == [1.0, 0.5]
    assert row["value"] == 0.75


def test_a_seeds_value_is_the_mean_over_its_draws_of_a_few_labels(tmp_path):
    """And so is each resample: the interval is that of the mean, and holds the spread of the seeds' means."""
    config = study_of(tmp_path, ["adversarial"], seeds=[0, 1], rotations=[0], fractions=[1.0, 0.1], draws=2)
    label, rng = np.arange(80) % 2, np.random.default_rng(3)
    good, bad = np.stack([1 - label, label], 1) * 0.9, np.full((80, 2), 0.5)
    for seed in (0, 1):
        predict(config, "adversarial", 0, scores(rng, label, 1.0), label, np.arange(80), seed=seed)
        for draw, score in enumerate((good, bad if seed else good)):
            predict(config, "adversarial", 0, score, label, np.arange(80), seed=seed, fraction=0.1, draw=draw)
    (whole, tenth), _ = compare(config)
    assert len(whole["by_seed"]) == 2
    assert tenth["by_seed"] == [1.0, 0.75]
    assert tenth["value"] == 0.875
    assert tenth["standard_error"] == pytest.approx(0.125, rel=0.1), "no patient spreads it, the seeds do"


def test_methods_tested_on_different_records_are_not_compared(tmp_path):
    config = study_of(tmp_path, rotations=[0])
    predict(config, "adversarial", 0, np.random.rand(10, 2), np.array([0, 1] * 5), np.arange(10))
    predict(config, "none", 0, np.random.rand(12, 2), np.array([0, 1] * 6), np.arange(12))
    with pytest.raises(UserError, match="different records"):
        compare(config)


def test_labels_are_pooled_as_ranks_and_numbers_as_they_are(tmp_path):
    """Against scikit-learn: of labels the mean AUROC of ranks within each rotation, of ages R2 over all rotations."""
    config = study_of(tmp_path, ["adversarial"], tasks=["ptbxl-superclass", "age"])
    rng, parts = np.random.default_rng(5), {"ptbxl-superclass": [], "age": []}
    for rotation in (0, 1):
        patient = np.arange(60) + 100 * rotation
        labels = rng.integers(0, 2, (60, 2))
        told = np.clip(0.3 * labels + rng.random((60, 2)), 0, 1) * (1 - 0.5 * rotation)
        years = rng.uniform(20, 90, 60)
        guessed = years + rng.normal(0, 10, 60)
        for task, names, y, p in (
            ("ptbxl-superclass", ["MI", "CD"], labels, told),
            ("age", ["age"], years[:, None], guessed[:, None]),
        ):
            parts[task].append((y, p))
            columns = {"row": np.arange(60), "patient": patient}
            columns |= {f"y_{n}": y[:, k] for k, n in enumerate(names)} | {
                f"p_{n}": p[:, k] for k, n in enumerate(names)
            }
            place = Cell(rotation, "adversarial", 0, task, 1.0).directory(tmp_path)
            place.mkdir(parents=True)
            pq.write_table(pa.table(columns), place / "predictions.parquet")
    labels, ages = compare(config)[0]
    true = np.concatenate([y for y, _ in parts["ptbxl-superclass"]])
    ranks = np.concatenate([p.argsort(0).argsort(0) for _, p in parts["ptbxl-superclass"]])
    assert labels["value"] == pytest.approx(roc_auc_score(true, ranks, average="macro"))
    assert labels["test_counts"] == {"MI": true[:, 0].sum(), "CD": true[:, 1].sum()}
    years, guessed = (np.concatenate([part[i] for part in parts["age"]]) for i in (0, 1))
    assert (labels["metric"], ages["metric"]) == ("auroc", "r2")
    assert ages["value"] == pytest.approx(r2_score(years, guessed))
    assert ages["low"] < ages["value"] < ages["high"]
    assert ages["test_counts"] == {"age": 120}


def test_intervals_hold_the_seeds_as_well(tmp_path):
    """The standard error with seeds is the root of the squares of that of the patients and that of the seeds."""
    config = study_of(tmp_path, rotations=[0], seeds=[0, 1, 2], bootstrap=4000)
    rng, label, patient = np.random.default_rng(7), np.arange(200) % 2, np.arange(200)
    for seed, strength in enumerate((0.2, 0.6, 1.0)):
        predict(config, "adversarial", 0, scores(rng, label, strength), label, patient, seed=seed)
        predict(config, "none", 0, scores(rng, label, 0.4), label, patient, seed=seed)
    rows, (apart,) = compare(config)
    noise = seed_error([np.array(rows[0]["by_seed"]) - np.array(rows[1]["by_seed"])])
    assert noise == pytest.approx(np.std(np.subtract(rows[0]["by_seed"], rows[1]["by_seed"]), ddof=1) / np.sqrt(3))
    by_hand = [
        np.subtract(*(pool(config, m, seed, "rhythm", 1.0).resampled(4000) for m in ("adversarial", "none")))
        for seed in config.seeds
    ]
    patients = np.mean(by_hand, 0).std(ddof=1)
    assert apart["standard_error"] == pytest.approx(np.hypot(patients, noise), rel=0.05)
    assert apart["p"] == pytest.approx(2 * norm.sf(abs(apart["difference"]) / apart["standard_error"]))
    assert "the variation between seeds, whose variance is pooled" in markdown(config, rows, [apart], [], [], [])


def test_the_variance_of_seeds_is_pooled_over_methods():
    assert seed_error([np.array([0.8]), np.array([0.7])]) == 0.0
    assert seed_error([np.array([0.0, 2.0]), np.array([5.0, 5.0])]) == pytest.approx(np.sqrt((2 + 0) / 2 / 2))


def test_p_values_of_primary_comparisons_are_adjusted_by_holm():
    """The example of a textbook: .01, .04, .03, .005 become .03, .06, .06, .02."""
    tests = [{"p": p} for p in (0.01, 0.04, 0.03, 0.005, None)]
    holm(tests, 5)
    assert [t.get("p_holm") for t in tests] == pytest.approx([0.03, 0.06, 0.06, 0.02, None])


@pytest.mark.parametrize("left_out", range(1, 6))
def test_a_part_of_the_primary_comparisons_is_adjusted_for_all_of_them(left_out):
    rng = np.random.default_rng(left_out)
    for _ in range(50):
        whole = [{"p": p} for p in rng.random(6) ** 3]
        part = [dict(t) for t in whole[left_out:]]
        holm(whole, 6)
        holm(part, 6)
        assert all(one["p_holm"] >= both["p_holm"] for one, both in zip(part, whole[left_out:]))


def test_comparisons_that_were_named_beforehand_come_first(tmp_path):
    primary = Primary(tasks=["rhythm"], fractions=[1.0], others=["none"])
    config = study_of(tmp_path, ["adversarial", "none", "random"], rotations=[0], primary=primary)
    rng, label = np.random.default_rng(2), np.arange(40) % 2
    for method in config.methods:
        predict(config, method, 0, scores(rng, label, 0.5), label, np.arange(40))
    rows, (named, other) = compare(config)
    assert named["primary"]
    assert named["p_holm"] == named["p"], "one test alone"
    assert not other["primary"]
    assert "p_holm" not in other
    text = markdown(config, rows, [named, other], [], [], [])
    assert "adjusted for all 1 primary comparisons, of which 1 are here." in text
    assert text.index("Primary comparisons") < text.index("## Scores") < text.index("Exploratory comparisons")
    assert text.index("p (Holm) |") < text.index("## Scores")


def test_predictions_of_another_kind_are_one_line(tmp_path):
    config = study_of(tmp_path, ["adversarial"], rotations=[0], tasks=["age"])
    predict(config, "adversarial", 0, np.random.rand(4, 2), np.array([0, 1] * 2), np.arange(4), task="age")
    with pytest.raises(UserError, match="lacks 'y_A': the kind of the task was changed"):
        compare(config)


def test_what_the_runs_logged_of_the_pretext_task_stands_beside_the_scores(tmp_path):
    """The last known value of each run, the mean of the runs; a run that is gone has none."""
    config = study_of(tmp_path, ["adversarial", "none", "random"])
    for rotation, (first, last) in enumerate(((0.1, 0.4), (0.2, 0.8))):
        place = run_directory(base_of(config, rotation), "adversarial", 0)
        place.mkdir(parents=True)
        rows = [
            {"step": 1, "heldout/accuracy": first, "probe/sex": 0.5},
            {"step": 2, "heldout/accuracy": last, "loss": 1},
        ]
        rows.append({"step": 3, "heldout/accuracy": None})
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (row,) = pretext(config)
    assert row == {"method": "adversarial", "runs": 2, "heldout/accuracy": pytest.approx(0.6), "probe/sex": 0.5}
    text = markdown(config, [], [], [], [row], [])
    assert "| method | runs | pairs found | probe/sex |" in text
    assert "| adversarial | 2 | 0.6 | 0.5 |" in text
