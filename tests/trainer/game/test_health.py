import math

import pytest
import torch
from torch import nn

from tests.support.players import PlainEngine, players
from trainer.game.game import Game, Pair
from trainer.game.health import alarms, embedding_figures, mask_figures
from trainer.game.masking import GameConfig, binarise
from trainer.views import Key


def figures(
    cfg: GameConfig, encoder: nn.Module, masker: nn.Module, x: torch.Tensor, steps: int = 1, rate: float = 0.0
) -> dict:
    """The last of some steps of a real game, beside what it does on the same ECGs held out."""
    game = Game(PlainEngine(encoder), PlainEngine(masker, rate), cfg, 0.1)
    for engine in (game.encoder, game.masker):
        engine.step = lambda engine=engine: (engine.optimizer.step(), engine.optimizer.zero_grad())
    pair = Pair(x, x, Key(0, 0, torch.arange(len(x))))
    for step in range(steps):
        values, _ = game.step([pair], step)
    return {**values, **{f"heldout/{name}": value for name, value in game.evaluate(pair).items()}}


def said(values: dict, contrast: int = 16, progress: float = 1.0, step: int = 0, cfg: GameConfig | None = None) -> str:
    numbers = {name: float(value) for name, value in values.items()}
    return " ".join(alarms(numbers, contrast, step or round(1000 * progress), 1000, cfg or GameConfig()))


def ecgs(n: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_young_game_raises_no_alarm():
    encoder, masker, _ = players(1)
    assert said(figures(GameConfig(), encoder, masker, ecgs()), progress=0.0) == ""


def test_an_encoder_that_gives_all_ecgs_one_embedding_has_collapsed():
    encoder, masker, _ = players(1)
    encoder[-1].weight.data.zero_()
    assert "the encoder has collapsed" in said(figures(GameConfig(), encoder, masker, ecgs()))


def test_an_encoder_that_sees_noise_in_the_second_view_cannot_learn():
    encoder, masker, _ = players(1)
    values = figures(GameConfig(coverage=0.97, slope=1e4), encoder, masker, ecgs())
    assert "the encoder cannot learn" in said({**values, "uniformity": -2.0}, progress=0.5)
    assert "cannot learn" not in said({**values, "uniformity": -2.0}, progress=0.1)


def test_masks_that_are_the_same_everywhere_have_collapsed():
    encoder, masker, _ = players(1)
    masker[-1].weight.data.zero_()
    for cfg in (GameConfig(), GameConfig(threshold="half")):
        assert "a mask is constant" in said(figures(cfg, encoder, masker, ecgs()), cfg=cfg)


def test_faint_masks_have_collapsed_where_the_threshold_is_fixed_and_hide_as_well_where_it_is_not():
    for threshold, collapsed in (("coverage", False), ("half", True)):
        cfg = GameConfig(threshold=threshold)
        encoder, masker, _ = players(1)
        masker[-1].weight.data.mul_(0.01 / float(figures(cfg, encoder, masker, ecgs())["mask_contrast"]))
        found = figures(cfg, encoder, masker, ecgs())
        assert float(found["mask_contrast"]) == pytest.approx(0.01, rel=0.1)
        assert ("the masks have collapsed" in said(found, cfg=cfg)) == collapsed


@pytest.mark.parametrize("coverage", [0.05, 0.1, 0.5, 0.95, 0.97])
def test_masks_of_the_coverage_that_is_asked_for_are_not_all_or_nothing(coverage):
    cfg = GameConfig(coverage=coverage)
    masks = torch.randn(64, 1, 1, 100)
    found = mask_figures(masks, binarise(masks.transpose(0, 1), cfg), cfg)
    assert float(found["extreme_coverage"]) == 0


def test_an_encoder_that_is_as_it_was_made_has_not_collapsed_yet():
    fresh = {"uniformity": -0.02}
    assert "the encoder has collapsed" in said(fresh, step=60)
    assert alarms(fresh, 16, 60, 100_000, GameConfig()) == []


def test_the_loss_of_the_published_setting_that_did_not_learn_is_named():
    stuck = {"loss": 4.2, "accuracy": 0.1, "uniformity": -2.0}  # of ln 255 = 5.5, after half of the run
    assert "the encoder cannot learn" in said(stuck, contrast=128, progress=0.5)
    assert said({**stuck, "loss": 3.1, "accuracy": 0.32}, contrast=128, progress=0.5) == ""


class Half(nn.Module):
    """Hides the first half of every ECG."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return (self.weight * torch.linspace(3, -3, x.shape[-1], dtype=x.dtype)).expand(len(x), 1, -1)


def test_masks_that_are_the_same_for_all_ecgs_have_collapsed():
    encoder, _, _ = players(1)
    assert "all ECGs have the same one" in said(figures(GameConfig(), encoder, Half(), ecgs()))


class AllOrNothing(Half):
    def forward(self, x):
        level = torch.where(torch.arange(len(x)) % 2 == 0, 9.0, -9.0).to(x)[:, None, None]
        return self.weight * level + 0.5 * torch.randn(len(x), 1, x.shape[-1], dtype=x.dtype)


def test_masks_that_hide_all_or_nothing_are_named():
    encoder, _, _ = players(1)
    assert "all or nothing: 100 %" in said(figures(GameConfig(threshold="half"), encoder, AllOrNothing(), ecgs()))


def test_a_masker_that_helps_the_encoder_has_lost_and_one_that_plays_has_not():
    for sign, lost in ((1.0, False), (-1.0, True)):
        encoder, masker, _ = players(1)
        values = figures(GameConfig(slope=5, strength=sign), encoder, masker, ecgs(), steps=60, rate=0.05)
        assert ("the masker has lost" in said(values)) == lost
        assert "the masker has lost" not in said(values, progress=0.3)


def test_alarms_are_silent_at_the_start_and_of_the_masker_while_it_rests():
    encoder, masker, _ = players(1)
    masker[-1].weight.data.zero_()
    assert said(figures(GameConfig(), encoder, masker, ecgs()), step=49) == ""
    lost = {"heldout/masked_loss": 1.0, "heldout/others_masks_loss": 2.0}
    assert "has lost" in said(lost, progress=0.7)
    assert said(lost, progress=0.7, cfg=GameConfig(warmup=0.6)) == ""


def test_masks_that_dim_instead_of_hiding_are_named():
    encoder, masker, _ = players(1)
    assert "the masks dim instead of hiding" in said(figures(GameConfig(slope=0.5), encoder, masker, ecgs()))
    assert "dim" not in said(figures(GameConfig(), encoder, masker, ecgs()))
    faded = {"coverage": 0.5, "hidden": 0.1}
    rising = GameConfig(warmup=0.1, slope_start=2, slope_rise=0.4)
    assert [bool(said(faded, step=step, cfg=rising)) for step in (400, 600)] == [False, True]


@pytest.mark.parametrize("more", [dict(share=0.3), dict(masks=2), dict(masks=6, use="all")])
def test_masks_that_are_the_same_are_seen_under_random_blocks_and_draws(more):
    cfg = GameConfig(**more)
    encoder, masker, _ = players(cfg.masks)

    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shape = nn.Parameter(torch.randn(1, cfg.masks, 40, dtype=torch.float64))

        def forward(self, x):
            return self.shape.expand(len(x), -1, -1)

    assert "all ECGs have the same one" in said(figures(cfg, encoder, Same(), ecgs()))
    assert "the same one" not in said(figures(cfg, encoder, masker, ecgs()))


def test_mask_figures_of_masks_made_by_hand():
    hidden = torch.zeros(1, 4, 1, 10)
    hidden[0, :2, 0, :5] = 1
    hidden[0, 2:, 0, 5:] = 1
    masks = (torch.stack([hidden[0], 1 - hidden[0]], 1) * 0.98 + 0.01).logit()
    found = {name: float(value) for name, value in mask_figures(masks, hidden, GameConfig(masks=2)).items()}
    assert found["coverage"] == found["hidden"] == 0.5
    assert found["mask_switches"] == 1
    assert found["mask_sameness"] == pytest.approx(-1 / 3)  # of 4 ECGs, half of one kind: less alike than by chance
    assert found["mask_overlap"] == found["extreme_coverage"] == 0
    assert found["mask_entropy"] == pytest.approx(-(0.99 * math.log(0.99) + 0.01 * math.log(0.01)), rel=1e-4)
    same = mask_figures(masks[:1].expand(4, -1, -1, -1), hidden[:, :1].expand(-1, 4, -1, -1), GameConfig(masks=2))
    assert float(same["mask_sameness"]) == pytest.approx(1)
    flat = mask_figures(torch.full((4, 2, 1, 10), 0.0), torch.ones(1, 4, 1, 10), GameConfig(masks=2))
    assert float(flat["mask_contrast"]) == 0
    all_or_nothing = torch.stack([torch.full((2, 10), 5.0), torch.full((2, 10), -5.0)])[:, None]
    extreme = mask_figures(all_or_nothing, torch.full((1, 2, 2, 10), 0.5), GameConfig(threshold="half"))
    assert float(extreme["extreme_coverage"]) == 1
    three = torch.rand(4, 3, 1, 1000)
    cover_all = float(mask_figures(three, three[None, :, 0], GameConfig(masks=3, coverage=0.5))["mask_overlap"])
    assert cover_all == pytest.approx(0.5, abs=0.05)  # three masks of a half each, each hidden place twice or thrice


def test_sameness_does_not_depend_on_how_many_ecgs_are_looked_at():
    torch.manual_seed(0)
    masks = torch.randn(4096, 1, 1, 100)
    for share in (2, 4, 32):
        each = [mask_figures(part, part[None, :, 0], GameConfig())["mask_sameness"] for part in masks.split(share)]
        assert float(torch.stack(each).mean()) == pytest.approx(0, abs=0.02)
    assert math.isnan(mask_figures(masks[:1], masks[None, :1, 0], GameConfig())["mask_sameness"])


def test_uniformity_looks_at_so_many_ecgs_only():
    z = torch.randn(3 * 1024, 4)
    assert torch.equal(embedding_figures(z, z)["uniformity"], embedding_figures(z[:1024], z)["uniformity"])


def test_alignment_and_uniformity_by_their_definitions():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 7, 5)
    found = embedding_figures(z1, z2)
    a, b = (z / z.norm(dim=1, keepdim=True) for z in (z1, z2))
    assert float(found["alignment"]) == pytest.approx(float(((a - b) ** 2).sum(1).mean()), rel=1e-5)
    apart = [float(((a[i] - a[j]) ** 2).sum()) for i in range(7) for j in range(7) if i != j]
    assert float(found["uniformity"]) == pytest.approx(math.log(sum(math.exp(-2 * d) for d in apart) / 42), rel=1e-5)
    assert float(embedding_figures(z1[:1].expand(7, -1), z2)["uniformity"]) == pytest.approx(0, abs=1e-6)
