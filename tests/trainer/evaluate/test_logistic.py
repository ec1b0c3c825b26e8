import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from trainer.evaluate.logistic import logistic
from trainer.evaluate.ridge import decompose

STRENGTHS = [1e-3, 1e-1, 10.0]


@pytest.mark.parametrize("shape", [(200, 30), (40, 60)], ids=str)
@pytest.mark.parametrize("one", [True, False])
def test_probabilities_are_those_of_scikit_learn_for_every_strength(shape, one):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 1, shape) @ rng.normal(size=(shape[1], shape[1])) / shape[1] ** 0.5
    told = x[:, :3] + rng.normal(size=(shape[0], 3))
    y = (np.eye(3)[told.argmax(1)] if one else told > 1).astype(np.float64)
    for c, (weights, intercept) in zip(STRENGTHS, logistic(decompose(x), y, STRENGTHS, one)):
        output = x @ weights + intercept
        if one:
            model = LogisticRegression(C=c, tol=1e-8, max_iter=20000).fit(x, y.argmax(1))
            np.testing.assert_allclose(softmax(output, axis=1), model.predict_proba(x), atol=2e-3)
        else:
            models = [LogisticRegression(C=c, tol=1e-8, max_iter=20000).fit(x, column) for column in y.T]
            expected = np.column_stack([model.predict_proba(x)[:, 1] for model in models])
            np.testing.assert_allclose(expit(output), expected, atol=2e-3)
