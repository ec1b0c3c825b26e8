"""`compile=true`: the same game, the same names, and one line where nothing can be compiled."""

import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from tests.support.compiler import CPU, compiler_or_skip
from tests.support.devices import on_each
from tests.support.players import Accumulating
from trainer.config import PretrainConfig
from trainer.game.compiled import compile_networks, wanted
from trainer.game.game import Game, Pair
from trainer.game.maskers.paper import PaperUNet
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig
from trainer.game.players import ContrastiveEncoder
from trainer.game.projector import Projector
from trainer.views import Key
from umbra.config import load
from umbra.encoders.fused import prepare_compiler
from umbra.encoders.registry import build_encoder
from umbra.encoders.resnet import ResNet
from umbra.encoders.xresnet import XResNet
from umbra.errors import UserError


def two_steps(compiled: bool) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """The losses and both players' weights of two steps in equal chunks."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv1d(3, 8, 5, stride=4), nn.GELU(), nn.Flatten(), nn.Linear(104, 8))
    encoder, masker = ContrastiveEncoder(backbone, Projector(8, 16, 8), chunk=6), UNet(3, 2, 8, width=8, depth=1)
    masker.chunk = 3
    encoder, masker = encoder.double(), masker.double()
    if compiled:
        compile_networks([encoder, masker])
    x, v = torch.randn(2, 6, 3, 56, dtype=torch.float64)  # 7 cells: an odd one in the masker
    pair = Pair(x, v, Key(0, 0, torch.arange(6)))
    engines = [Accumulating(module, lr=0.1, pairs=1) for module in (encoder, masker)]
    game, losses = Game(*engines, GameConfig(masks=2, slope=5), 0.3, 8, total=2), []
    for step in range(2):
        losses.append(game.step([pair], step)[0]["loss"].item())
        for module in (encoder, masker):
            module.zero_grad()
    return losses, [encoder.state_dict(), masker.state_dict()]


@pytest.mark.timeout(600)
def test_two_steps_compiled_are_two_steps_not_compiled():
    compiler_or_skip()
    before = counters["stats"]["unique_graphs"]
    losses, players = two_steps(compiled=True)
    assert counters["stats"]["unique_graphs"] >= before + 2  # both networks
    right, plain = two_steps(compiled=False)
    assert losses == pytest.approx(right, rel=1e-8)
    assert right[0] != pytest.approx(right[1], rel=1e-5)
    for got, same in zip(players, plain):
        assert list(got) == list(same)
        for name, weights in same.items():
            torch.testing.assert_close(got[name], weights, rtol=1e-6, atol=1e-8)


NETWORKS = {
    "resnet": lambda: ResNet(3, 99, width=8, layers=(1, 1), embedding=8, groups=2),
    "xresnet": lambda: XResNet(3, 99, layers=(1, 1), width=8, groups=2),
    "vit": lambda: build_encoder("vit_s", 3, 99, {"width": 16, "depth": 1, "heads": 2, "patch": 10}),
    "unet": lambda: UNet(3, 2, 8, width=8, depth=2),
    "paper": lambda: PaperUNet(3, 2, width=8),
}


def gradients(network: nn.Module, passed, x: torch.Tensor) -> torch.Tensor:
    """Of the input and of all parameters, in one row."""
    given = x.clone().requires_grad_()
    out = passed(given)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=x.device).view_as(out)).sum().backward()
    found = torch.cat([given.grad.flatten(), *(p.grad.flatten() for p in network.parameters())])
    network.zero_grad()
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", on_each(pytest.mark.full))
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_gradients_are_those_of_the_network(name, device):
    compiler_or_skip(device)
    prepare_compiler()
    torch.manual_seed(0)
    network, x = NETWORKS[name]().double().to(device), torch.randn(2, 3, 99).double().to(device)
    with torch.no_grad():
        for p in network.parameters():  # some begin at zero and would hide others' gradients
            p.add_(0.1 * torch.randn_like(p))
    before = counters["aot_autograd"]["autograd_cache_bypass"]
    plain, compiled = (gradients(network, p, x) for p in (network, torch.compile(network, dynamic=False)))
    assert counters["aot_autograd"]["autograd_cache_bypass"] == before  # kept for the next start
    assert plain.norm() > 0
    assert (plain - compiled).norm() <= 1e-8 * plain.norm()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("device", on_each(pytest.mark.full))
def test_two_batch_sizes_under_bf16_are_those_not_compiled(device):
    """Of the masker, whose group norm read misaligned memory on a GPU when the size of the batch was a symbol."""
    compiler_or_skip(device)
    torch._dynamo.reset()
    torch.manual_seed(0)
    backend = "inductor" if device == "cuda" else "aot_eager"  # of C++ this would take minutes
    network = UNet(12, 1, 8, width=32, depth=1).to(device)
    plain = copy.deepcopy(network)
    compile_networks([network], backend=backend)
    for rows in (6, 4, 6) if device == "cpu" else (256, 32, 256):
        x = torch.randn(rows, 12, 250, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            found, right = gradients(network, network, x), gradients(plain, plain, x)
        assert (found - right).norm() <= 0.05 * right.norm()


class Seen:
    """A compiler that keeps what is asked of it and runs the graph as it is."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.symbols: list[object] = []

    def __call__(self, graph, inputs):
        self.shapes.append(max((tuple(t.shape) for t in inputs if isinstance(t, torch.Tensor)), key=len))
        for node in graph.graph.nodes:
            value = node.meta.get("example_value")
            sizes = [value] if not isinstance(value, torch.Tensor) else [*value.shape, *value.stride()]
            self.symbols += [s for s in sizes if isinstance(s, torch.SymInt)]
        return graph.forward


def test_no_size_is_a_symbol_and_only_training_is_compiled(capsys):
    torch._dynamo.reset()
    seen, network = Seen(), UNet(3, 2, 8, width=8, depth=1)
    compile_networks([network], say=True, backend=seen)
    for rows in (4, 6, 4, 3, 6):  # a second and third shape, as of an uneven last chunk
        assert network(torch.randn(rows, 3, 56)).shape == (rows, 2, 56)
    assert len(seen.shapes) == 3
    assert seen.symbols == []
    lines = capsys.readouterr().out.splitlines()
    assert [line[: line.index(":")] for line in lines] == [f"# compiled UNet for {[rows, 3, 56]}" for rows in (4, 6, 3)]
    torch._dynamo.reset()
    encoder = ContrastiveEncoder(nn.Sequential(nn.Flatten(), nn.Linear(168, 4)), nn.Identity())
    compile_networks([encoder], say=True, backend=seen)
    for rows in ((2, 2), (2, 2), (4,)):  # views of a pair, and as many ECGs in one
        assert encoder(*(torch.randn(count, 3, 56) for count in rows)).shape == (4, 4)
    said = [line[: line.index(":")] for line in capsys.readouterr().out.splitlines()]
    assert said == [f"# compiled ContrastiveEncoder for {shape}" for shape in ("[2, 3, 56] + [2, 3, 56]", "[4, 3, 56]")]
    assert len(seen.shapes) == 5
    seen.shapes = seen.shapes[:3]
    with torch.no_grad():
        network(torch.randn(9, 3, 56))
    network.eval()(torch.randn(8, 3, 56))
    assert len(seen.shapes) == 3


def test_a_symbol_would_be_seen():
    torch._dynamo.reset()
    seen = Seen()
    double = torch.compile(lambda x: x * 2, backend=seen)
    for rows in (4, 6):
        double(torch.randn(rows, 3))
    assert seen.symbols


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_compiled_networks_have_no_norm_of_torchs_own(name):
    """Whose compiled backward has read misaligned memory on GPUs."""
    torch._dynamo.reset()
    called = []

    def keep(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return make_boxed_func(graph.forward)

    torch.manual_seed(0)
    network, x = NETWORKS[name](), torch.randn(2, 3, 99)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.compile(network, dynamic=False, backend=aot_autograd(fw_compiler=keep))(x).sum().backward()
    assert "aten.var_mean.correction" in called
    assert not [name for name in called if "norm" in name]


def test_auto_is_gpus_only_and_not_where_layers_wait_for_other_ranks(monkeypatch, tmp_path):
    tried = []
    monkeypatch.setattr("trainer.game.compiled.try_compiler", tried.append)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    group, batch = (ResNet(3, 99, width=8, layers=(1,), groups=2, norm=norm) for norm in ("group", "batch"))
    gpu = torch.device("cuda")
    assert not wanted("auto", CPU, 0, [group], 1, tmp_path)
    assert not wanted("false", gpu, 0, [group], 1, tmp_path)
    assert not wanted("auto", gpu, 3, [group], 1, tmp_path)
    assert not wanted("auto", gpu, 0, [group, batch], 2, tmp_path)
    assert tried == []
    assert wanted("auto", gpu, 2, [group], 8, tmp_path)
    assert wanted("auto", gpu, 0, [batch], 1, tmp_path)
    assert wanted("true", CPU, 0, [group], 1, tmp_path)
    assert tried == [gpu, gpu, CPU]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_auto_without_a_compiler_says_so_and_goes_on(monkeypatch, capsys, tmp_path):
    def fails(device):
        raise UserError("no compiler")

    monkeypatch.setattr("trainer.game.compiled.try_compiler", fails)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_me")  # by torch itself
    assert not wanted("auto", torch.device("cuda"), 0, [], 1, tmp_path / "kept")
    assert capsys.readouterr().out == "# not compiled: no compiler\n"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "kept")
    with pytest.raises(UserError, match="no compiler"):
        wanted("true", CPU, 0, [], 1, tmp_path)


def test_a_machine_without_a_compiler_is_said_in_one_line(tmp_path):
    words = "import torch; from trainer.game.compiled import try_compiler; try_compiler(torch.device('cpu'))"
    script = f"from umbra.config import command\ndef main(argv):\n    {words}\ncommand(main)\n"
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 2, found.stderr
    assert found.stderr.startswith("error: compile=true does not work on this machine (")
    assert "no-such-compiler" in found.stderr
    assert "use compile=false" in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_zero_3_is_refused():
    cfg = load(PretrainConfig, None, ["data.path=x", "compile=true", "zero=3"])
    with pytest.raises(UserError, match="compile=true does not work with zero=3"):
        cfg.check()
