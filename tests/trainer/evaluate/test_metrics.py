import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)

from trainer.evaluate.groups import band, scored_groups
from trainer.evaluate.metrics import Predicted, figures, thresholds_of

RNG = np.random.default_rng(0)
N = 240
PATIENT = np.arange(N) // 2
LABEL = RNG.integers(0, 3, N)
CLASSES = Predicted(
    np.eye(3, dtype=np.float32)[LABEL], softmax(RNG.normal(size=(N, 3)) + 2 * np.eye(3)[LABEL], axis=1), PATIENT
)
MANY = (RNG.random((N, 2)) < [0.3, 0.1]).astype(np.float32)
LABELS = Predicted(MANY, np.clip(0.5 * MANY + RNG.random((N, 2)) * 0.6, 0, 1), PATIENT)


def test_figures_of_classes_are_those_of_scikit_learn():
    means, per_class = figures("classes", ["a", "b", "c"], CLASSES, None, 200, 0)
    told = CLASSES.prediction.argmax(1)
    assert means["accuracy"]["value"] == pytest.approx(accuracy_score(LABEL, told))
    assert means["balanced_accuracy"]["value"] == pytest.approx(balanced_accuracy_score(LABEL, told))
    assert means["f1"]["value"] == pytest.approx(f1_score(LABEL, told, average="macro"))
    assert means["auroc"]["value"] == pytest.approx(roc_auc_score(CLASSES.target, CLASSES.prediction))
    assert means["auprc"]["value"] == pytest.approx(average_precision_score(CLASSES.target, CLASSES.prediction))
    for figure in ("auroc", "auprc"):
        assert means[figure]["low"] < means[figure]["value"] < means[figure]["high"]
    for k, name in enumerate("abc"):
        row, p = per_class[name], CLASSES.prediction[:, k]
        assert row["auroc"] == pytest.approx(roc_auc_score(k == LABEL, p))
        assert row["low"] < row["auroc"] < row["high"]
        assert row["auprc_low"] < row["auprc"] < row["auprc_high"]
        assert row["brier"] == pytest.approx(brier_score_loss(k == LABEL, p))
        assert row["sensitivity"] == pytest.approx(recall_score(k == LABEL, told == k))
        assert row["specificity"] == pytest.approx(recall_score(k != LABEL, told != k))


def test_figures_of_labels_take_the_thresholds_of_val():
    thresholds = thresholds_of("labels", MANY[:80], LABELS.prediction[:80])
    test = LABELS.take(np.arange(80, N))
    means, per_class = figures("labels", ["x", "y"], test, thresholds, 0, 0)
    for k, name in enumerate("xy"):
        true, told = test.target[:, k] > 0, test.prediction[:, k] >= thresholds[k]
        assert per_class[name]["threshold"] == thresholds[k]
        assert per_class[name]["f1"] == pytest.approx(f1_score(true, told))
        assert per_class[name]["accuracy"] == pytest.approx(accuracy_score(true, told))
        assert per_class[name]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, told))
    assert means["f1"]["value"] == pytest.approx(np.mean([per_class[n]["f1"] for n in "xy"]))
    assert np.isnan(means["auroc"]["low"]), "no resamples, no interval"


def test_a_class_without_test_records_is_left_out_of_all_means():
    target = np.column_stack([CLASSES.target, np.zeros(N)])
    prediction = np.column_stack([CLASSES.prediction, np.full(N, 1e-3)])
    with_it, _ = figures("classes", list("abcd"), Predicted(target, prediction, PATIENT), None, 0, 0)
    without, _ = figures("classes", list("abc"), CLASSES, None, 0, 0)
    for figure, found in without.items():
        assert with_it[figure]["value"] == pytest.approx(found["value"])


def test_figures_of_numbers_have_intervals_around_them():
    true = RNG.normal(50, 12, (N, 2))
    data = Predicted(true, true + RNG.normal(0, 6, (N, 2)), PATIENT)
    means, per_class = figures("number", ["age", "weight"], data, None, 300, 0)
    for figure in ("r2", "mae", "rmse"):
        assert means[figure]["low"] < means[figure]["value"] < means[figure]["high"]
    assert means["rmse"]["value"] == pytest.approx(6, rel=0.1)
    assert set(per_class["age"]) == {"r2", "low", "high", "mae", "mae_low", "mae_high", "rmse", "rmse_low", "rmse_high"}


def test_a_rare_label_does_not_narrow_the_interval_of_the_others():
    """One record of a label: most resamples lack it, and those that have it must not stand for all."""
    target = np.column_stack([MANY, np.arange(N) == 7])
    data = Predicted(target, np.column_stack([LABELS.prediction, RNG.random(N)]), PATIENT)
    means, _ = figures("labels", list("xyz"), data, np.full(3, 0.5), 400, 0)
    assert means["auroc"]["resamples"] == 400
    assert means["auroc"]["low"] < means["auroc"]["value"] < means["auroc"]["high"]
    without, _ = figures("labels", list("xy"), LABELS, np.full(2, 0.5), 400, 0)
    wide = [found["auroc"]["high"] - found["auroc"]["low"] for found in (means, without)]
    assert wide[0] > wide[1]


def test_subgroups_with_too_few_of_a_class_are_not_scored():
    sex = np.array(["female"] * 100 + ["male"] * 120 + ["unknown"] * 20, dtype=object)
    found = scored_groups("classes", ["a", "b", "c"], CLASSES, {"sex": sex}, 10, 0, 0)["sex"]
    part = np.flatnonzero(sex == "male")
    assert found["male"]["auroc"] == pytest.approx(roc_auc_score(CLASSES.target[part], CLASSES.prediction[part]))
    assert (found["male"]["records"], found["male"]["patients"]) == (120, 60)
    assert found["male"]["classes"] == ["a", "b", "c"]
    assert found["unknown"] == {
        "records": 20,
        "patients": 10,
        "not_scored": "no class has 10 records with and without it",
    }
    number = Predicted(LABEL[:, None].astype(float), LABEL[:, None] + 0.1, PATIENT)
    assert "not_scored" in scored_groups("number", ["age"], number, {"sex": sex}, 21, 0, 0)["sex"]["unknown"]


def test_age_bands_meet_without_a_gap():
    assert [band(y) for y in (0, 17.9, 18, 39, 40, 59, 60, 79, 80, 90)] == [
        *("0-17", "0-17", "18-39", "18-39", "40-59", "40-59", "60-79", "60-79", "80+", "80+")
    ]
