import numpy as np
import torch
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from trainer.evaluate.kinds import kind_of

RNG = np.random.default_rng(0)
OUTPUT = RNG.normal(size=(60, 3)).astype(np.float32)


def test_classes_are_trained_on_what_their_predictions_cost():
    target = np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 60)]
    kind = kind_of("classes", target)
    prediction = kind.predict(OUTPUT)
    np.testing.assert_allclose(prediction.sum(1), 1)
    loss = kind.loss(torch.from_numpy(OUTPUT), torch.from_numpy(target))
    assert abs(float(loss) - log_loss(target, prediction)) < 1e-5
    assert abs(kind.value(target, prediction) - roc_auc_score(target, prediction, average="macro")) < 1e-12


def test_labels_are_judged_one_by_one():
    target = (RNG.random((60, 3)) < 0.4).astype(np.float32)
    kind = kind_of("labels", target)
    prediction = kind.predict(OUTPUT)
    expected = np.mean([log_loss(target[:, k], prediction[:, k]) for k in range(3)])
    assert abs(float(kind.loss(torch.from_numpy(OUTPUT), torch.from_numpy(target))) - expected) < 1e-5
    assert abs(kind.value(target, prediction) - roc_auc_score(target, prediction, average="macro")) < 1e-12
    target[:, 1] = 1
    scored = roc_auc_score(target[:, [0, 2]], prediction[:, [0, 2]], average="macro")
    assert abs(kind.value(target, prediction) - scored) < 1e-12, "a label that all have is not scored"


def test_numbers_are_standardised_by_the_train_targets_and_predicted_in_their_units():
    train = RNG.normal(50, 10, (200, 3)).astype(np.float32)
    kind = kind_of("number", train)
    prediction = kind.predict(OUTPUT)
    np.testing.assert_allclose(prediction, OUTPUT * train.std(0) + train.mean(0), rtol=1e-5)
    target = train[:60]
    loss = float(kind.loss(torch.from_numpy(OUTPUT), torch.from_numpy(target)))
    np.testing.assert_allclose(loss, (((prediction - target) / train.std(0)) ** 2).mean(), rtol=1e-4)
    assert abs(kind.value(target, prediction) - r2_score(target, prediction)) < 1e-9
