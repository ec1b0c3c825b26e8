"""The game does not depend on the number of processes: played by 1, 2 and 4 ranks, each a thread of this process."""

import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.handmade import make_shards
from tests.support.players import Joined
from tests.support.ranks import Ranks, on_ranks
from trainer.data.order import Order
from trainer.data.shards import Shards
from trainer.data.stream import Batch
from trainer.game import batchnorm
from trainer.game.game import MASK_VIEW, Game, Pair
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig, choose, with_random_blocks
from trainer.run.pairs import pairs_of
from trainer.views import Key, build
from trainer.views.pairing import Pairing
from umbra.encoders.encoder import Scaling

STEPS, SIZE, LEADS, HOP = 20, 8, 3, 4
DIALS = [
    {},
    {"masks": 3, "strength": 0.4},
    {"masks": 2, "use": "all", "mask_of": "another"},
    {"schedule": "alternating"},
    {"masks": 2, "threshold": "half", "penalty": "paper", "masker_interval": 3},
    {"family": "lead", "share": 0.6, "entropy": 0.3, "smoothness": 0.2},
    {"family": "spectral", "masks": 2, "warmup": 0.2, "strength_rise": 0.5, "slope_start": 2.0, "slope_rise": 0.5},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    train = Shards(make_shards(tmp_path_factory.mktemp("data") / "s", {"train": ["SR", "AFIB", "STACH"] * 20}), "train")
    leads = train.manifest.leads
    return types.SimpleNamespace(
        cfg=types.SimpleNamespace(seed=3, views=types.SimpleNamespace(candidates=1)),
        train=train,
        order=Order(train.counts, 3, 16, 8, 2, 2),
        scaling=Scaling([0.1] * 12, [0.5] * 12),
        pairing=Pairing("crops", 200),
        first=build(["vcg", "gaussian", "wander", "emg", "lead_gain", "time_mask"], leads),
        second=build(["gaussian", {"name": "block_mask", "blocks": 2}], leads),
        patients=torch.tensor(train.patients()),
    )


class Averaging:
    """What `Game` calls of an engine: AdamW on the mean of all ranks' gradients, over `pairs` contrast batches."""

    def __init__(self, module: nn.Module, ranks: Ranks, pairs: int) -> None:
        self.module, self.ranks, self.pairs, self.calls = module, ranks, pairs, 0
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.1)

    def __call__(self, *x: Tensor) -> Tensor:
        return self.module(*x)

    def backward(self, loss: Tensor) -> None:
        (loss / self.pairs).backward()

    def step(self) -> None:
        self.calls += 1
        if self.calls % self.pairs == 0:
            for p in self.module.parameters():
                p.grad = self.ranks.mean(p.grad)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def torch_autocast_enabled(self) -> bool:
        return False


def players(cfg: GameConfig, norm: str = "") -> dict[str, nn.Module]:
    torch.manual_seed(0)
    channels, normed = cfg.channels(LEADS, HOP), [nn.BatchNorm1d(6)] if norm == "batch" else []
    conv = nn.Conv1d(3, 6, 5, bias=not normed)  # a bias that batch norm takes away has rounding alone for a gradient
    encoder = Joined(conv, *normed, nn.GELU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(24, 5))
    batchnorm.over_all_ranks(encoder)
    masker = nn.Sequential(nn.Conv1d(3, 4, 5, padding=2), nn.GELU(), nn.Conv1d(4, channels, 5, padding=2))
    return {"encoder": encoder.double(), "masker": masker.double()}


def flat(module: nn.Module) -> Tensor:
    """Parameters and running statistics."""
    return torch.cat([v.double().flatten() for k, v in module.state_dict().items() if not k.endswith("tracked")])


def batch(step: int, micro: int, rank: int, size: int) -> Pair:
    x, v = torch.randn(
        2, SIZE, LEADS, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(9 * step + micro)
    )
    index, part = torch.arange(SIZE) + 100 * micro, slice(rank * SIZE // size, (rank + 1) * SIZE // size)
    return Pair(x[part], v[part], Key(0, step, index[part]), index[part] % 6)


def played(ranks: Ranks, cfg: GameConfig, micros: int, monkeypatch, norm: str = "") -> dict[str, Tensor]:
    """Both players' weights at the end, checked to be those of every rank."""
    on_ranks(ranks, monkeypatch)

    def job(rank: int) -> dict[str, Tensor]:
        both = players_of[rank]
        game = Game(*(Averaging(m, ranks, micros) for m in both.values()), cfg, 0.3, HOP, STEPS)
        for step in range(STEPS):
            game.step([batch(step, micro, rank, ranks.size) for micro in range(micros)], step)
        return {name: flat(module) for name, module in both.items()}

    players_of = [players(cfg, norm) for _ in range(ranks.size)]  # torch's seed belongs to the process
    everyone = ranks.play(job)
    assert all(torch.equal(one[name], everyone[0][name]) for one in everyone for name in one)
    return everyone[0]


@pytest.mark.parametrize(("norm", "dials"), [("", d) for d in DIALS] + [("batch", d) for d in DIALS[1:4]], ids=str)
@pytest.mark.parametrize("micros", [1, 2])
def test_in_float64_any_split_of_the_batch_gives_the_same_players_after_20_steps(norm, dials, micros, monkeypatch):
    cfg = GameConfig(**{"slope": 5, "masks": 1, **dials})
    start = {name: flat(module) for name, module in players(cfg, norm).items()}
    whole = played(Ranks(1), cfg, micros, monkeypatch, norm)
    for size in (2, 4):
        split = played(Ranks(size), cfg, micros, monkeypatch, norm)
        for name, right in whole.items():
            assert (split[name] - right).norm() < 1e-10 * (right - start[name]).norm(), (size, name)


def drawn(run, cfg: GameConfig, step: int, size: int) -> dict[tuple[int, int], list[Tensor]]:
    """What each ECG of a step meets on `size` ranks, by micro-batch and row: views, patient, draws, and its masks."""
    torch.manual_seed(0)
    masker, found = UNet(12, cfg.channels(12, 16), 16, width=8), {}
    for rank in range(size):
        indices = run.order.step(step, rank, size)
        signals = torch.from_numpy(run.train.gather(indices, np.empty((*indices.shape, *run.train.shape), "<i2")))
        rows = torch.from_numpy(indices + run.train.rows.start)
        for micro, pair in enumerate(pairs_of(run, Batch(step, signals, rows, indices))):
            with torch.no_grad():
                masks, hidden = Game(None, None, cfg, 0.1, 16).hide(masker, pair)
            spared = with_random_blocks(torch.full_like(hidden, 0.5), pair.key.with_view(MASK_VIEW), cfg)
            which = choose(torch.arange(3.0).expand(len(rows[micro]), 3), pair.key.with_view(MASK_VIEW), "one")
            for i, row in enumerate(rows[micro].tolist()):
                found[micro, row] = [pair.x[i], pair.v[i], pair.patients[i], which[0, i], spared[0, i], masks[i]]
    return found


@pytest.mark.parametrize("step", [0, 4])
@pytest.mark.parametrize("family", ["time", "lead", "spectral"])
def test_order_views_and_draws_are_bit_equal_at_any_world_size_and_masks_are_to_rounding(run, family, step):
    cfg = GameConfig(family=family, masks=3, share=0.7)
    whole = drawn(run, cfg, step, 1)
    assert len(whole) == 16
    assert len({int(found[3]) for found in whole.values()}) == 3
    for size in (2, 4):
        split = drawn(run, cfg, step, size)
        assert split.keys() == whole.keys()
        for ecg, found in whole.items():
            assert all(torch.equal(a, b) for a, b in zip(found[:-1], split[ecg][:-1])), (size, ecg)
            torch.testing.assert_close(found[-1], split[ecg][-1], rtol=0, atol=1e-6)
