#!/bin/sh
# ecgdatakit 2.0.3: an hour of a bedside monitor, as in MIMIC-IV-WDB: 4 samples in each of 62.4725 frames a second.
# Expected: leads of 249.89 Hz that last 3600 s; a missing sample (-32768) is NaN, as wfdb has it, or warned of.
# Seen:     the rate of a lead is a whole number, 250: its 899,604 samples last 3598.416 s, beside a `duration` of 1:00:00
#           in the same record. After a day its clock is 38 s behind. to_physical() makes -163.84 mV of a missing sample;
#           it is counted in raw_metadata.
# Why it matters: times of beats do not meet annotations and alarms; filters and peaks see a spike of 164 mV.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ecgdatakit==2.0.3 wfdb==4.3.1 numpy==2.4.6 pandas==3.0.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import importlib.metadata
import sys
import warnings

import numpy as np
import wfdb
from ecgdatakit import FileParser

frames = 224901
steps = np.zeros((frames, 4), "<i2")
steps[5] = -32768
steps.tofile("r.dat")
with open("r.hea", "w") as header:
    header.write(f"r 1 62.4725/999.56 {frames}\nr.dat 16x4 200/mV 16 0 0 {int(steps.sum()) % 65536} 0 II\n")
reference = wfdb.rdrecord("r", smooth_frames=False).e_p_signal[0]
assert np.isnan(reference[20:24]).all() and np.isfinite(reference).sum() == len(reference) - 4
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    record = FileParser().parse("r.hea")
    [lead] = record.leads
    missing = lead.to_physical().samples[20:24].tolist()
lasts = len(lead.samples) / lead.sampling_rate
duration = record.recording.duration
counted = record.raw_metadata["invalid_sample_counts"] == {"II": 4}
print(f"ecgdatakit {importlib.metadata.version('ecgdatakit')}, wfdb {wfdb.__version__}")
print(f"expected: 249.89 Hz, 3600.0 s. seen: {lead.sampling_rate} Hz, {lasts} s; duration of the record: {duration}")
print(f"expected of missing samples: nan, as by wfdb, or a warning. seen: {missing} mV, warnings: {len(warned)}")
apart = lead.sampling_rate == 250 and lasts == 3598.416 and round(duration / datetime.timedelta(seconds=1)) == 3600
sys.exit(0 if apart and counted and missing == [-163.84] * 4 and not warned else "this has changed")
PYTHON
