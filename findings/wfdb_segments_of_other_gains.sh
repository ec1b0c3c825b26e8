#!/bin/sh
# wfdb 4.3.1: a record of two segments, whose headers give the same lead other gains. Each segment alone is read rightly.
# Expected: rdrecord brings both to one unit, or raises an error.
# Seen:     200/mV and then 0.2/uV: p_signal goes from 1 to 1000, units say mV (with a layout segment: None). 200/mV and
#           then 100/mV with physical=False: raw steps of both under the gain of the first, so that dac() halves the rest.
# Why it matters: recorders change gain in the middle; a thousandfold step has no NaN and no warning.
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


def header(name, text):
    with open(f"{name}.hea", "w") as file:
        file.write(text)


for name, gain in (("a", "200/mV"), ("b", "0.2/uV"), ("c", "100/mV")):
    np.full(100, 200, "<i2").tofile(f"{name}.dat")
    header(name, f"{name} 1 100 100\n{name}.dat 16 {gain} 16 0 200 0 0 II\n")
header("ab", "ab/2 1 100 200\na 100\nb 100\n")
header("ac", "ac/2 1 100 200\na 100\nc 100\n")
header("layout", "layout 1 100 0\n~ 0 200/mV 16 0 0 0 0 II\n")
header("gaps", "gaps/3 1 100 200\nlayout 0\na 100\nb 100\n")

alone = [(r.p_signal[0, 0], r.units) for r in map(wfdb.rdrecord, "abc")]
units = wfdb.rdrecord("ab")
layout = wfdb.rdrecord("gaps")
steps = wfdb.rdrecord("ac", physical=False)
seen = {
    "mV, then uV": (units.p_signal[[0, 199], 0].tolist(), units.units),
    "the same, with a layout": (layout.p_signal[[0, 199], 0].tolist(), layout.units),
    "steps of 200/mV, then 100/mV": (steps.d_signal[[0, 199], 0].tolist(), steps.adc_gain),
    "the same steps by dac()": (steps.dac()[[0, 199], 0].tolist(), steps.units),
}
print(f"wfdb {wfdb.__version__}; the segments alone: {alone}")
print("expected: [1, 1] mV, the same, an error or [200, 400] steps, [1, 2] mV")
for what, got in seen.items():
    print(f"seen, {what}: {got}")
wanted = [([1, 1000], ["mV"]), ([1, 1000], None), ([200, 200], [200]), ([1, 1], ["mV"])]
sys.exit(0 if list(seen.values()) == wanted else "this has changed")
PYTHON
