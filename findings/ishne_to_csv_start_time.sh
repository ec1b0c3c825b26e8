#!/bin/sh
# ishne-to-csv 1.2 on an ISHNE Holter file that starts at 14:30:15.
# Expected: the first time stamp is 14:30:15.
# Seen:     14:00:30. Hour, minute and second are 2 bytes each in the format; here they are read as single bytes, so
#           that the minute is always 0, the second is the true minute, and the true second is lost. Values stay in
#           steps: the header's resolution is not used.
# Why it matters: events of a diary are up to an hour off, and what depends on the time of day moves.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile ishne-to-csv==1.2 numpy==2.4.6 pandas==3.0.0
cd "$folder"
TZ=UTC "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import struct
import sys
from importlib.metadata import version

import numpy as np
import pandas
from ishne_to_csv import read_ishne

LEADS, FRAMES, NV = 2, 200, 2500
none = [-9] * (12 - LEADS)
header = struct.pack("<4ih", 0, FRAMES, 522, 522, 1) + bytes(100) + struct.pack("<2h", 0, 0)
header += struct.pack("<12h", 1, 1, 1970, 5, 11, 2020, 6, 11, 2020, 14, 30, 15)  # birth, record and file date, start
header += struct.pack("<37h", LEADS, 1, 2, *none, 0, 0, *none, NV, NV, *none)  # leads, qualities, nanovolts a step
header += struct.pack("<h40sh", 0, b"digital", 200) + bytes(248)  # pacemaker, recorder, rate, free text
assert len(header) == 512
values = np.arange(FRAMES * LEADS, dtype="<i2")
with open("r.ecg", "wb") as file:
    file.write(b"ISHNE1.0" + bytes(2) + header + values.tobytes())
table = read_ishne("r.ecg", verbose=False, metadata_file="r.json")
start = str(pandas.to_datetime(table["time"][0]))
print(f"ishne-to-csv {version('ishne-to-csv')}, pandas {pandas.__version__}, numpy {np.__version__}")
print("expected: 2020-11-05 14:30:15; 1 step is 0.0025 mV")
print(f"seen:     {start}; sample 1 is {table['Lead_1'][1]}, stored {values[2]}")
assert len(table) == FRAMES
sys.exit(0 if start == "2020-11-05 14:00:30" and table["Lead_1"][1] == values[2] else "this has changed")
PYTHON
