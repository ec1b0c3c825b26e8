import numpy as np
from sklearn.metrics import roc_auc_score

from trainer.evaluate.scores import bootstrap_auroc, interval, macro_auroc, one_hot, weighted_auroc


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
