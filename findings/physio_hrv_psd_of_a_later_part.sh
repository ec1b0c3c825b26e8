#!/bin/sh
# physio 0.3.3: compute_ecg finds the R peaks of 20 minutes of ECG; compute_hrv_psd of the peaks of one part of them.
# Expected: power depends on the distances of the beats. The rhythm swings by 30 ms at 0.1 and at 0.25 Hz, so LF and HF are
#           near 450 ms2 in each part of 10 minutes, wherever it starts.
# Seen:     so it is from 0 s. From 30 s on LF is 2300 and HF still right; from 60 s on LF is 540000; from 600 s on 3e11,
#           and by linear interpolation 0.9 with HF 0.001. The grid goes from 0 s to the part's length, not from its first
#           beat to its last: what comes before is extrapolated, what comes after is left out. compute_ecg_metrics of the
#           same peaks is right, and with the part's start taken off their times the power is too. No warning.
# Why it matters: who leaves out a first half minute of settling, or goes through a recording by windows, gets an LF/HF
#           of 5 for one of 1, and later none that has anything to do with the heart.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile physio==0.3.3 numpy==2.4.6 pandas==3.0.0 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W error::UserWarning - <<'PYTHON'
import contextlib
import io
import sys
from importlib.metadata import version

import numpy as np
import physio

RATE, SECONDS, PART = 250, 1200, 600
times = [0.6]
while times[-1] < SECONDS - 1.4:
    swing = np.sin(2 * np.pi * 0.1 * times[-1]) + np.sin(2 * np.pi * 0.25 * times[-1])
    times.append(times[-1] + 0.8 + 0.03 * swing)
t = np.arange(SECONDS * RATE) / RATE
ecg = 0.01 * np.random.default_rng(0).standard_normal(len(t))
for time in times:
    near = slice(int((time - 0.3) * RATE), int((time + 0.3) * RATE))
    ecg[near] += np.exp(-((t[near] - time) ** 2) / 2 / 0.012**2)
with contextlib.redirect_stdout(io.StringIO()):
    _, peaks = physio.compute_ecg(ecg, RATE)
assert len(peaks) == len(times) and np.abs(peaks["peak_time"] - times).max() < 1 / RATE


def power(part, kind="cubic"):
    """LF and HF (ms2)"""
    metrics = physio.compute_hrv_psd(part, units="ms", interpolation_kind=kind)[2]
    return np.array([metrics["lf"], metrics["hf"]])


print(", ".join(f"{name} {version(name)}" for name in ("physio", "numpy", "pandas", "scipy")))
print("expected: LF and HF near 450 ms2 in each part of 10 minutes")
seen = {}
for start in (0, 30, 60, 600):
    part = peaks[(peaks["peak_time"] >= start) & (peaks["peak_time"] < start + PART)]
    from_zero = power(part.assign(peak_time=part["peak_time"] - start))
    seen[start] = power(part)
    deviation = physio.compute_ecg_metrics(part)["HRV_SD"]
    print(f"from {start:3} s: LF {seen[start][0]:.4g}, HF {seen[start][1]:.4g}; start taken off: {from_zero.round()}")
    assert np.abs(from_zero - 450).max() < 15 and abs(deviation - 30) < 1
linear = power(part, "linear")
print(f"from 600 s, linear: LF {linear[0]:.2g}, HF {linear[1]:.2g}; HRV_SD of each part is 30 ms, as it should be")
right = np.abs(seen[0] - 450).max() < 15
half_minute = 2000 < seen[30][0] < 2600 and abs(seen[30][1] - 450) < 15
later = seen[60][0] > 1e5 and seen[600][0] > 1e10 and linear[0] < 5 and linear[1] < 0.01
sys.exit(0 if right and half_minute and later else "this has changed")
PYTHON
