#!/bin/sh
# ecgmentations 0.0.9: its filters, Pooling and Blur on an ECG of (length, leads), the order of its own example.
# Expected: each lead is filtered along time and by itself: a sine of 5 Hz in lead I passes LowPassFilter (47 Hz) in
#           lead I, and the eleven flat leads stay flat; 100 Hz are small.
# Seen:     LowPassFilter and BandPassFilter run from lead to lead, as if the 12 leads of a sample were 12 samples of
#           500 Hz. Of the sine, 2 mV peak to peak, 0.03 mV stay in I, while aVR and aVL get 0.45 mV; 100 Hz do just the
#           same. HighPassFilter hands 0.02 mV to every lead, and leaves a drift of 0.1 Hz as it is. Pooling and Blur
#           take the mean over neighbouring leads too: III of 0 gets a part of II. A single lead, (length,), is right.
# Why it matters: shape and range look right. Leads that are mixed by their place in the array say nothing of their
#           electrodes, limb leads no longer add up, and mains and drift stay.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile ecgmentations==0.0.9 opencv-python-headless==5.0.0.93 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import ecgmentations
import numpy as np

t = np.arange(10000) / 500


def heights(name, frequency, lead=0, **kwargs):
    """mV from lowest to highest of the last 10 s of each lead, and of the same lead given alone, of a sine of 2 mV"""
    sine = np.sin(2 * np.pi * frequency * t)
    ecg = np.zeros((len(t), 12))
    ecg[:, lead] = sine
    make = getattr(ecgmentations, name)(p=1.0, **kwargs)
    out, alone = make(ecg=ecg)["ecg"], make(ecg=sine)["ecg"]
    assert out.shape == ecg.shape
    return np.ptp(out[5000:], axis=0), np.ptp(alone[5000:])


def show(name, frequency, seen, alone):
    print(f"{name} {frequency} Hz: lead I {seen[0]:.3f}, others {seen[1:].min():.3f} to {seen[1:].max():.3f}; alone {alone:.3f}")


print(f"ecgmentations {version('ecgmentations')}, numpy {np.__version__}, a sine of 2 mV (peak to peak) in one lead only")
print("expected: that lead has what it has alone, all others 0")
seen = {}
for name, frequency in [("LowPassFilter", 5), ("LowPassFilter", 100), ("BandPassFilter", 5), ("HighPassFilter", 0.1)]:
    seen[name, frequency] = heights(name, frequency)
    show(name, frequency, *seen[name, frequency])
for name in ("Pooling", "Blur"):
    seen[name] = heights(name, 5, lead=1, kernel_size_range=(3, 3))[0]
    print(f"{name}, kernel 3, 5 Hz in II: I, II, III have {np.round(seen[name][:3], 2)}")
low, high, band, drift = (seen[key] for key in list(seen)[:4])
right = low[1] > 1.9 and high[1] < 0.5 and band[1] > 1.9 and drift[1] < 0.1
mixed = all(each[0][0] < 0.1 and each[0][1:].max() > 0.4 for each in (low, high, band))
same = np.allclose(low[0], high[0], atol=0.03)
drifts = drift[0][0] > 1.9 and drift[0][1:].min() > 0.01
pooled = all(np.allclose(seen[name][:4], [2 / 3, 2 / 3, 2 / 3, 0], atol=0.02) for name in ("Pooling", "Blur"))
sys.exit(0 if right and mixed and same and drifts and pooled else "this has changed")
PYTHON
