"""Weights cast by one operator: the gradients of autocast's own casts, and the parameters as they were."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.devices import on_each
from trainer.game.compiled import compile_networks
from trainer.game.lowered import lowered
from trainer.game.maskers.paper import PaperUNet
from trainer.game.maskers.unet import UNet
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from umbra.encoders import layout
from umbra.encoders.layout import Conv
from umbra.encoders.registry import build_encoder
from umbra.encoders.resnet import ResNet
from umbra.encoders.xresnet import XResNet

LEADS, SAMPLES = 3, 99


def encoder(backbone: nn.Module, **options) -> ContrastiveEncoder:
    return ContrastiveEncoder(backbone, Projector(backbone.dim, 16, 8), **options)


NETWORKS = {
    "resnet": lambda: encoder(ResNet(LEADS, SAMPLES, width=8, layers=(1, 1), embedding=8, groups=2)),
    "batch norm": lambda: encoder(ResNet(LEADS, SAMPLES, width=8, layers=(1, 1), embedding=8, norm="batch")),
    "xresnet": lambda: encoder(XResNet(LEADS, SAMPLES, layers=(1, 1), width=8, groups=2)),
    "vit": lambda: encoder(build_encoder("vit_s", LEADS, SAMPLES, {"width": 16, "depth": 2, "heads": 2, "patch": 10})),
    "unet": lambda: UNet(LEADS, 2, 8, width=8, depth=2),
    "paper": lambda: PaperUNet(LEADS, 2, width=8),
}


def made(name: str, device: str = "cpu") -> tuple[nn.Module, torch.Tensor]:
    """A network whose parameters are all of consequence, and its input."""
    torch.manual_seed(0)
    network = NETWORKS[name]().to(device)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    samples = 1000 if name == "paper" else SAMPLES  # of too few its strided convolutions have random gradients on CPUs
    return network, torch.randn(6, LEADS, samples, device=device)


def gradients(network: nn.Module, passed, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    given = x.clone().requires_grad_()
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        out = passed(given)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=x.device).view_as(out))
    found = [out.detach(), given.grad, *(p.grad for p in network.parameters())]
    network.zero_grad()
    return found


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", on_each())
@pytest.mark.parametrize("name", NETWORKS)
def test_the_result_and_the_gradients_are_those_of_casts_one_by_one(name, device):
    network, x = made(name, device)
    names, before = list(network.state_dict()), [id(p) for p in network.parameters()]
    with Operators() as one_by_one:
        right = gradients(network, network.whole, x)
    with Operators() as at_once:
        found = gradients(network, network, x)
    for a, b in zip(found, right, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for p, gradient in zip(network.parameters(), found[2:]):
        assert gradient.dtype == torch.float32
        assert gradient.stride() == p.stride()
    assert at_once.calls["_to_copy"] <= one_by_one.calls["_to_copy"] - 2 * (len(before) - name.count("batch") * 12) + 2
    assert (list(network.state_dict()), [id(p) for p in network.parameters()]) == (names, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_convolutions_are_cast_into_the_layout_of_activations(name, monkeypatch):
    monkeypatch.setattr(layout, "memory_format", lambda device: torch.channels_last)
    network, x = made(name)
    right = gradients(network, network.whole, x)
    seen = {}
    for module in network.modules():
        if type(module) is Conv:
            module.register_forward_pre_hook(lambda module, given: seen.update({module: (given[0], module.weight)}))
    found = gradients(network, network, x)
    assert bool(seen) == (name != "vit")
    for given, weight in seen.values():
        assert given.is_contiguous(memory_format=torch.channels_last)
        assert weight.unsqueeze(2).is_contiguous(memory_format=torch.channels_last)
    for a, b in zip(found, right, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()  # another order of sums
    for p, gradient in zip(network.parameters(), found[2:]):
        assert gradient.stride() == p.stride()


@pytest.mark.parametrize("name", ["resnet", "unet"])
def test_chunks_that_are_computed_twice_have_the_gradients_of_the_whole_batch(name):
    network, x = made(name)
    right = gradients(network, network, x)
    network.chunk = 2
    for a, b in zip(gradients(network, network, x), right, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm()  # bf16 has 8 bits: chunks are rounded one by one


def test_a_compiled_network_is_compiled_once_and_has_the_same_gradients():
    network, x = made("unet")
    graphs = []
    torch._dynamo.reset()
    compile_networks([network], backend=lambda graph, inputs: graphs.append(inputs) or graph.forward)
    for _ in range(3):
        found = gradients(network, network, x)
    assert len(graphs) == 1
    kinds = Counter(t.dtype for t in graphs[0] if isinstance(t, torch.Tensor))
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert kinds[torch.float32] == 1 + 2 * len(norms)  # norms keep theirs: compiled, they compute in fp32
    right = gradients(network, network.whole, x)  # compiled too, with the casts in its graph
    assert len(graphs) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


class Odd(nn.Linear):
    def forward(self, x):
        assert self.weight.dtype == torch.float32
        return super().forward(x)


class Partly(nn.Module):
    """Of three layers one is of another class, and one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.odd, self.unused = nn.Linear(4, 4), Odd(4, 4), nn.Linear(4, 4)

    def whole(self, x):
        assert self.one.weight.dtype == self.unused.weight.dtype == torch.bfloat16
        if len(x) == 1:
            raise ValueError("one row")
        return self.odd(self.one(x))


def test_other_classes_keep_their_weights_and_what_is_not_used_has_no_gradient():
    network = Partly()
    before = [id(p) for p in network.parameters()]
    found = gradients(network, lowered(network), torch.randn(3, 4))
    assert [g is None for g in found] == [False] * 6 + [True] * 2
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="one row"):
        lowered(network)(torch.randn(1, 4))
    assert [id(p) for p in network.parameters()] == before


@pytest.mark.parametrize("why", ["no autocast", "no gradient", "fp64", "gathered by layer"])
def test_weights_are_left_as_they_are(why):
    network = nn.Linear(4, 4, dtype=torch.float64 if why == "fp64" else torch.float32)
    seen = []
    network.whole = lambda x: seen.append(network.weight) or x
    if why == "gathered by layer":
        network.weight.ds_id = 0  # as DeepSpeed marks a parameter of ZeRO 3
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=why != "no autocast"),
        torch.set_grad_enabled(why != "no gradient"),
    ):
        lowered(network)(torch.randn(3, 4))
    assert seen[0] is network.weight
