#!/bin/sh
# BioSPPy 2.2.4: 69 clean beats (R 1 mV), filtered by its own filter, at 100 to 1000 Hz, in mV and in uV.
# Expected: each segmenter finds the same beats: rate is an argument, and no unit is asked for.
# Seen:     1. engzee_segmenter at 100 Hz finds none, at 250 Hz and above all. A peak is looked for in 10 ms, which is one
#              sample there.
#           2. ssf_segmenter finds none in mV, and 69 to more than 200 besides the beats in uV: its threshold of 20 is
#              compared with squared differences of neighbouring samples.
#           Both return an empty array without a word. hamilton, christov and Pan-Tompkins++ find all beats of all.
# Why it matters: PTB-XL at 100 Hz in mV, the most used of the open 12-lead data sets, has no beats by either, which reads
#           as a bad signal; and the package does not bring peakutils, which it imports.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile biosppy==2.2.4 peakutils==1.3.5 numpy==2.4.6 scipy==1.17.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from biosppy.signals import ecg, tools

WAVES = [(0.12, -0.17, 0.025), (-0.08, -0.03, 0.008), (1, 0, 0.011), (-0.2, 0.03, 0.01), (0.28, 0.28, 0.05)]
R = 0.6 + 0.86 * np.arange(69)


def found(name, rate, scale):
    t = np.arange(60 * rate) / rate - R[:, None]
    x = sum(high * np.exp(-((t - where) ** 2) / 2 / width**2) for high, where, width in WAVES).sum(0)
    x = scale * (x + 0.001 * np.random.default_rng(0).standard_normal(len(x)))
    x = tools.filter_signal(
        signal=x, ftype="FIR", band="bandpass", order=int(1.5 * rate), frequency=[0.67, 45], sampling_rate=float(rate)
    )["signal"]
    marks = np.asarray(getattr(ecg, name)(signal=x, sampling_rate=float(rate))[0]) / rate
    hits = int(sum(np.any(np.abs(marks - r) < 0.05) for r in R))
    return hits, len(marks) - hits


names = ["hamilton_segmenter", "christov_segmenter", "Pan_Tompkins_Plus_Plus_segmenter", "engzee_segmenter", "ssf_segmenter"]
rates, units = (100, 250, 500, 1000), {"mV": 1, "uV": 1000}
print(f"biosppy {version('biosppy')}, numpy {np.__version__}; (beats found of 69, other marks) at {rates} Hz")
seen = {(name, unit): [found(name, rate, units[unit]) for rate in rates] for name in names for unit in units}
for (name, unit), row in seen.items():
    print(f"{name:34}{unit}  {row}")
right = all(seen[name, unit] == [(69, 0)] * 4 for name in names[:3] for unit in units)
engzee = all(seen["engzee_segmenter", unit] == [(0, 0)] + [(69, 0)] * 3 for unit in units)
ssf = seen["ssf_segmenter", "mV"] == [(0, 0)] * 4 and all(h == 69 and o >= 60 for h, o in seen["ssf_segmenter", "uV"])
sys.exit(0 if right and engzee and ssf else "this has changed")
PYTHON
