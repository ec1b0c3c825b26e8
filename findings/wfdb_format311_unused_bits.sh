#!/bin/sh
# wfdb 4.3.1: signal format 311 packs three 10-bit samples into the low 30 bits of 4 bytes; the two others are unused.
# Expected: the same samples whatever the unused bits hold (1 2 -3).
# Seen:     if bit 30 is set, the third sample is read with 11 bits: -3 becomes 1021. Bit 31 does no harm.
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

with open("r.hea", "w") as header:
    header.write("r 1 100 3\nr.dat 311 200/mV 10 0 1 0 0 I\n")
seen = []
for unused in range(4):
    word = 1 | 2 << 10 | (-3 & 0x3FF) << 20 | unused << 30
    with open("r.dat", "wb") as file:
        file.write(word.to_bytes(4, "little"))
    seen.append(wfdb.rdrecord("r", physical=False).d_signal[:, 0].tolist())
print(f"wfdb {wfdb.__version__}, numpy {np.__version__}")
print("expected: [1, 2, -3] for all four values of the unused bits")
for unused, values in enumerate(seen):
    print(f"unused bits {unused:02b}: {values}")
sys.exit(0 if [values[2] for values in seen] == [-3, 1021, -3, 1021] else "this has changed")
PYTHON
