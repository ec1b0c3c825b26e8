#!/bin/sh
# ecglib 1.1.1: its random augmentations and SomeOf on 12-lead ECGs, in an EcgDataset as its own examples have it.
# Expected: RandomLeadCrop(n=1) hides one lead in each ECG, drawn anew each time, as its description has it: each of the
#           twelve once in 12 times; the others likewise. SomeOf(n=2) applies two of its techniques.
# Seen:     1. the leads of the first ECG are those of all that follow: the object keeps its choice as the list that it
#              chooses from. Of 240 ECGs in two epochs all 240 lose one and the same lead; RandomTimeCrop, RandomSumAug
#              and RandomConvexAug (n=4, as in its README) change the same leads in each. Another seed, other leads.
#              (With workers of a DataLoader it is one choice for each worker and epoch, so one for a whole batch.)
#           2. SomeOf applies each of its n techniques to the ECG as it came and returns what the last one made: of a
#              cut and a normalization one is always missing.
# Why it matters: a network that should learn to do without any lead learns to do without one that is never there, while
#           eleven are never missing. One ECG in a plot looks right, and so does the list of what was applied.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scipy==1.17.1 pandas==3.0.2 wfdb==4.3.1 \
    PyWavelets==1.9.0 ecg-plot==0.2.8 pillow==12.1.1 requests==2.34.2 tqdm==4.70.1 PyYAML==6.0.4
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps ecglib==1.1.1 fastai==2.7.19 fastcore==1.5.55 \
    fastprogress==1.0.3
cd "$folder"
MPLBACKEND=agg "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import random
import sys
from collections import Counter
from importlib.metadata import version

import numpy as np
import pandas
from ecglib import preprocessing
from ecglib.data import EcgDataset

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RECORDS = 120
noise = np.random.default_rng(1)
for i in range(RECORDS):
    np.savez(f"{i}.npz", noise.standard_normal((12, 500)).cumsum(axis=1))
table = pandas.DataFrame({"fpath": [f"{i}.npz" for i in range(RECORDS)], "frequency": 100})


def signals(augmentation=None):
    """All ECGs of one epoch: records x leads x samples"""
    data = EcgDataset(table, [[0.0]] * RECORDS, frequency=100, data_type="npz", ecg_length=5, augmentation=augmentation)
    return np.stack([data[i][1][0][0].numpy() for i in range(RECORDS)])


def hidden(seed):
    """How often each lead is hidden in two epochs"""
    np.random.seed(seed)
    augmentation = preprocessing.RandomLeadCrop(n=1)
    epochs = np.concatenate([signals(augmentation) for _ in range(2)])
    counts = (epochs == 0).all(axis=2).sum(axis=0)
    return {LEADS[i]: int(counts[i]) for i in np.flatnonzero(counts)}


print(", ".join(f"{name} {version(name)}" for name in ("ecglib", "torch", "numpy", "fastai")))
seeds = [hidden(seed) for seed in range(4)]
print(f"1. RandomLeadCrop(n=1), two epochs of {RECORDS} ECGs; expected: each lead hidden about {RECORDS / 6:.0f} times")
for seed, counts in enumerate(seeds):
    print(f"   seen with seed {seed}: {counts}")
one = all(list(counts.values()) == [2 * RECORDS] for counts in seeds) and len({*map(str, seeds)}) > 1

np.random.seed(0)
plain = signals()
others = {"RandomTimeCrop": dict(time=100, n=3), "RandomSumAug": dict(n=2), "RandomConvexAug": dict(n=4)}
for name, parameters in others.items():
    changed = (signals(getattr(preprocessing, name)(**parameters)) != plain).any(axis=2)
    ever = [LEADS[i] for i in np.flatnonzero(changed.any(axis=0))]
    print(f"   {name}({', '.join(f'{k}={v}' for k, v in parameters.items())}): leads ever changed: {ever}")
    one &= len(ever) == parameters["n"]

random.seed(0)
both = preprocessing.SomeOf([preprocessing.EdgeCut([1, 1], frequency=100), preprocessing.Normalization("min_max")], n=2)
seen = Counter()
for _ in range(200):
    ecg = both(noise.standard_normal((12, 500)) + 5)
    normalized = bool(ecg.min() >= 0 and ecg.max() <= 1)
    seen[f"{ecg.shape[1] / 100:.0f} s, {'0 to 1' if normalized else 'not normalized'}"] += 1
print("2. SomeOf(a cut of 1 s at both ends, a normalization to 0 to 1, n=2) on 5 s; expected: 3 s, 0 to 1")
print(f"   seen: {dict(seen)}")
two = set(seen) == {"3 s, not normalized", "5 s, 0 to 1"}
sys.exit(0 if one and two else "this has changed")
PYTHON
