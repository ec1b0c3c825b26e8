#!/bin/sh
# wfdb 4.3.1: xqrs_detect, the QRS detector, on one ECG (32 beats, R 1 mV, noise 0.01 mV) at several sampling rates.
# Expected: the same beats at each rate, within 10 ms of R; the detector is told the rate.
# Seen:     none at all at 1000 Hz and 2000 Hz, but all if the same ECG is twice as large; at 500 Hz none if R is
#           0.15 mV. At 100 Hz, broad QRS (0.1 s) are placed 60 to 70 ms too early. No warning, at most an empty array.
#           (It filters with a wavelet of 4 samples whatever the rate, and learns its thresholds from beats alike to
#           one. Where these are too few, as at 500 Hz and more, thresholds are fixed in the signal's unit.)
# Why it matters: beats cut out, heart rates and quality rules by "beats found" depend on how a data set was sampled.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile wfdb==4.3.1 numpy==2.4.6 pandas==3.0.0 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import wfdb
from wfdb.processing import xqrs_detect

AT = np.arange(32) * 0.85 + 0.5 + 0.02 * np.random.default_rng(9).standard_normal(32)


def ecg(rate, wide, seed):
    t = np.arange(28 * rate) / rate - AT[:, None]
    waves = [(0.1, -0.2, 0.02), (1, 0, 0.009 * wide), (-0.2, 0.028 * wide, 0.009 * wide), (0.25, 0.3, 0.05)]
    clean = sum(high * np.exp(-((t - at) ** 2) / 2 / width**2) for high, at, width in waves).sum(0)
    return clean + 0.01 * np.random.default_rng(seed).standard_normal(len(clean))


def found(rate, size=1.0, wide=1.0):
    """(least, most beats found within 150 ms of R, of 5 seeds; the median of mark minus R in ms)"""
    beats, late = [], []
    for seed in range(5):
        marks = xqrs_detect(size * ecg(rate, wide, seed), rate, verbose=False) / rate
        near = [marks[np.abs(marks - r).argmin()] - r for r in AT] if len(marks) else []
        near = [d for d in near if abs(d) < 0.15]
        beats.append(len(near))
        late += near
    return min(beats), max(beats), round(1000 * float(np.median(late))) if late else None


cases = [(250, 1, 1), (500, 1, 1), (1000, 1, 1), (2000, 1, 1), (1000, 2, 1), (250, 0.15, 1), (500, 0.15, 1)]
cases += [(250, 1, 2.5), (100, 1, 2.5)]
seen = {case: found(*case) for case in cases}
print(f"wfdb {wfdb.__version__}, numpy {np.__version__}")
print("expected: 32 beats (those found within 150 ms of R), 0 ms (median of mark minus R)")
for (rate, size, wide), (least, most, late) in seen.items():
    print(f"{rate:4d} Hz, R {size} mV, QRS {wide} times as wide: {least} to {most}, {late} ms")
good = [(250, 1, 1), (500, 1, 1), (1000, 2, 1), (250, 0.15, 1), (250, 1, 2.5)]
as_hoped = all(seen[case][0] >= 31 and abs(seen[case][2]) <= 10 for case in good)
none = all(seen[case][1] == 0 for case in [(1000, 1, 1), (2000, 1, 1), (500, 0.15, 1)])
sys.exit(0 if as_hoped and none and seen[100, 1, 2.5][2] <= -40 else "this has changed")
PYTHON
