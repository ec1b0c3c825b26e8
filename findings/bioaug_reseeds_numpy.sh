#!/bin/sh
# bioaug 0.1.4: CutMix, MixUp, GaussianNoise and TimeWarping in a loop of epochs that shuffles with numpy's own functions.
# Expected: each call draws anew; numpy.random.seed makes a run repeatable; a shuffle owes nothing to an augmentation.
# Seen:     1. CutMix and MixUp set the seed of all of numpy to 42 at each batch they touch: the same cut (lam 0.50, from
#              sample 330 of 1000) and the same partners in every batch. Whatever the seed was at the start,
#              numpy.random.permutation gives one and the same order of records in every later epoch (with p=0.5 one
#              or two orders).
#           2. GaussianNoise and TimeWarping set that seed from the clock, to one of 100: 1500 calls give
#              100 noises and 100 warps, and no run can be repeated.
# Why it matters: pre-training sees each ECG beside the same others, mixed at one place, epoch after epoch; weights,
#           splits and masks that are drawn with numpy later are the same 100 at best. Losses look well.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile bioaug==0.1.4 numpy==2.4.6 scipy==1.17.1 pandas==3.0.0 matplotlib==3.11.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import io
import sys
from importlib.metadata import version

import bioaug
import numpy as np

# of batch row i, lead 0 is i + 1 throughout, so that the result tells what was mixed, and where
batch = np.ones((8, 1000, 12)) * np.arange(1, 9)[:, None, None], np.eye(8)


def run(name, p, start):
    """(orders of the epochs, what was done to each batch that was touched)"""
    np.random.seed(start)
    mix, orders, done = getattr(bioaug, name)(p=p), [], []
    for _ in range(6):
        orders.append(tuple(np.random.permutation(64).tolist()))
        for _ in range(4):
            with contextlib.redirect_stdout(io.StringIO()):
                x, y = mix(batch)
            if x is not batch[0]:
                done.append((x.tobytes(), y.tobytes()))
    return orders, done


print(f"bioaug {version('bioaug')}, numpy {np.__version__}")
print("expected: another order in each epoch, 8 in the last 4 epochs of 2 seeds; as many mixtures as batches mixed")
mixes = True
for name in ("CutMix", "MixUp"):
    for p in (1.0, 0.5):
        runs = [run(name, p, start) for start in (1, 2)]
        late = {order for orders, _ in runs for order in orders[2:]}
        done = [each for _, touched in runs for each in touched]
        print(f"{name}, p={p}, 2 seeds: {len(done)} mixed, {len(set(done))} different; {len(late)} orders in the last 4 epochs")
        mixes = mixes and len(done) >= 8 and len(set(done)) == 1 and len(late) <= (1 if p == 1 else 2)
ecg = np.random.default_rng(0).standard_normal((250, 2))
counts, repeats = [], []
for name in ("GaussianNoise", "TimeWarping"):
    augment = getattr(bioaug, name)(p=1)
    counts.append(len({augment(ecg).tobytes() for _ in range(1500)}))
    seeded = set()
    for _ in range(20):
        np.random.seed(3)
        seeded.add(augment(ecg).tobytes())
    repeats.append(len(seeded))
    print(f"{name}: {counts[-1]} different of 1500 calls; {repeats[-1]} different of 20 after numpy.random.seed(3)")
hundred = all(90 <= count <= 100 for count in counts) and min(repeats) > 1
sys.exit(0 if mixes and hundred else "this has changed")
PYTHON
