"""What compiled layers compute: values and gradients of torch's own operators, also where maxima are equal."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.compiler import compiler_or_skip
from umbra.encoders import fused, layout
from umbra.encoders.layout import GroupNorm, Layers, MaxPool


@pytest.fixture(params=[False, True], ids=["plain", "stored"])
def told(request):
    """Whether the compiler's operator is used; it copies where nothing is compiled."""
    before = fused._store
    fused.prepare_compiler()
    fused._store = fused._store if request.param else None
    yield
    fused._store = before


def both(function, x, *more):
    """Value and gradient by x and the others, of a sum with weights."""
    given = [t.clone().requires_grad_() for t in (x, *more)]
    out = function(*given)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out.detach(), *(t.grad for t in given)]


@pytest.mark.parametrize("length", [1, 2, 7, 8, 625])
@pytest.mark.parametrize("values", ["distinct", "equal", "zeros", "lowest", "nan"])
def test_max_pool_is_torchs(length, values, told):
    torch.manual_seed(length)
    x = torch.randn(3, 4, 1, length, dtype=torch.float64)
    x = {"distinct": x, "equal": x.round(), "zeros": x.relu(), "lowest": x * torch.inf}.get(values, x)
    if values == "nan":
        x[torch.rand_like(x) < 0.3] = torch.nan
    right = both(lambda x: F.max_pool2d(x, (1, 3), (1, 2), (0, 1)), x)
    torch.testing.assert_close(both(fused.max_pool, x), right, equal_nan=True)


def test_moments_affine_and_sums(told):
    torch.manual_seed(0)
    x, scale, shift = torch.randn(3, 6, 1, 11).double() + 2, torch.randn(3, 6).double(), torch.randn(3, 6).double()

    def right(x, scale, shift):
        return (x * scale[:, :, None, None] + shift[:, :, None, None]).relu()

    torch.testing.assert_close(both(fused.affine_relu, x, scale, shift), both(right, x, scale, shift))
    x[0, 0, 0, 0] = torch.nan  # as torch's, whose gradient goes through
    found, expected = both(fused.affine_relu, x, scale, shift), both(right, x, scale, shift)
    torch.testing.assert_close(found, expected, equal_nan=True)
    x[0, 0, 0, 0] = 0
    torch.testing.assert_close(both(fused.added, x, x + 1), both(torch.add, x, x + 1))
    for part in range(2):
        own = both(lambda x, part=part: fused.moments(x, 2)[part], x)
        grouped = both(lambda x, part=part: torch.var_mean(x.view(3, 2, -1), -1, correction=0)[part], x)
        torch.testing.assert_close(own, grouped)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 625])
@pytest.mark.parametrize("values", ["distinct", "equal", "nan"])
def test_norm_relu_and_pool_are_the_three(length, values, told):
    torch.manual_seed(length)
    x, scale, shift = torch.randn(3, 4, 1, length).double(), torch.randn(3, 4).double(), torch.randn(3, 4).double()
    scale[0, 0], shift[0, 1] = 0, -9  # all maxima equal, and all zero
    if values == "equal":
        x, scale, shift = x.round(), scale.round(), shift.round()
    if values == "nan":
        x[torch.rand_like(x) < 0.3] = torch.nan

    def right(x, scale, shift):
        rectified = (x * scale[:, :, None, None] + shift[:, :, None, None]).relu()
        return F.max_pool2d(rectified, (1, 3), (1, 2), (0, 1))

    found, expected = both(fused.affine_relu_pool, x, scale, shift), both(right, x, scale, shift)
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU])
def test_a_row_of_layers_is_the_same_when_norm_and_relu_are_one(act, told, monkeypatch):
    torch.manual_seed(0)
    row = Layers(Layers(GroupNorm(2, 4), act()), GroupNorm(2, 4), act(), MaxPool(), GroupNorm(2, 4)).double()
    for p in row.parameters():
        nn.init.normal_(p)
    assert list(row.state_dict()) == list(nn.Sequential(nn.Sequential(*row[0]), *row[1:]).state_dict())
    x, calls = torch.randn(3, 4, 1, 9).double(), []
    right = both(row, x)
    monkeypatch.setattr(layout, "_fuses", lambda: True)
    for name in ("then_relu", "then_relu_and_pool"):
        one = getattr(GroupNorm, name)
        monkeypatch.setattr(GroupNorm, name, lambda self, x, name=name, one=one: calls.append(name) or one(self, x))
    torch.testing.assert_close(both(row, x), right)
    assert calls == (["then_relu", "then_relu_and_pool"] if act is nn.ReLU else [])


def test_layers_that_a_user_watches_are_called(monkeypatch):
    monkeypatch.setattr(layout, "_fuses", lambda: True)
    row, seen = Layers(Layers(GroupNorm(2, 4), nn.ReLU()), GroupNorm(2, 4), nn.ReLU()), []
    for module in row.modules():
        module.register_forward_hook(lambda module, given, out: seen.append(module))
    row(torch.randn(2, 4, 1, 5))
    assert set(seen) == set(row.modules())


@pytest.mark.parametrize("hook", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_layers_whose_gradients_a_user_watches_are_called(hook, monkeypatch):
    monkeypatch.setattr(layout, "_fuses", lambda: True)
    row, seen = Layers(GroupNorm(2, 4), nn.ReLU(), MaxPool()), []
    for module in row:
        getattr(module, hook)(lambda module, *gradients: seen.append(module))
    row(torch.randn(2, 4, 1, 5, requires_grad=True)).sum().backward()
    assert set(seen) == set(row)


def twice_derived(function, *given):
    (gradient,) = torch.autograd.grad(function(*given).square().sum(), given[0], create_graph=True)
    gradient.square().sum().backward()


def test_second_derivatives_are_refused_and_not_wrong(monkeypatch):
    monkeypatch.setattr(fused, "_store", fused._store)  # as it was, afterwards
    fused.prepare_compiler()
    given = [torch.randn(*size, requires_grad=True) for size in ((2, 3, 1, 8), (2, 3), (2, 3))]
    for function in (fused.affine_relu, fused.affine_relu_pool):
        with pytest.raises(RuntimeError, match="no autograd formula"):
            twice_derived(function, *given)


def test_no_ecgs_are_none(told, monkeypatch):
    monkeypatch.setattr(layout, "_fuses", lambda: True)
    row = Layers(GroupNorm(2, 4), nn.ReLU(), MaxPool(), GroupNorm(2, 4))
    assert [t.shape for t in both(row, torch.zeros(0, 4, 1, 9))] == [(0, 4, 1, 5), (0, 4, 1, 9)]


@pytest.mark.timeout(600)
def test_a_stored_value_is_written_once_and_costs_no_kernel_of_its_own():
    compiler_or_skip()
    from torch._inductor.utils import run_and_get_code

    fused.prepare_compiler()

    def three_uses(x, y):
        both = fused._stored(torch.where(y > 0, x, 0))
        return both.sum(-1), both * 2 + y, both.sum(0)

    x, y = torch.randn(2, 64, 64)
    found, code = run_and_get_code(torch.compile(three_uses, dynamic=False), x, y)
    torch.testing.assert_close(found, three_uses(x, y))
    assert "umbra" not in "".join(code)
    assert "".join(code).count(" = empty_strided_cpu((") == 4  # what was stored, and the three results
