#!/bin/sh
# wfdb 4.3.1: a lead has 4 samples in each frame (500 Hz in a record of 125 Hz), which rdrecord averages.
# Expected: a frame of which one sample is missing has the mean of the three others, or NaN; no mean is rounded.
# Seen:     the marker of missing samples, -32768, is averaged as if it were a sample: -8183 steps, here -41 mV. The
#           mean is cut to a whole step towards 0, so that signals of a step or less are flat. smooth_frames=False has
#           neither.
# Why it matters: one lost sample of a bedside monitor becomes a spike, and NaN checks do not see it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wfdb==4.3.1 numpy==2.4.6 pandas==3.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import wfdb

frames = np.array([[10, 11, 12, 13], [-32768, 11, 12, 13], [1, 1, 1, 0], [-1, -1, -1, 0]], "<i2")
frames.tofile("r.dat")
with open("r.hea", "w") as header:
    header.write("r 1 125 4\nr.dat 16x4 200/mV 16 0 0 0 0 II\n")
each = wfdb.rdrecord("r", smooth_frames=False).e_p_signal[0] * 200
seen = wfdb.rdrecord("r").p_signal[:, 0] * 200
print(f"wfdb {wfdb.__version__}, numpy {np.__version__}")
print(f"samples, in steps:   {np.round(each, 3).tolist()}")
print("expected of frames:  [11.5, 12 or nan, 0.75, -0.75]")
print(f"seen:                {np.round(seen, 3).tolist()}, in mV {np.round(seen / 200, 3).tolist()}")
assert np.isnan(each).tolist() == (frames.ravel() == -32768).tolist()
sys.exit(0 if np.round(seen, 6).tolist() == [11, -8183, 0, 0] else "this has changed")
PYTHON
