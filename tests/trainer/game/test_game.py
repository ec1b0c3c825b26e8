import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.step import five_passes
from tests.support.players import Accumulating, Joined, PlainEngine, players
from trainer.game.game import MASK_VIEW, Game, NonFiniteError, Pair, contrast
from trainer.game.losses import nt_xent
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig, binarise, choose, cost, cover, soft_masks, with_random_blocks
from trainer.views import Key
from trainer.views.softly import quantile
from umbra.errors import UserError

HOP = 8
ALTERNATING = GameConfig(schedule="alternating")


def gradients(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def settings(**more):
    return GameConfig(slope=7, strength=1.7, **more)


def reference_hidden(logits: torch.Tensor, cfg: GameConfig, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw masks [B, N, R, cells] and hidden ones [n, B, R, *S], written out once more."""
    batch, length = len(logits), logits.shape[-1]
    if cfg.family == "spectral":
        at = [min(frame * HOP, length - 1) for frame in range(-(-length // HOP) + 1)]
        raw = logits[:, :, at].reshape(batch, cfg.masks, 1, -1)
    else:
        raw = logits.reshape(batch, cfg.masks, -1, length)
    raw = raw.sigmoid() if cfg.masks == 1 else raw.softmax(1)
    drawn = choose(raw, pair.key.with_view(MASK_VIEW), cfg.use)
    line, unit = torch.full_like(drawn[..., :1], 0.5), 1.0
    if cfg.threshold == "coverage":
        drawn = (drawn / (1 - drawn)).log()
        fixed = drawn.detach()
        line = fixed.quantile(0.5, -1, keepdim=True, interpolation="midpoint")
        unit = (fixed - fixed.mean(-1, keepdim=True)).square().sum(-1, keepdim=True).div(raw.shape[-1] - 1).sqrt()
    hidden = torch.sigmoid(7 * (drawn - line) / unit)
    return raw, hidden.unflatten(-1, (HOP + 1, -1)) if cfg.family == "spectral" else hidden


def reference_cover(v: torch.Tensor, hidden: torch.Tensor, cfg: GameConfig) -> torch.Tensor:
    if cfg.family != "spectral":
        return v * (1 - hidden)
    window = torch.hann_window(2 * HOP, dtype=v.dtype)
    length, v = v.shape[-1], torch.nn.functional.pad(v, (0, -v.shape[-1] % HOP))
    made = []
    for signals, mask in zip(v, hidden):
        arguments = dict(n_fft=2 * HOP, hop_length=HOP, window=window)
        spectrum = torch.stft(signals, **arguments, pad_mode="constant", return_complex=True)
        made.append(torch.istft(spectrum * (1 - mask), **arguments, length=v.shape[-1])[:, :length])
    return torch.stack(made)


def reference_cost(raw: torch.Tensor, cfg: GameConfig) -> torch.Tensor:
    total = raw.sum() * 0
    if cfg.penalty == "paper":
        mean = raw.mean(-1)  # [B, N, R]
        total = total + 0.1 * sum((1 / torch.sin(torch.pi * mean[:, n])).mean() for n in range(mean.shape[1]))
    both = torch.stack([raw[:, 0], 1 - raw[:, 0]], 1) if cfg.masks == 1 else raw
    total = total + cfg.entropy * (both * both.log()).sum(1).neg().mean()
    grid = raw.unflatten(-1, (HOP + 1, -1)) if cfg.family == "spectral" else raw
    return total + cfg.smoothness * (grid[..., 1:] - grid[..., :-1]).abs().sum(-1).mean()


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("family", ["time", "lead", "spectral"])
@pytest.mark.parametrize("masks", [1, 2, 3])
@pytest.mark.parametrize("use", ["one", "all"])
@pytest.mark.parametrize(
    "more",
    [
        dict(), dict(threshold="half"), dict(threshold="half", penalty="paper"), dict(entropy=0.3, threshold="half"),
        dict(smoothness=0.2, threshold="half"), dict(share=0.5),
    ],
)  # fmt: skip
def test_both_players_gradients_equal_plain_autograd(schedule, family, masks, use, more):
    if more.get("penalty") == "paper" and masks > 2:
        pytest.skip("refused by the config")
    cfg = settings(masks=masks, use=use, family=family, schedule=schedule, **more)
    encoder, masker, pair = players(cfg.channels(3, HOP))
    Game(PlainEngine(encoder), PlainEngine(masker), cfg, 0.3, HOP).step([pair], 0)
    got = gradients(encoder), gradients(masker)

    encoder.zero_grad(), masker.zero_grad()
    raw, hidden = reference_hidden(masker(pair.v), cfg, pair)
    hidden = with_random_blocks(hidden, pair.key.with_view(MASK_VIEW), cfg)
    seconds = [reference_cover(pair.v, h, cfg) for h in hidden]
    loss = torch.stack([nt_xent(encoder(pair.x), encoder(second), 0.3)[0] for second in seconds]).mean()
    encoder_gradient = torch.autograd.grad(loss, list(encoder.parameters()), retain_graph=True)
    masker_gradient = torch.autograd.grad(-1.7 * loss + reference_cost(raw, cfg), list(masker.parameters()))
    for ours, reference in zip(got, (encoder_gradient, masker_gradient)):
        flat = torch.cat([g.flatten() for g in reference])
        assert (ours - flat).norm() / flat.norm() < (1e-5 if "penalty" in more else 1e-10)


def test_the_masker_raises_the_loss_and_the_encoder_lowers_it():
    cfg = GameConfig(masks=1, slope=5)
    encoder, masker, pair = players(1)

    def loss() -> float:
        hidden = binarise(choose(soft_masks(masker(pair.v), cfg), pair.key, "one"), cfg)
        return contrast(encoder, pair.x, [cover(pair.v, hidden[0], cfg)], 0.3)[0].item()

    start = loss()
    Game(PlainEngine(encoder, 0.0), PlainEngine(masker, 0.3), cfg, 0.3).step([pair], 0)
    harder = loss()
    assert harder > start + 1e-6
    encoder.zero_grad()
    Game(PlainEngine(encoder, 0.05), PlainEngine(masker, 0.0), cfg, 0.3).step([pair], 0)
    assert loss() < harder - 1e-6


@pytest.mark.parametrize("more", [dict(), dict(masks=2, threshold="half", penalty="paper")])
def test_one_pass_gives_the_gradients_of_the_published_schedule_of_five(more):
    got = []
    for play in (lambda game, pair: game.step([pair], 0), five_passes):
        encoder, masker, pair = players(more.get("masks", 1))
        play(Game(PlainEngine(encoder), PlainEngine(masker), settings(**more), 0.3, HOP), pair)
        got.append((gradients(encoder), gradients(masker)))
    for ours, published in zip(*got):
        assert (ours - published).norm() / published.norm() < 1e-9


def test_the_masker_waits_for_its_interval():
    encoder, masker, pair = players(1)
    game = Game(PlainEngine(encoder), PlainEngine(masker), GameConfig(masker_interval=3), 0.3)
    game.step([pair], 1)
    assert all(p.grad is None for p in masker.parameters())
    game.step([pair], 3)
    assert all(p.grad is not None for p in masker.parameters())


@pytest.mark.parametrize("coverage", [0.05, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("masks", [1, 2, 3])
def test_the_coverage_is_what_the_config_says_for_a_decided_mask(coverage, masks):
    torch.manual_seed(1)
    cfg = GameConfig(masks=masks, coverage=coverage, slope=1e5)
    raw = soft_masks(torch.randn(6, masks, 400), cfg)
    hidden = binarise(choose(raw, Key(0, 0, torch.arange(6)), "one"), cfg)
    assert hidden.shape == (1, 6, 1, 400)
    assert torch.allclose(hidden.mean(-1), torch.tensor(coverage), atol=5e-3)


@pytest.mark.parametrize("coverage", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("masks", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 0.05])
def test_an_untrained_masker_hides_what_the_config_says_at_the_default_slope(coverage, masks, scale):
    torch.manual_seed(2)
    masker, x = UNet(12, masks, stride=10), torch.randn(16, 12, 1000).cumsum(-1) / 10
    cfg = GameConfig(masks=masks, coverage=coverage)
    with torch.no_grad():
        hidden = binarise(choose(soft_masks(scale * masker(x), cfg), Key(0, 0, torch.arange(16)), "one"), cfg)
    assert float(hidden.mean()) == pytest.approx(coverage, abs=0.1)
    assert float((hidden > 0.5).float().mean()) == pytest.approx(coverage, abs=0.02)
    assert float((hidden > 0.9).float().mean()) > 0.2 * coverage


def test_one_of_n_is_drawn_per_ecg_and_all_are_drawn():
    masks = torch.arange(3.0)[None, :, None, None].expand(300, 3, 1, 2)
    drawn = choose(masks, Key(0, 0, torch.arange(300)), "one")[0, :, 0, 0]
    assert [int((drawn == n).sum()) for n in range(3)] == pytest.approx([100] * 3, abs=30)
    assert choose(masks, Key(0, 0, torch.arange(300)), "all").shape == (3, 300, 1, 2)


def test_a_share_of_the_ecgs_gets_a_random_block_that_the_masker_has_no_gradient_from():
    cfg, key = GameConfig(share=0.6, coverage=0.3), Key(0, 0, torch.arange(500))
    hidden = torch.full((1, 500, 1, 50), 0.5, requires_grad=True)
    mixed = with_random_blocks(hidden, key, cfg)
    mixed.sum().backward()
    played = hidden.grad[0, :, 0, 0].bool()
    assert int(played.sum()) == pytest.approx(300, abs=35)
    assert torch.equal(mixed[0, played], hidden[0, played])
    blocks = mixed[0, ~played, 0].detach()
    assert torch.equal(blocks.sum(-1), torch.full((len(blocks),), 15.0))
    assert ((blocks.diff() != 0).sum(-1) <= 2).all()
    half = with_random_blocks(hidden[:, 250:], Key(0, 0, torch.arange(250, 500)), cfg)
    assert torch.equal(half, mixed[:, 250:])
    assert with_random_blocks(hidden, key, GameConfig()) is hidden


def test_quantile_equals_numpys_midpoint():
    values = torch.rand(4, 50)
    for share in (0.02, 0.3, 0.5, 0.9):
        threshold = quantile(values, share)
        ordered = np.sort(values.numpy(), -1)
        count = round(share * 50)
        assert np.allclose(threshold[:, 0], (ordered[:, count - 1] + ordered[:, count]) / 2)


@pytest.mark.parametrize("coverage", [0.01, 0.25, 0.5, 0.75, 0.99])
def test_a_cell_is_hidden_as_a_whole_or_not_at_all(coverage):
    torch.manual_seed(3)
    cells = torch.rand(1, 8, 1, 25)
    hidden = binarise(cells.repeat_interleave(40, -1), GameConfig(coverage=coverage, slope=1e5))
    assert bool(((hidden < 1e-3) | (hidden > 1 - 1e-3)).all())
    count = hidden[..., ::40].sum(-1).round()
    assert bool((count == min(max(round(25 * coverage), 1), 24)).all())


def test_a_mask_that_is_the_same_everywhere_is_hidden_by_half():
    assert torch.equal(binarise(torch.full((1, 2, 1, 50), 0.3), GameConfig()), torch.full((1, 2, 1, 50), 0.5))


@pytest.mark.parametrize("bias", [-30.0, -6.0, 6.0, 30.0])
@pytest.mark.parametrize("masks", [1, 2, 3])
def test_a_masker_that_drifts_to_all_or_nothing_hides_the_same_and_goes_on_learning(masks, bias):
    """The flat ends of the sigmoid do not draw the hidden cells together, in fp32."""
    torch.manual_seed(5)
    cfg, logits = GameConfig(masks=masks), torch.randn(64, masks, 25)
    drift = torch.tensor([bias] + [0.0] * (masks - 1))[:, None]
    shifted = (logits + drift).requires_grad_()
    hidden, right = (binarise(soft_masks(x, cfg).transpose(0, 1), cfg)[0] for x in (shifted, logits))
    if masks < 3:  # the odds against one other shift as a whole
        assert torch.allclose(hidden, right, atol=1e-3)
    assert float((hidden > 0.9).float().mean()) > 0.4
    hidden[:, 0, 12].sum().backward()
    assert float(shifted.grad.abs().max()) > 1e-3


@pytest.mark.parametrize("masks", [1, 2, 6])
def test_the_sigmoid_of_log_odds_is_the_published_mask(masks):
    logits = 3 * torch.randn(4, masks, 50, dtype=torch.float64)
    published = logits.sigmoid() if masks == 1 else logits.softmax(1)
    assert torch.allclose(soft_masks(logits, GameConfig(masks=masks)).sigmoid()[:, :, 0], published, atol=1e-14)


def spoil_signal(encoder, masker, pair):
    pair.x[0, 0, 0] = float("nan")


def spoil_masker(encoder, masker, pair):
    next(masker.parameters()).data[0] = float("inf")


def spoil_last_layer(encoder, masker, pair):
    list(encoder.parameters())[-2].data[0] = float("nan")


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
@pytest.mark.parametrize("spoil", [spoil_signal, spoil_masker, spoil_last_layer])
@pytest.mark.parametrize("first", [True, False])
def test_a_non_finite_loss_stops_before_any_step(schedule, spoil, first):
    encoder, masker, pair = players(1)
    spoilt = Pair(pair.x.clone(), pair.v.clone(), pair.key)
    spoil(encoder, masker, spoilt)
    before = [p.clone() for p in [*encoder.parameters(), *masker.parameters()]]
    game = Game(Accumulating(encoder), Accumulating(masker), GameConfig(schedule=schedule), 0.3)
    with pytest.raises(RuntimeError, match="not finite on at least one rank; no weight was changed"):
        game.step([spoilt, pair] if first else [pair, spoilt], 0)
    after = [*encoder.parameters(), *masker.parameters()]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after))


@pytest.mark.parametrize("schedule", ["simultaneous", "alternating"])
def test_a_step_that_is_not_finite_is_skipped_by_both_players_and_batch_norm(schedule):
    encoder, masker, pair = players(1)
    encoder = Joined(nn.BatchNorm1d(3), encoder).double()
    spoilt = Pair(pair.x.clone().fill_(float("inf")), pair.v, pair.key)
    engines, skipped = (Accumulating(encoder, pairs=1), Accumulating(masker, pairs=1)), []
    game = Game(*engines, GameConfig(schedule=schedule), 0.3, skip=skipped.append)
    with pytest.raises(NonFiniteError) as error:
        game.step([spoilt], 0, stop=True)
    assert error.value.stop
    assert skipped == list(engines[: 1 + (schedule == "simultaneous")])
    assert (encoder[0].num_batches_tracked, encoder[0].running_mean.tolist()) == (0, [0.0] * 3)
    encoder.zero_grad()
    masker.zero_grad()
    game.step([pair], 1)
    assert encoder[0].num_batches_tracked > 0


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_masker_phase_that_is_not_finite_does_not_reach_the_masker(pairs):
    """The alternating masker sees the encoder after its update, here one that the step has thrown out of range."""
    encoder, masker, pair = players(1)
    before = [p.clone() for p in masker.parameters()]
    game = Game(Accumulating(encoder, 1e300, pairs), Accumulating(masker, 1.0, pairs), ALTERNATING, 0.3)
    with pytest.raises(RuntimeError, match="the masker was not changed"):
        game.step([pair] * pairs, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, masker.parameters()))


def test_a_masker_gradient_that_is_not_finite_does_not_reach_the_masker():
    """A finite loss whose gradient at the mask is not: the square root at 0."""

    class Root(nn.Module):
        def forward(self, *views):
            x = torch.cat(views)
            return torch.stack([x.mean((1, 2)), (x - x.detach()).abs().sum((1, 2)).sqrt()], 1)

    _, masker, pair = players(1)
    before = [p.clone() for p in masker.parameters()]
    encoder = PlainEngine(masker)
    encoder.module, encoder.step = Root(), lambda: None
    for schedule in ("simultaneous", "alternating"):
        game = Game(encoder, Accumulating(masker, 1.0), GameConfig(schedule=schedule), 0.3)
        with pytest.raises(RuntimeError, match="not finite"):
            game._masker_phase(game.masker, [pair]) if schedule == "alternating" else game.step([pair], 0)
        assert all(torch.equal(a, b) for a, b in zip(before, masker.parameters()))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(masks=0), dict(coverage=0.0), dict(slope=-1.0), dict(use="some"), dict(penalty="paper", ratio=1.2),
        dict(penalty="paper", masks=3), dict(schedule="other"), dict(masker_interval=0), dict(slope=float("nan")),
        dict(strength=float("nan")), dict(strength=-1.0), dict(resolution_s=0.0), dict(alpha=float("inf")),
        dict(ratio=0.0), dict(family="frequency"), dict(share=0.0), dict(warmup=1.0), dict(entropy=-1.0),
        dict(entropy=0.1), dict(smoothness=0.1), dict(penalty="paper"), dict(slope_start=5),
        dict(slope_rise=0.5), dict(warmup=0.6, strength_rise=0.5), dict(warmup=0.6, slope_start=2, slope_rise=0.5),
        dict(threshold="half", coverage=0.3),
        dict(alpha=0.2), dict(ratio=0.5), dict(use="all"),
    ],
)  # fmt: skip
def test_dials_that_cannot_work_are_refused(wrong):
    with pytest.raises(UserError, match=r"game\."):
        GameConfig(**wrong).check()


def test_the_penalty_of_masks_that_hide_all_is_its_largest():
    cfg = GameConfig(threshold="half", penalty="paper")
    for dtype in (torch.float32, torch.float64):
        prices = [float(cost(torch.full((2, 1, 1, 9), odds, dtype=dtype), cfg)) for odds in (0, 4, 9, 14, 18, 40)]
        assert prices == sorted(prices)
        assert prices[0] == pytest.approx(0.1)


def test_a_step_that_is_not_watched_is_the_same_with_fewer_figures():
    played = {}
    for watched in (True, False):
        encoder, masker, pair = players(2)
        game = Game(PlainEngine(encoder, 0.1), PlainEngine(masker, 0.1), GameConfig(masks=2, slope=5), 0.3)
        figures, _ = game.step([pair], 0, watched=watched)
        played[watched] = figures, [*encoder.parameters(), *masker.parameters()]
    assert set(played[False][0]) == {"loss", "accuracy", "penalty"}
    assert {"coverage", "mask_sameness", "alignment", "uniformity"} <= set(played[True][0])
    assert all(torch.equal(value, played[True][0][name]) for name, value in played[False][0].items())
    assert all(torch.equal(a, b) for a, b in zip(played[False][1], played[True][1]))


def test_no_cost_costs_nothing():
    assert cost(torch.rand(2, 2, 1, 5), GameConfig()) == 0


def test_a_spectrum_is_inverted_exactly_and_a_hidden_band_is_gone():
    cfg, rate, hop = GameConfig(family="spectral"), 100.0, 40
    time = torch.arange(1000, dtype=torch.float64) / rate
    v = torch.stack([torch.sin(2 * torch.pi * 5 * time), torch.sin(2 * torch.pi * 20 * time)])[None]
    hidden = torch.zeros(1, 1, hop + 1, 1000 // hop + 1, dtype=torch.float64)
    assert torch.equal(cover(v, hidden, cfg, hop), v)
    assert cover(v, hidden + 1, cfg, hop).abs().max() < 1e-12
    hidden[:, :, 12:] = 1  # bins of 1.25 Hz: from 15 Hz on
    left = cover(v, hidden, cfg, hop)[0, :, 100:-100]
    assert (left[0] - v[0, 0, 100:-100]).abs().max() < 0.02
    assert left[1].abs().max() < 0.02


@pytest.mark.parametrize(("length", "hop"), [(1000, 40), (1000, 77), (1039, 40), (2599, 100), (41, 40), (7, 3)])
def test_what_is_left_of_a_spectrum_is_as_large_at_its_end_as_elsewhere(length, hop):
    torch.manual_seed(0)
    cfg = GameConfig(family="spectral")
    v = torch.randn(8, 2, length, dtype=torch.float64)
    logits = torch.randn(8, cfg.channels(2, hop), length, dtype=torch.float64)
    masks = soft_masks(logits, cfg, hop)
    assert masks.shape == (8, 1, 1, hop + 1, -(-length // hop) + 1)
    left = cover(v, (masks[:, 0] > 0).double(), cfg, hop)
    assert left.abs().max() < 3 * v.abs().max()
    assert cover(v, torch.ones_like(masks[:, 0]), cfg, hop).abs().max() < 1e-12
    halves = cover(v, torch.full_like(masks[:, 0], 0.5), cfg, hop)
    assert torch.allclose(halves, v / 2, atol=1e-12)


@pytest.mark.parametrize("family", ["time", "lead", "spectral"])
def test_every_family_hides_what_the_config_says(family):
    torch.manual_seed(3)
    cfg = GameConfig(family=family, coverage=0.3, slope=200)
    masker, x = UNet(12, cfg.channels(12, 40), stride=40), torch.randn(8, 12, 1000)
    with torch.no_grad():
        game = Game(None, masker, cfg, 0.1, 40)
        _, hidden = game.hide(masker, Pair(x, x, Key(0, 0, torch.arange(8))))
    assert hidden.shape == {"time": (1, 8, 1, 1000), "lead": (1, 8, 12, 1000), "spectral": (1, 8, 1, 41, 26)}[family]
    assert torch.allclose(hidden.flatten(3).mean(-1), torch.tensor(0.3), atol=0.03)
    assert all(second.shape == x.shape for second in game.covered(x, hidden))


def test_dials_follow_their_schedules():
    cfg = GameConfig(warmup=0.2, strength=2.0, strength_rise=0.4, slope=20, slope_start=5, slope_rise=0.5, share=0.7)
    assert [cfg.at(p).share for p in (0.0, 0.19, 0.2, 1.0)] == [0.0, 0.0, 0.7, 0.7]
    assert [cfg.at(p).strength for p in (0.1, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.0, 0.0, 1.0, 2.0, 2.0])
    assert [cfg.at(p).slope for p in (0.0, 0.2, 0.45, 0.7, 1.0)] == pytest.approx([5.0, 5.0, 10.0, 20.0, 20.0])
    assert GameConfig().at(0.0) == GameConfig()


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_held_out_losses_are_those_of_the_masks_they_name(share):
    encoder, masker, pair = players(1)
    cfg = GameConfig(share=share)
    game, key = Game(PlainEngine(encoder), PlainEngine(masker), cfg, 0.3), pair.key.with_view(MASK_VIEW)
    found = game.evaluate(pair)
    own = binarise(choose(soft_masks(masker(pair.v), cfg), key, "one"), cfg)
    others = own[:, [3, 4, 0, 1, 2]]
    for name, hidden in (
        ("loss", with_random_blocks(own, key, cfg)),
        ("masked_loss", own),
        ("others_masks_loss", others),
    ):
        wanted = nt_xent(encoder(pair.x), encoder(pair.v * (1 - hidden[0])), 0.3)[0]
        assert float(found[name]) == pytest.approx(float(wanted.detach()), rel=1e-9)
    assert (found["loss"] == found["masked_loss"]) == (share == 1)


def test_before_its_warm_up_ends_the_masker_rests_and_blocks_are_hidden():
    encoder, masker, pair = players(1)
    game = Game(PlainEngine(encoder), PlainEngine(masker), GameConfig(warmup=0.5), 0.3, 1, total=4)
    seen: list[torch.Tensor] = []
    game.covered = lambda v, hidden: seen.append(hidden) or Game.covered(game, v, hidden)
    game.step([pair], 1)
    assert all(p.grad is None for p in masker.parameters())
    assert set(seen[0].unique().tolist()) == {0.0, 1.0}
    game.step([pair], 2)
    assert all(p.grad is not None for p in masker.parameters())
