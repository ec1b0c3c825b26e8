import re

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from trainer.game.players import players_for
from trainer.plan import __main__ as plan
from trainer.plan import memory, traffic
from trainer.plan.config import PlanConfig, read
from trainer.plan.measured import DEVICES, FIGURES, figure_for
from trainer.plan.step import Link, Speed, link_of, speed_of, step_of
from umbra.encoders.flops import PEAKS
from umbra.errors import UserError

NARROW = [
    "encoder.args.width=16",
    "encoder.args.embedding=32",
    "projector.hidden=32",
    "projector.out=8",
    "masker.width=8",
]
CONFIG = "configs/pretrain/adversarial.yaml"


def test_the_states_of_all_devices_together_are_those_of_one_at_stage_three():
    """What is not replicated adds up to the whole, whatever the world size."""
    for world in (1, 2, 64):
        parts = memory.states(3, [1000, 24], world)
        whole = memory.states(3, [1000, 24], 1)
        assert parts.weights * world == pytest.approx(whole.weights) == pytest.approx(4 * 1024)
        assert parts.optimiser * world == pytest.approx(whole.optimiser) == pytest.approx(3 * 4 * 1024)
        assert parts.buffers == 2 * 2 * 10**9
    assert [memory.states(z, [1024], 4).total for z in (0, 1)] == [4 * 4096, 2 * 4096 + 3 * 1024]
    large = 10**10
    assert memory.states(2, [large], 100).gradients == pytest.approx(4 * large / 100 + 2e9)
    assert memory.states(2, [1024], 100).gradients == 4096


def test_a_ring_by_hand():
    """Three processes pass thirds around: two rounds of reduce-scatter and two of all-gather, a third of n each."""
    n = 4 * 3000
    assert traffic.ring(0, [3000], 3) == pytest.approx(4 * n / 3)
    assert traffic.ring(1, [3000], 3) == pytest.approx(4 * n / 3 + 2 * n / 3)
    assert traffic.ring(0, [3000], 3, 5) == traffic.ring(0, [3000], 3), "gradients of contrast batches add up first"
    assert traffic.ring(3, [3000], 3, 5) == pytest.approx(5 * traffic.ring(3, [3000], 3))
    assert traffic.ring(3, [2 * 10**9], 2) == pytest.approx(3 * 8e9 / 2)
    assert traffic.ring(0, [3000], 1) == traffic.exchanged(8, 16, 1) == 0
    assert traffic.exchanged(8, 16, 3) == 2 * (16 * 16 * 4 * 2 + 16 * 8)


def test_activations_are_linear_in_the_ecgs():
    """What a step of 6 ECGs keeps more than one of 2 is 4 times the measured figure."""
    cfg, _ = read([CONFIG, *NARROW])
    both = players_for(cfg, 12, 500, 100)
    each = memory.activations(cfg, both, 12, 500, 100)
    kept = []
    for count in (2, 6):
        alive = memory.Kept()
        with saved_tensors_hooks(alive.pack, alive.unpack):
            both[0](torch.randn(2 * count, 12, 500)).sum().backward()
        kept.append(alive.most)
    assert each >= (kept[1] - kept[0]) / 4 > 0.5 * each, "the encoder's part, both views, is most of it"


def test_a_step_is_bound_by_its_floor_its_work_or_its_network():
    cfg, _ = read([CONFIG, "batch.global=512"])
    speed = Speed(1000.0, 0.1, "")
    assert step_of(cfg, 0, 1, [[10**6]], speed, Link(1e9)).seconds == pytest.approx(0.512)
    many = step_of(cfg, 0, 64, [[10**6]], speed, Link(1e9))
    assert (many.compute, many.at_floor) == (0.1, True)
    assert many.communication == pytest.approx((8e6 * 63 / 64 + 63 * 16 * (8 * cfg.projector.out + 8)) / 1e9)
    whole, halves = (read([CONFIG, "batch.global=512", f"batch.contrast={c}"])[0] for c in (0, 256))
    assert (
        step_of(halves, 0, 1, [[10]], speed, Link(1e9)).compute
        == step_of(whole, 0, 1, [[10]], speed, Link(1e9)).compute
    )


def test_links():
    assert link_of(PlanConfig(gpus=8)) == Link(450e9, 0)
    assert link_of(PlanConfig(gpus=9, call_us=20)) == Link(50e9, 2e-5)


def test_calls_of_a_step_cost_their_own_time():
    """Two players with one large tensor and three small ones: what the launcher's real runs did (benchmarks.scale)."""
    tensors = [[2 * 10**5, 64, 64], [5 * 10**4]]
    assert [traffic.calls(stage, tensors) for stage in range(4)] == [6, 10, 10, 12]
    assert [traffic.calls(stage, tensors, 4) for stage in range(4)] == [15, 19, 25, 30]
    cfg, _ = read([CONFIG, "batch.global=512"])
    free, slow = (step_of(cfg, 3, 4, tensors, Speed(1000.0, 0, ""), Link(1e9, s)) for s in (0, 1e-3))
    assert (free.calls, slow.communication - free.communication) == (12, pytest.approx(12e-3))
    assert step_of(cfg, 3, 1, tensors, Speed(1000.0, 0, ""), Link(1e9, 1e-3)).communication == 0


def test_figures_are_of_known_devices_and_scaled_by_operations():
    assert set(DEVICES) - {"two cores of an AMD EPYC"} <= set(PEAKS)
    for figure in FIGURES:
        found, same = figure_for(figure.device, figure.encoder, figure.samples)
        assert (found, same) == (figure, True)
    cfg, words = read([CONFIG, "encoder.name=vit_s", "gpus=1"])
    assert speed_of(cfg, words, 26.9).ecg_per_second == 3548
    assert speed_of(cfg, words, 53.8).ecg_per_second == pytest.approx(1774)
    cfg, words = read([CONFIG, "gpus=1", "ecg_per_second=5", "floor_ms=2"])
    assert speed_of(cfg, words, 1.0) == Speed(5, 0.002, "given by ecg_per_second")


def test_the_whole_command(capsys, monkeypatch):
    monkeypatch.setattr(memory, "activations", lambda *_: 2.0**20)
    words = [CONFIG, "gpus=16", "batch.global=256", "rate=100", "seconds=4", *NARROW]
    plan.main([*words, "ecgs=1e6", "ecg_per_second=100", "epochs=3"])
    said = capsys.readouterr().out
    assert "16 x NVIDIA H100 on 2 nodes, zero=0; 1,000,000 ECGs of 12 x 400; 16 ECGs a forward pass and GPU" in said
    steps = 3 * (1_000_000 // 256)
    assert f"{steps:,} steps" in said
    assert "160.0 ms of compute" in said
    assert "bottleneck   compute" in said
    size = int(re.search(r"([\d,]+) parameters", said)[1].replace(",", ""))
    first = re.search(r"zero=0 +(.*) <- this run", said)[1].split()
    assert first == [
        f"{n:.1f}" for n in (4 * size / 2**20, 4 * size / 2**20, 8 * size / 2**20, 0, 16, 16 * size / 2**20 + 16)
    ]
    hours = float(re.search(r"([\d.]+) hours", said)[1])
    assert hours == pytest.approx(steps * 0.16 / 3600, rel=0.01)
    plan.main([*words, "ecg_per_second=1e6", "node_gb_s=1e-3", "storage_gb_s=9"])
    assert "bottleneck   communication over the network between the nodes" in capsys.readouterr().out
    plan.main([*words, "gpu=A device of mine", "ecg_per_second=1e6"])
    assert "16 x A device of mine on 2 nodes" in capsys.readouterr().out


def test_ecgs_too_large_for_this_machine_are_a_line(monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore")

    monkeypatch.setattr(memory, "activations", full)
    said = "leads=12, rate=250.0, seconds=60.0: it does not fit into memory; use smaller sizes"
    with pytest.raises(UserError, match=re.escape(said)):
        plan.main([CONFIG, "seconds=60", *NARROW])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpus=0"], "gpus=0 must be >= 1"),
        (["gpus=3"], "batch.global=256 cannot be shared by 3 GPUs: use batch.global=258"),
        (["gpu=NVIDIA H10"], "gpu=NVIDIA H10 was not measured; did you mean 'NVIDIA H100'?"),
        (["ecgs=100"], "batch.global=256 is larger than ecgs=100"),
        (["gpus=8", "batch.global=96", "batch.contrast=12"], "12 cannot be shared by 8 GPUs: use batch.contrast=8,"),
        (["gpus=8", "batch.global=100", "batch.contrast=50"], "use batch.contrast=56 batch.global=112, or other gpus="),
        (["gpu=A100"], "gpu=A100 was not measured; known: NVIDIA H100, two cores of an AMD EPYC. Or give your own"),
        (["gpsu=8"], "unknown key 'gpsu'; did you mean 'gpu'?"),
        (["node_gbs=8"], "unknown key 'node_gbs'; did you mean 'node_gb_s'?"),
        (["zero=4"], "zero=4 is unknown"),
    ],
)
def test_mistakes_are_one_clear_line(words, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        plan.main([CONFIG, *words])
    assert "\n" not in str(error.value)
