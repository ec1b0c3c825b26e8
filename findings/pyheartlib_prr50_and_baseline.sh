#!/bin/sh
# pyheartlib 1.22.0: its RR feature prr50, and denoise_signal, of an ECG of known waves at several sampling rates.
# Expected: prr50 is the part of successive RR differences above 50 ms, the RR given in milliseconds as it asks.
#           denoise_signal with remove_bl and lowpass is what remove_bl alone gives, low-passed; it is told the rate.
# Seen:     1. the limit is 5 ms: rhythms whose RR differ by at most 6, 12 or 24 ms have a prr50 of 20, 60 and 100 % for
#              one of 0.
#           2. with both, the baseline is found as if the rate were 360 Hz, its own default. At 1000 Hz a T wave of
#              0.30 mV falls to 0.15 mV, as windows of 0.2 and 0.6 s become 0.07 and 0.2 s; at 100 Hz they become 0.7 and
#              2.2 s, and half of a drift of 0.3 Hz stays. One step after the other keeps T, and takes the drift away, at
#              each rate.
# Why it matters: prr50 is one of the features of its rhythm data sets, where it says next to nothing of the rhythm; and who
#           adds the low-pass to the baseline loses half of T at 1000 Hz, with P and R as they were.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.2.6 scipy==1.15.3 tqdm==4.67.1
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps pyheartlib==1.22.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from pyheartlib.features import get_hrv_features
from pyheartlib.processing import Processing

print(", ".join(f"{name} {version(name)}" for name in ("pyheartlib", "numpy", "scipy")))
print("1. part of successive RR differences above 50 ms (%): expected, prr50, largest difference (ms)")
percent = {}
for swing in (2, 5, 10, 20, 60):
    rr = 800 + swing * np.sin(2 * np.pi * 0.25 * 0.8 * np.arange(300))
    differences = np.abs(np.diff(rr))
    percent[swing] = float(get_hrv_features(rr[None], ["prr50"])[0, 0])
    above = [100 * np.mean(differences > limit) for limit in (50, 5)]
    assert abs(percent[swing] - above[1]) < 0.01 or abs(percent[swing] - above[0]) < 0.01
    print(f"   swing of {swing:2} ms: {above[0]:5.1f} {percent[swing]:6.1f} {differences.max():6.1f}")

beats = np.arange(0.5, 10, 0.8)
settings = dict(cutoff=40, order=4)
print("2. T waves of 0.30 mV (mV), and what stays of a drift of 0.5 mV at 0.3 Hz (mV), with baseline and low-pass")
wave, drift = {}, {}
for rate in (100, 250, 360, 500, 1000):
    t = np.arange(10 * rate) / rate
    ecg = np.zeros_like(t)
    for beat in beats:
        for height, middle, width in ((0.12, -0.16, 0.02), (1, 0, 0.012), (0.3, 0.28, 0.045)):
            ecg += height * np.exp(-0.5 * ((t - beat - middle) / width) ** 2)
    slow = 0.5 * np.sin(2 * np.pi * 0.3 * t)
    tops = np.round((beats[1:-2] + 0.28) * rate).astype(int)
    middle = slice(2 * rate, 8 * rate)

    def one_by_one(signal):
        signal = Processing.denoise_signal(signal, remove_bl=True, lowpass=False, sampling_rate=rate)
        return Processing.denoise_signal(signal, remove_bl=False, lowpass=True, sampling_rate=rate, **settings)

    def at_once(signal):
        return Processing.denoise_signal(signal, remove_bl=True, lowpass=True, sampling_rate=rate, **settings)

    wave[rate] = [float(step(ecg)[tops].mean()) for step in (one_by_one, at_once)]
    drift[rate] = [float(np.abs(step(slow)[middle]).max()) for step in (one_by_one, at_once)]
    print(f"   {rate:4} Hz: T expected (one by one) {wave[rate][0]:.2f}, seen (at once) {wave[rate][1]:.2f};", end=" ")
    print(f"drift expected {drift[rate][0]:.2f}, seen {drift[rate][1]:.2f}")
limit = percent[2] == 0 and 15 < percent[5] < 25 and percent[20] == 100
kept = all(abs(pair[0] - 0.3) < 0.01 for pair in wave.values()) and abs(wave[360][1] - 0.3) < 0.01
lost = wave[1000][1] < 0.2 and drift[100][1] > 2 * drift[100][0]
sys.exit(0 if limit and kept and lost else "this has changed")
PYTHON
