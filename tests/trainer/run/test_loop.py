import types
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.handmade import make_shards
from trainer.config import PretrainConfig
from trainer.data.order import Order
from trainer.data.remote.board import ShardError
from trainer.data.shards import Shards
from trainer.data.stream import Batch
from trainer.game.game import Game
from trainer.game.maskers.unet import UNet
from trainer.game.masking import GameConfig
from trainer.run import log_line, loop
from trainer.run.heldout import heldout_count, heldout_loss, kept_shards
from trainer.run.pairs import pairs_of
from trainer.views import build
from trainer.views.pairing import Pairing
from umbra.config import load
from umbra.encoders.encoder import Scaling


@pytest.mark.parametrize(("upload", "samples"), [(False, 256), (True, 100)])
def test_the_masks_of_a_recording_are_drawn_only_when_recordings_may_be_sent(
    upload, samples, tmp_path, monkeypatch, capsys
):
    """A synthetic ECG by default; with `wandb.upload_ecgs` the first training ECG too, marked as a recording. Both are
    as long as a view."""
    train, drawn, sent = Shards(make_shards(tmp_path / "s", {"train": ["SR", "AFIB"]}), "train"), [], []
    monkeypatch.setattr("trainer.run.log_line.ecg_with_masks", lambda ecg, masks, *more: drawn.append((ecg, masks)))
    masker = UNet(12, 1, 8, width=8)
    run = types.SimpleNamespace(
        cfg=load(PretrainConfig, None, [f"wandb.upload_ecgs={upload}"]),
        world=types.SimpleNamespace(device=torch.device("cpu"), is_main=True),
        folder=tmp_path,
        train=train,
        order=Order(train.counts, 0, 2, 1),
        scaling=Scaling([0.0] * 12, [0.5] * 12),
        pairing=Pairing("crops", samples),
        engines={"masker": masker},
        game=Game(None, masker, GameConfig(), 0.1, 8),
        metrics=types.SimpleNamespace(figure=lambda step, name, path, recording: sent.append((name, recording))),
    )
    log_line._draw_masks(run, 7)
    assert sent == [("masks", False), ("recording", True)][: 1 + upload]
    assert all(masks.shape == (1, samples) for _, masks in drawn)
    recording = train.read_mv(np.array([0]))[0, :, :samples]
    assert [np.array_equal(ecg, recording) for ecg, _ in drawn] == [False, True][: 1 + upload]
    monkeypatch.setattr("trainer.run.log_line.ecg_with_masks", lambda *_: Path("/dev/full").write_text("x"))
    log_line._draw_masks(run, 8)  # a full disk is no end of the run
    assert len(sent) == 1 + upload
    assert "masks-000008.png could not be written ([Errno 28] No space left on device)" in capsys.readouterr().out


def test_the_second_view_is_made_of_the_partners(monkeypatch):
    seen = []
    views = [
        types.SimpleNamespace(
            signal_views=lambda x, key, rate, n=n: seen.append((n, x)) or x, mask_views=lambda x, *_: x
        )
        for n in (0, 1)
    ]
    manifest = types.SimpleNamespace(rate=100.0)
    run = types.SimpleNamespace(
        cfg=load(PretrainConfig, None, []),
        train=types.SimpleNamespace(resolution_mv=0.5, manifest=manifest),
        order=Order((8,), 0, 4, 1),
        scaling=lambda x: x,
        pairing=Pairing("patient", 8),
        first=views[0],
        second=views[1],
        patients=None,
    )
    rows = torch.arange(4).reshape(2, 2)
    signals, partners = torch.ones(2, 2, 12, 8, dtype=torch.int16), torch.full((2, 2, 12, 8), 4, dtype=torch.int16)
    for others, second in ((partners, 2.0), (None, 0.5)):
        seen.clear()
        pairs = pairs_of(run, Batch(0, signals, rows, rows.numpy(), others))
        assert [(n, x.unique().tolist()) for n, x in seen] == [(0, [0.5]), (1, [second])] * 2
        assert [pair.key.index.tolist() for pair in pairs] == rows.tolist()


@pytest.mark.parametrize("kind", ["same", "halves", "patient"])
def test_held_out_pairs_are_made_like_those_of_training(kind, tmp_path):
    heldout = Shards(make_shards(tmp_path / "s", {"train": ["SR"] * 2, "val": ["SR", "AFIB"] * 4}), "val")
    seen = []
    run = types.SimpleNamespace(
        cfg=load(PretrainConfig, None, ["batch.global=8"]),
        world=types.SimpleNamespace(rank=0, size=1, device=torch.device("cpu")),
        train=heldout,
        heldout=heldout,
        order=Order((8,), 0, 8, 8),
        scaling=lambda x: x,
        pairing=Pairing(kind, 128 if kind == "halves" else 256),
        first=build([], heldout.manifest.leads),
        second=build([], heldout.manifest.leads),
        game=types.SimpleNamespace(evaluate=lambda pair: seen.append(pair) or {}),
        patients=None,
        partners=(lambda rows, epoch: rows ^ 1) if kind == "patient" else None,
    )
    heldout_loss(run)
    x = torch.from_numpy(heldout.read_mv(np.arange(8)))
    wanted = {"same": (x, x), "halves": (x[..., :128], x[..., 128:]), "patient": (x, x[[1, 0, 3, 2, 5, 4, 7, 6]])}
    assert all(torch.equal(a, b) for a, b in zip((seen[0].x, seen[0].v), wanted[kind]))
    assert seen[0].key.index.tolist() == list(heldout.rows)


def test_what_a_run_reads_beside_its_batches_stays_in_the_cache(tmp_path):
    root = make_shards(tmp_path / "s", {"train": ["SR"] * 8, "val": ["SR"] * 6}, shards_of_train=4)
    train, heldout = Shards(root, "train"), Shards(root, "val")
    order = Order(train.counts, 0, 2, 1, changes=((0, (0, 1)), (5, (0,))))

    def kept(*words, heldout=heldout):
        cfg = load(PretrainConfig, None, ["batch.global=4", *words])
        return [shard.name for shard in kept_shards(cfg, order, train, heldout)]

    assert kept() == ["val-000000.tar"]
    assert kept("log.heldout_every=0") == kept(heldout=None) == []
    assert kept("wandb.upload_ecgs=true") == ["train-000001.tar", "val-000000.tar"]


def test_the_reason_is_the_same_on_every_rank_and_only_for_steps_that_need_it(monkeypatch):
    error = ShardError("shard x cannot be fetched", "x", 5)
    run = types.SimpleNamespace(cache=types.SimpleNamespace(failure=error, failure_by=lambda step: error))
    assert [loop.missing(run, step) for step in (4, 5, 6)] == ["", str(error), str(error)]
    assert loop.missing(types.SimpleNamespace(cache=None), 5) == ""
    monkeypatch.setattr("trainer.distributed.gather", lambda mine: ["", "another machine's", mine])
    assert loop.missing(run, 4) == loop.missing(run, 5) == "another machine's"


@pytest.mark.parametrize(
    ("contrast", "there", "lanes", "seen"),
    [(256, 178, 64, 128), (128, 178, 64, 128), (256, 40, 64, 40), (16, 99, 4, 16)],
)
def test_as_many_held_out_ecgs_are_seen_at_any_world_size(contrast, there, lanes, seen):
    found = heldout_count(contrast, there, lanes)
    assert found == seen
    if seen >= lanes:
        assert {found // world * world for world in (1, 2, 4)} == {seen}
