#!/bin/sh
# ecgen-eval 0.5.0: its scores mmd and heart_rate of made-up "synthetic" ECGs against "real" ones, 100 of 10 s each.
# Expected: mmd (maximum mean discrepancy, lower is better, 0 for identical distributions) is near 0 for ECGs of the same
#           kind and far from it for ECGs twice as high, for 100 copies of one ECG, or for uV instead of mV. heart_rate, a
#           Jensen-Shannon divergence of heart rates, is 0.69, its maximum, for ECGs of twice the rate.
# Seen:     1. mmd is 0.000 for the same kind, for twice the height, and for copies of one ECG; 0.05 for uV (other draws:
#              at most 0.1). Pairs of two real, of two synthetic, and of one of each are compared by kernels of three
#              widths, each from its own median distance, so that spread and distance hardly count. Of the same features
#              with one width for all pairs it is 0.00, 0.43, 0.48 and 0.76.
#           2. heart_rate is 0.21 for twice the rate and 0.23 for the same kind: two beats cannot be nearer than 0.5 s, and
#              rates of 120 to 180 bpm are read as 83 on average. (Its source speaks of 1.5 s, for 40 bpm at least.)
# Why it matters: models are chosen and published by such scores. A generator that always draws one ECG, or gets the height
#           wrong, has a perfect mmd, and one that makes nothing but tachycardia a good heart_rate.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.2.6 scipy==1.15.3 pandas==2.3.3 tqdm==4.67.1
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps ecgen-eval==0.5.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from ecgen_eval import AVAILABLE_METRICS

FS, N = 500, 100
time = np.arange(10 * FS) / FS
WAVES = ((0.12, -0.16, 0.02), (1, 0, 0.01), (-0.2, 0.03, 0.01), (0.3, 0.25, 0.04))  # height (mV), middle, width (s)


def ecgs(seed, rates=(60, 90), heights=(0.5, 1.5), n=N):
    """n ECGs of one lead with rates (bpm) and heights drawn evenly, (n, 1, samples), and the rates"""
    rng = np.random.default_rng(seed)
    signals, drawn = 0.01 * rng.standard_normal((n, 1, time.size)), rng.uniform(*rates, n)
    for signal, rate in zip(signals[:, 0], drawn):
        rr, height = 60 / rate, rng.uniform(*heights)
        for beat in np.arange(rng.uniform(0, rr), 10.5, rr):
            for share, middle, width in WAVES:
                signal += height * share * np.exp(-0.5 * ((time - beat - middle * rr**0.5) / width) ** 2)
    return signals, drawn


def one_width(a, b):
    """MMD of the same features and factors, with one kernel width for all pairs"""
    a, b = (AVAILABLE_METRICS["mmd"]._extract_features(x[:, 0]).astype(float) for x in (a, b))
    both = np.concatenate([a, b])
    distances = ((both[:, None] - both[None]) ** 2).sum(axis=-1)
    median = np.median(distances[np.triu_indices(2 * N, 1)])
    kernel = sum(np.exp(-distances / (2 * factor * median)) for factor in (0.1, 1, 10)) / 3
    np.fill_diagonal(kernel, 0)
    return kernel[:N, :N].sum() / N / (N - 1) + kernel[N:, N:].sum() / N / (N - 1) - 2 * kernel[:N, N:].mean()


def divergence(a, b):
    """Jensen-Shannon divergence of two samples of rates, in 50 bins as in the package"""
    bins = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()), 51)
    a, b = (np.histogram(x, bins)[0] / x.size + 1e-12 for x in (a, b))
    return sum((x * np.log(2 * x / (a + b))).sum() for x in (a, b)) / 2


(real, true), (same, same_true), (fast, fast_true) = ecgs(10), ecgs(11), ecgs(11, (120, 180))
copies = ecgs(15, heights=(1, 1), n=1)[0] + 0.01 * np.random.default_rng(3).standard_normal((N, 1, time.size))
fakes = {"same kind": same, "twice as high": 2 * same, "one ECG 100 times": copies, "uV instead of mV": 1000 * same}
print(f"ecgen-eval {version('ecgen-eval')}, numpy {np.__version__}, scipy {version('scipy')}")
print("1. mmd: expected (one width for all pairs), seen")
mmd = {}
for name, fake in fakes.items():
    mmd[name] = one_width(real, fake), AVAILABLE_METRICS["mmd"]().compute(real, fake).score
    print(f"   {name:18} {mmd[name][0]:6.3f} {mmd[name][1]:6.3f}")
print("2. heart_rate: expected (of the true rates), seen; mean rate (bpm) expected, seen")
rate = {}
for name, fake, rates in (("same kind", same, same_true), ("twice the rate", fast, fast_true)):
    result = AVAILABLE_METRICS["heart_rate"]().compute(real, fake, ["II"])
    rate[name] = divergence(true, rates), result.score, rates.mean(), result.extra["II"]["synth_hr_mean"]
    print(f"   {name:18} {rate[name][0]:.2f} {rate[name][1]:.2f}; {rate[name][2]:.1f} {rate[name][3]:.1f}")
far = all(mmd[name][0] > 0.3 for name in mmd if name != "same kind") and abs(mmd["same kind"][0]) < 0.03
blind = all(pair[1] < 0.1 for pair in mmd.values())
fast, slow = rate["twice the rate"], rate["same kind"]
halved = fast[0] > 0.65 and fast[1] < 0.35 and fast[3] < 90 and abs(slow[3] - slow[2]) < 3
sys.exit(0 if far and blind and halved else "this has changed")
PYTHON
