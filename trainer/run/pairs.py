"""From a batch of the stream to the pairs that are contrasted."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trainer import heartbeat
from trainer.data.stream import Batch, millivolts
from trainer.game.game import Pair
from trainer.run.parts import Run
from trainer.views import Key

KEYS = 4  # from one candidate to the next: view 1, view 2, and MASK_VIEW of the masker


def pairs_of(run: Run, batch: Batch) -> list[Pair]:
    """The contrast batches of a step: int16 -> views cut -> mV -> signal views -> scaled -> mask views."""
    epoch = run.order.key(batch.step)
    others = batch.partners if batch.partners is not None else [None] * len(batch.signals)
    keys = (Key(run.cfg.seed, epoch, rows) for rows in batch.rows)
    return [hard_pair(run, *pair) for pair in zip(batch.signals, keys, others)]


def hard_pair(run: Run, signals: Tensor, key: Key, other: Tensor | None = None) -> Pair:
    """As `make_pair`; with `views.candidates` the pair of each ECG that the encoder finds the least alike (Ferreira et
    al. 2024, arXiv 2310.03940; there by the loss, here by the cosine, which does not hang on the batch)."""
    pair = make_pair(run, signals, key, other)
    if run.cfg.views.candidates == 1:
        return pair
    heartbeat.doing("hard views")
    least = run.game.cosines(pair)
    for candidate in range(1, run.cfg.views.candidates):
        another = make_pair(run, signals, key, other, candidate)
        cosine = run.game.cosines(another)
        harder = (cosine < least)[:, None, None]
        x, v = (torch.where(harder, new, old) for new, old in ((another.x, pair.x), (another.v, pair.v)))
        pair, least = replace(pair, x=x, v=v), torch.minimum(cosine, least)
    return pair


def make_pair(run: Run, signals: Tensor, key: Key, other: Tensor | None = None, candidate: int = 0) -> Pair:
    """The two sides of a contrast batch, of the same signals or the second of `other` ones of the same patients. Each
    `candidate` has random numbers of its own."""
    sides, rate = [], run.train.manifest.rate
    keys = key.with_view(KEYS * candidate), key.with_view(KEYS * candidate + 1)
    cut = run.pairing.cut(signals, signals if other is None else other, keys)
    for views, x, mine in zip((run.first, run.second), cut, keys):
        side = run.scaling(views.signal_views(millivolts(x, run.train.resolution_mv), mine, rate))
        sides.append(views.mask_views(side, mine, rate))
    return Pair(sides[0], sides[1], key, None if run.patients is None else run.patients[key.index])
