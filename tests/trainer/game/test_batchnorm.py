"""Batch norm over all ranks, each a thread of this process, against torch's on the whole batch; its estimation."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.players import PlainEngine
from tests.support.ranks import Ranks, on_ranks
from trainer.game.batchnorm import BatchNorm, batch_norms, estimate, merged, moments, over_all_ranks
from trainer.game.game import Game, Pair
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.run import checkpoint
from trainer.views import Key
from umbra.encoders.registry import ENCODERS, build_encoder


def norm_of(channels: int) -> nn.Module:
    """Scale, shift and running statistics that are not those of a new one."""
    made = nn.BatchNorm1d(channels, momentum=0.3).double()
    generator = torch.Generator().manual_seed(1)
    for tensor in (made.weight, made.bias, made.running_mean, made.running_var):
        tensor.data.copy_(torch.rand(channels, generator=generator) + 0.5)
    return made


def passed(norm: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(upstream)
    return [y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


@pytest.mark.parametrize("shape", [(8, 5, 7), (8, 5)], ids=str)
@pytest.mark.parametrize("cuts", [[8], [4, 4], [5, 3], [2, 2, 2, 2], [1, 4, 1, 2]], ids=str)
def test_in_float64_it_is_torchs_on_the_rows_of_all_ranks(shape, cuts, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, upstream = (3 + torch.randn(2, *shape, generator=generator, dtype=torch.float64)).unbind()
    expected = passed(norm_of(5), x, upstream)
    ranks = Ranks(len(cuts))
    on_ranks(ranks, monkeypatch)
    norms = [over_all_ranks(nn.Sequential(norm_of(5)))[0] for _ in cuts]
    shares = list(zip(norms, x.split(cuts), upstream.split(cuts)))
    y, to_x, to_weight, to_bias, mean, variance = zip(*ranks.play(lambda rank: passed(*shares[rank])))
    found = [torch.cat(y), torch.cat(to_x), sum(to_weight), sum(to_bias)]
    for got, right in zip(found, expected):
        torch.testing.assert_close(got, right, rtol=1e-11, atol=1e-12)
    for got, right in ((mean, expected[4]), (variance, expected[5])):
        assert all(torch.equal(one, got[0]) for one in got)
        torch.testing.assert_close(got[0], right, rtol=1e-11, atol=1e-12)
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}
    norms[0].eval()
    assert torch.equal(norms[0](x), nn.functional.batch_norm(x, mean[0], variance[0], norms[0].weight, norms[0].bias))


def test_under_bf16_autocast_its_statistics_are_those_of_fp32(monkeypatch):
    """Of signals whose mean is far from 0, where bf16 sums would have no digit left."""
    x = (20 + torch.randn(64, 4, 100, generator=torch.Generator().manual_seed(0))).bfloat16()
    right = nn.BatchNorm1d(4)
    right(x.float())
    ranks = Ranks(2)
    on_ranks(ranks, monkeypatch)
    norms = [BatchNorm(4) for _ in range(2)]

    def job(rank: int) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            part = x.chunk(2)[rank].clone().requires_grad_()
            y = norms[rank](part)
            y.float().square().sum().backward()
        assert y.dtype == part.grad.dtype == torch.bfloat16
        return y.detach()

    y = torch.cat(ranks.play(job)).float()
    assert norms[0].running_mean.dtype == norms[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(norms[0].running_mean, right.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(norms[0].running_var, right.running_var, rtol=1e-5, atol=0)
    assert y.mean().abs() < 1e-3
    assert y.std() == pytest.approx(1, abs=1e-3)


def test_a_mean_far_from_zero_costs_no_digits_when_parts_are_merged():
    x = 1e4 + torch.randn(60, 3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count, mean, squares = merged(torch.stack([moments(part.float()) for part in x.split([10, 49, 1])]))
    assert count.tolist() == [3000.0] * 3
    torch.testing.assert_close(mean.double(), x.mean((0, 2)), rtol=3e-7, atol=0)
    torch.testing.assert_close((squares / count).double(), x.var((0, 2), correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [n for n in ENCODERS if n != "vit_s"])
def test_encoders_keep_their_weights_and_names_when_their_norms_are_exchanged(name):
    args = {"width": 16, "norm": "batch"}
    encoder, plain = (build_encoder(name, 12, 100, args) for _ in range(2))
    before, parameters = {k: v.clone() for k, v in encoder.state_dict().items()}, list(encoder.parameters())
    count = len(batch_norms(encoder))
    assert over_all_ranks(encoder) is encoder
    assert count == sum(isinstance(m, BatchNorm) for m in encoder.modules()) == len(batch_norms(encoder)) > 10
    assert all(a is b for a, b in zip(encoder.parameters(), parameters, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    x = torch.randn(3, 12, 100)
    plain.load_state_dict(encoder.state_dict())
    assert torch.equal(plain(x), encoder(x))
    assert not any(isinstance(m, BatchNorm) for m in plain.modules())


def test_held_out_losses_use_the_running_statistics_and_leave_them():
    torch.manual_seed(0)
    backbone = over_all_ranks(build_encoder("resnet18", 12, 128, {"width": 8, "embedding": 12, "norm": "batch"}))
    encoder, masker = ContrastiveEncoder(backbone, Projector(12, 16, 8)), UNet(12, 1, 8, width=8)
    pair = Pair(*torch.randn(2, 6, 12, 128), Key(0, 0, torch.arange(6)))
    game = Game(PlainEngine(encoder), PlainEngine(masker), GameConfig(masks=1), 0.3)
    game.step([pair], 0)
    before = copy.deepcopy(encoder.state_dict())
    loss = game.evaluate(pair)["loss"]
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    backbone.stem[1].running_var *= 4
    assert game.evaluate(pair)["loss"] != loss
    assert all(norm.training for norm in batch_norms(encoder))


def test_estimated_statistics_are_those_that_numpy_finds():
    """Two layers of 1 x 1 convolutions; batches of different sizes, each normalised by its own moments."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 3)), rng.normal(size=(2, 4))
    net = nn.Sequential(nn.Conv1d(3, 4, 1, bias=False), norm_of(4), nn.ReLU(), nn.Conv1d(4, 2, 1, bias=False))
    net = nn.Sequential(net, norm_of(2)).double()
    net[0][0].weight.data, net[0][3].weight.data = (torch.tensor(w)[..., None] for w in (first, second))
    batches = [rng.normal(1 + n, 1 + n, size=(size, 3, 10)) for n, size in enumerate((5, 8, 2))]
    estimate(net, map(torch.tensor, batches))

    scale, shift = (tensor.detach().numpy()[:, None] for tensor in (net[0][1].weight, net[0][1].bias))
    given = [[], []]
    for x in batches:
        h = first @ x
        normed = (h - h.mean((0, 2))[:, None]) / np.sqrt(h.var((0, 2))[:, None] + 1e-5) * scale + shift
        given[0].append(h)
        given[1].append(second @ np.maximum(normed, 0))
    for norm, seen in zip(batch_norms(net), given):
        rows = np.concatenate(seen).transpose(1, 0, 2).reshape(seen[0].shape[1], -1)
        np.testing.assert_allclose(norm.running_mean.numpy(), rows.mean(1), rtol=1e-10)
        np.testing.assert_allclose(norm.running_var.numpy(), rows.var(1), rtol=1e-10)
    assert not any(module.training for module in net.modules())
    assert not any(norm._forward_pre_hooks for norm in batch_norms(net))


def test_a_checkpoint_keeps_the_count_of_batches_a_whole_number():
    class Engine:
        module = nn.Sequential(nn.BatchNorm1d(2).double())
        zero_optimization_stage = staticmethod(lambda: 0)

    kept = checkpoint.whole_weights(Engine)
    assert {k: v.dtype for k, v in kept.items() if "num" in k} == {"0.num_batches_tracked": torch.int64}
    assert {v.dtype for k, v in kept.items() if "num" not in k} == {torch.float32}
