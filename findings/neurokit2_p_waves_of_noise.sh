#!/bin/sh
# NeuroKit2 0.3.0: ecg_delineate on beats that have QRS and T but no P (as in atrial fibrillation), at 500 Hz.
# Expected: no P for most beats: the methods have thresholds of their own, and a P can be left out (NaN).
# Seen:     with noise of 0.01 mV, less than most recorders have, each of the four methods names a P for at least 9 of
#           10 beats, just as where P waves of 0.1 mV are. Only without any noise does dwt name none. Besides, cwt
#           gives one entry fewer than there are beats, so that entry i need not be of beat i.
# Why it matters: "has a P wave", PR intervals and P segments of a labelled data set are made up where there is no P.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile neurokit2==0.3.0 numpy==2.4.6 pandas==3.0.0 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import neurokit2
import numpy as np

RATE = 500
random = np.random.default_rng(0)
at = 0.5 + np.cumsum(0.85 + 0.02 * random.standard_normal(70))
t = np.arange(int((at[-1] + 1) * RATE)) / RATE - at[:, None]


def counts(p, noise):
    """(beats, {method: (P peaks, entries)}) where each beat has a P of `p` mV"""
    waves = [(p, -0.17, 0.02), (-0.1, -0.025, 0.008), (1, 0, 0.009), (-0.2, 0.028, 0.009), (0.25, 0.26, 0.05)]
    ecg = sum(high * np.exp(-((t - where) ** 2) / 2 / width**2) for high, where, width in waves).sum(0)
    ecg = neurokit2.ecg_clean(ecg + noise * random.standard_normal(len(ecg)), sampling_rate=RATE)
    peaks = neurokit2.ecg_peaks(ecg, sampling_rate=RATE)[1]["ECG_R_Peaks"]
    found = {}
    for method in ("peak", "prominence", "cwt", "dwt"):
        marks = neurokit2.ecg_delineate(ecg, peaks, sampling_rate=RATE, method=method)[1]["ECG_P_Peaks"]
        found[method] = int(np.isfinite(np.array(marks, float)).sum()), len(marks)
    return len(peaks), found


there, silent, seen = counts(0.1, 0.01), counts(0, 0), counts(0, 0.01)
print(f"neurokit2 {neurokit2.__version__}, numpy {np.__version__}; beats, (P peaks, entries)")
print(f"P of 0.1 mV, noise 0.01 mV: {there}")
print("expected without P:         few")
print(f"no P, no noise:             {silent}")
print(f"no P, noise 0.01 mV:        {seen}")
beats, found = seen
named = all(peaks >= 0.9 * n for n, each in (there, seen) for peaks, _ in each.values())
short = found["cwt"][1] == beats - 1 and found["dwt"][1] == beats
sys.exit(0 if abs(beats - 70) <= 1 and named and short and silent[1]["dwt"][0] == 0 else "this has changed")
PYTHON
