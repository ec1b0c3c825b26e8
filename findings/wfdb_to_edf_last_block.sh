#!/bin/sh
# wfdb 4.3.1: wfdb_to_edf writes blocks of 10 s. A record of 10 s and one of 12 s, leads I and II, read by pyedflib 0.1.42.
# Expected: 10 s and 12 s, or up to 20 s whose fill is known by its value; each lead in its place; the record's start time.
# Seen:     both last 20 s. Fill is the lowest value, here -164 mV, over 10 s of the first. Of the second, the last 2 s of
#           II stand in I from 12 s to 14 s, and II has nothing from 10 s on. The start is always 1 January 1985.
# Why it matters: most ECGs last exactly 10 s, and then half of the file is at the rail; in longer ones leads mix at the end.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wfdb==4.3.1 numpy==2.4.6 pandas==3.0.0 pyedflib==0.1.42
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import contextlib
import datetime
import io
import sys

import numpy as np
import pyedflib
import wfdb
from wfdb.io.convert.edf import wfdb_to_edf

start = datetime.datetime(2026, 3, 4, 5, 6, 7)


def through_edf(seconds):
    """mV `[seconds, 2]` of each second's first sample, and the file's start: lead I counts 0.01, 0.02 ..., II is minus that."""
    count = np.repeat(np.arange(1, seconds + 1), 100) / 100
    leads = {"sig_name": ["I", "II"], "units": ["mV"] * 2, "adc_gain": [200.0] * 2, "baseline": [0, 0], "fmt": ["16"] * 2}
    wfdb.wrsamp("r", 100, p_signal=np.stack([count, -count], 1), base_datetime=start, **leads)
    assert wfdb.rdrecord("r").base_datetime == start
    with contextlib.redirect_stdout(io.StringIO()):
        wfdb_to_edf("r", output_filename="r.edf")
    with pyedflib.EdfReader("r.edf") as file:
        signals = np.stack([file.readSignal(i) for i in range(2)], 1)
        return np.round(signals[::100], 2), file.getStartdatetime()


ten, _ = through_edf(10)
twelve, begun = through_edf(12)
print(f"wfdb {wfdb.__version__}, pyedflib {pyedflib.__version__}")
print(f"expected: 10 and 12 s, start {start}")
print(f"seen: {len(ten)} and {len(twelve)} s, start {begun}")
print(f"10 s, from second 11: {np.unique(ten[10:]).tolist()}")
print(f"12 s, lead I from second 11:  {twelve[10:, 0].tolist()}")
print(f"12 s, lead II from second 11: {twelve[10:, 1].tolist()}")
fill = -163.84
first = np.arange(1, 11) / 100
held = np.array_equal(ten[:10], np.stack([first, -first], 1)) and np.array_equal(ten[:10], twelve[:10])
seen = len(ten) == len(twelve) == 20 and (ten[10:] == fill).all() and (twelve[10:, 1] == fill).all()
mixed = twelve[10:, 0].tolist() == [0.11, 0.12, -0.11, -0.12] + [fill] * 6
sys.exit(0 if held and seen and mixed and begun == datetime.datetime(1985, 1, 1) else "this has changed")
PYTHON
