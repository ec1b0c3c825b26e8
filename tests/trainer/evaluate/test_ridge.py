import numpy as np
import pytest
from sklearn.linear_model import Ridge

from trainer.evaluate.ridge import decompose, probabilities, ridge

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(200, 30), (20, 50), (1, 5)], ids=str)
def test_ridge_is_that_of_scikit_learn_for_every_penalty(shape):
    x, y = RNG.normal(1, 2, shape), RNG.normal(size=(shape[0], 3))
    penalties = [1e-3, 1.0, 30.0]
    for penalty, (weights, intercept) in zip(penalties, ridge(decompose(x), y, penalties)):
        model = Ridge(alpha=penalty * len(x), solver="svd").fit(x, y)
        np.testing.assert_allclose(weights, model.coef_.T, atol=1e-9)
        np.testing.assert_allclose(intercept, model.intercept_, atol=1e-9)


def test_scores_become_probabilities_in_the_same_order():
    positive = RNG.random(400) < 0.2
    score = np.column_stack([positive * 0.4 + RNG.normal(0, 0.3, 400), RNG.normal(size=400)])
    target = np.column_stack([positive, positive])
    (p,) = probabilities([score], [(score, target)], one=False)
    assert np.array_equal(p[:, 0].argsort(), score[:, 0].argsort())
    assert abs(p[:, 0].mean() - positive.mean()) < 0.02, "a sigmoid fitted with an intercept is calibrated at large"
    (p,) = probabilities([score], [(score, np.zeros_like(target)), (score, target)], one=True)
    np.testing.assert_allclose(p.sum(1), 1)
    (p,) = probabilities([score], [(score, np.zeros_like(target))], one=False)
    assert np.array_equal(p[:, 0].argsort(), score[:, 0].argsort()), "also if no record is positive"
