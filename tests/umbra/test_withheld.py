"""An encoder in eval mode gives no gradients; an optimizer that steps over its weights all the same is warned of."""

import warnings

import pytest
import torch
from torch import nn

from tests.support.handmade import small_encoder


@pytest.fixture
def model():
    """An encoder as it is loaded, in eval mode, and a new head: what a user makes of it."""
    encoder = small_encoder("resnet18", seconds=1.0)
    return nn.Sequential(encoder, nn.Linear(encoder.dim, 2))


def trained(model: nn.Module, parameters, steps: int = 2) -> tuple[list[str], bool]:
    """What `steps` of a training loop warn of, and whether the encoder's weights changed."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = [weight.clone() for weight in model[0].parameters()]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(4, 12, 100)).square().mean().backward()
            optimizer.step()
            schedule.step()
    changed = any(not torch.equal(a, b) for a, b in zip(before, model[0].parameters()))
    return [str(one.message) for one in said], changed


def test_a_loop_that_forgets_train_is_warned_once(model):
    said, changed = trained(model, model.parameters())
    assert not changed
    assert len(said) == 1
    assert "the optimizer has weights of an encoder in eval mode" in said[0]


@pytest.mark.parametrize("how", [lambda model: model.train(), lambda model: model[0].requires_grad_()])
def test_with_gradients_there_is_nothing_to_say(model, how):
    model[0](torch.zeros(12, 100))  # a look at some features before
    how(model)
    assert trained(model, model.parameters()) == ([], True)


def test_a_head_alone_and_a_frozen_encoder_are_meant(model):
    assert trained(model, model[1].parameters()) == ([], False)
    for weight in model[0].parameters():
        weight.requires_grad = False
    assert trained(model, model.parameters()) == ([], False)


def test_features_without_gradients_are_no_fault(model):
    """Embedding, and evaluation under `no_grad`, before the first step of another part of the model."""
    with torch.no_grad():
        model[0](torch.zeros(12, 100))
    model[0].embed(torch.randn(12, 100), rate=100)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1](torch.zeros(1, model[0].dim)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_a_complex_input_is_no_ecg(model):
    with pytest.raises(TypeError, match="real numbers"):
        model[0](torch.zeros(1, 12, 100, dtype=torch.complex64))
