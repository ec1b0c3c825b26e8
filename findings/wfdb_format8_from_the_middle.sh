#!/bin/sh
# wfdb 4.3.1: a record in signal format 8 (first differences), read from sample N on, starts at the initial value again.
# Expected: rdrecord(sampfrom=4) gives samples 4 to 7 of the whole record (20 18 22 26).
# Seen:     11 9 13 17, the differences from sample 4 on added to the header's initial value.
# Why it matters: a long recording that is read in windows gets a wrong baseline in each window but the first.
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

steps = np.array([0, 5, -3, 7, 1, -2, 4, 4], "i1")
steps.tofile("r.dat")
with open("r.hea", "w") as header:
    header.write("r 1 100 8\nr.dat 8 200/mV 12 0 10 0 0 I\n")
whole = wfdb.rdrecord("r", physical=False).d_signal[:, 0].tolist()
rest = wfdb.rdrecord("r", physical=False, sampfrom=4).d_signal[:, 0].tolist()
print(f"wfdb {wfdb.__version__}, numpy {np.__version__}")
print(f"whole record:            {whole}")
print(f"expected from sample 4:  {whole[4:]}")
print(f"seen from sample 4:      {rest}")
assert whole == (10 + np.cumsum(steps.astype(int))).tolist()
sys.exit(0 if rest == [11, 9, 13, 17] else "this has changed")
PYTHON
