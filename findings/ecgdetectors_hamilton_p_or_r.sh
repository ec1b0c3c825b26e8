#!/bin/sh
# py-ecg-detectors 1.3.5: hamilton_detector on the same 35 beats (P 0.1 mV, R 1 mV) at 500 Hz in 24 noises of 0.01 mV.
# Expected: R peaks (as its text calls what is returned), at worst with one delay of the filters for all.
# Seen:     in some records the marks lie 34 or 64 ms after R, in the others 130 ms before it, on the filtered P wave:
#           whichever wave is taken first keeps the next away for 0.3 s, and so on to the end. Intervals are right.
# Why it matters: beats cut out around these marks are shifted by up to 190 ms between records, and a check of the
#           heart rate does not see it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile py-ecg-detectors==1.3.5 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from ecgdetectors import Detectors

RATE = 500
at = 0.5 + 0.8 * np.arange(35)
t = np.arange(29 * RATE) / RATE - at[:, None]
waves = [(0.1, -0.17, 0.02), (-0.1, -0.025, 0.008), (1, 0, 0.009), (-0.2, 0.028, 0.009), (0.25, 0.26, 0.05)]
clean = sum(high * np.exp(-((t - where) ** 2) / 2 / width**2) for high, where, width in waves).sum(0)
late, rates = [], []
for seed in range(24):
    noise = 0.01 * np.random.default_rng(seed).standard_normal(len(clean))
    marks = np.array(Detectors(RATE).hamilton_detector(clean + noise)) / RATE
    late.append(round(1000 * float(np.median([marks[np.abs(marks - r).argmin()] - r for r in at[3:-3]]))))
    rates.append(round(60 / float(np.median(np.diff(marks)))))
print(f"py-ecg-detectors {version('py-ecg-detectors')}, numpy {np.__version__}")
print("expected: one median of mark minus R, in ms, for all 24 records")
print(f"seen:     {late}")
print(f"heart rates (75): {sorted(set(rates))}")
before, after = [x for x in late if -150 < x < -110], [x for x in late if 20 < x < 80]
assert set(rates) <= {74, 75, 76}
sys.exit(0 if len(before) >= 4 and len(after) >= 4 else "this has changed")
PYTHON
