import numpy as np
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_curve,
    r2_score,
    roc_auc_score,
)

from trainer.evaluate.scores import (
    best_threshold,
    bootstrap_auroc,
    calibration_error,
    interval,
    macro_auroc,
    one_hot,
    r2,
    weighted_areas,
    weighted_auroc,
    weighted_errors,
)


def test_weighted_auroc_is_that_of_the_repeated_records_ties_included():
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.3
    score = np.round(rng.normal(size=60) + positive, 1)
    weight = rng.integers(0, 4, (20, 60))
    expected = [roc_auc_score(np.repeat(positive, w), np.repeat(score, w)) for w in weight]
    np.testing.assert_allclose(weighted_auroc(positive, score, weight), expected, rtol=1e-12)


def test_weighted_auroc_without_positives_is_nan():
    value = weighted_auroc(np.array([True, False]), np.array([0.1, 0.2]), np.array([[0, 2], [1, 1]]))
    assert np.isnan(value[0])
    assert value[1] == 0.0


def test_bootstrap_draws_patients_not_records():
    """With one record a patient the spread is that of the records; with copies of each it must not shrink."""
    rng = np.random.default_rng(1)
    label, score = rng.integers(0, 2, 80), rng.random((80, 2))
    score[:, 1] += 0.3 * label
    label = one_hot(label, 2)
    once = bootstrap_auroc(label, score, np.arange(80), 400).mean(1)
    copied = bootstrap_auroc(np.tile(label, (3, 1)), np.tile(score, (3, 1)), np.tile(np.arange(80), 3), 400).mean(1)
    np.testing.assert_allclose(once, copied, rtol=1e-12)
    as_records = bootstrap_auroc(np.tile(label, (3, 1)), np.tile(score, (3, 1)), np.arange(240), 400).mean(1)
    assert as_records.std() < 0.75 * once.std()


def test_macro_auroc_is_the_mean_over_the_classes_that_can_be_scored():
    rng = np.random.default_rng(2)
    label, score = rng.integers(0, 2, 50), rng.random((50, 3))
    expected = np.mean([roc_auc_score(label == k, score[:, k]) for k in (0, 1)])
    assert abs(macro_auroc(one_hot(label, 3), score) - expected) < 1e-12


def test_an_interval_is_the_middle_95_percent_of_what_is_finite():
    assert interval(np.concatenate([np.arange(201) / 200, [np.nan]])) == (0.025, 0.975)
    assert np.isnan(interval(np.empty(0))).all()


def test_auprc_is_the_average_precision_of_the_repeated_records_ties_included():
    rng = np.random.default_rng(4)
    positive = rng.random(60) < 0.3
    score = np.round(rng.normal(size=60) + positive, 1)
    weight = rng.integers(0, 4, (20, 60))
    expected = [average_precision_score(np.repeat(positive, w), np.repeat(score, w)) for w in weight]
    np.testing.assert_allclose(weighted_areas(positive, score, weight)[1], expected, rtol=1e-12)
    untied = rng.normal(size=60)
    expected = [average_precision_score(np.repeat(positive, w), np.repeat(untied, w)) for w in weight]
    np.testing.assert_allclose(weighted_areas(positive, untied, weight)[1], expected, rtol=1e-12)


def test_areas_of_many_resamples_are_those_of_each_alone():
    rng = np.random.default_rng(5)
    n = 3000
    positive, score, weight = rng.random(n) < 0.2, rng.random(n), rng.integers(0, 3, (23, n))
    together = weighted_areas(positive, score, weight)
    alone = np.concatenate([weighted_areas(positive, score, w[None]) for w in weight], axis=1)
    np.testing.assert_allclose(together, alone, rtol=1e-13)


def test_errors_of_numbers_are_those_of_the_weighted_records():
    rng = np.random.default_rng(6)
    true = rng.normal(50, 10, 80)
    told, weight = true + rng.normal(0, 5, 80), rng.integers(0, 4, (10, 80))
    expected = [
        [r2_score(true, told, sample_weight=w) for w in weight],
        [mean_absolute_error(true, told, sample_weight=w) for w in weight],
        [mean_squared_error(true, told, sample_weight=w) ** 0.5 for w in weight],
    ]
    np.testing.assert_allclose(weighted_errors(true, told, weight), expected, rtol=1e-9)
    np.testing.assert_allclose(r2(true[:, None], told[:, None]), [r2_score(true, told)])
    assert np.isnan(weighted_errors(np.full(5, 3.0), np.arange(5.0), np.ones((1, 5)))[0, 0])


def test_the_threshold_has_the_largest_f1_of_all():
    rng = np.random.default_rng(7)
    for digits in (1, 6):
        positive = rng.random(100) < 0.3
        p = np.round(rng.random(100) * 0.7 + 0.3 * positive, digits)
        threshold = best_threshold(positive, p)
        precision, recall, _ = precision_recall_curve(positive, p)
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
        assert abs(f1_score(positive, p >= threshold) - best) < 1e-12
    assert best_threshold(np.zeros(4, bool), np.arange(4) / 4) == 0.5
    assert best_threshold(np.ones(4, bool), np.arange(4) / 4) <= 0


def test_calibration_error_is_the_mean_gap_of_the_bins():
    p = np.array([0.05, 0.05, 0.91, 0.99, 1.0])
    positive = np.array([False, True, True, True, True])
    assert abs(calibration_error(positive, p) - (2 * 0.45 + 3 * abs((0.91 + 0.99 + 1.0) / 3 - 1)) / 5) < 1e-12
