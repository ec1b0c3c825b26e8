#!/bin/sh
# ecg2dcm 1.3.1 on a 12-lead record that wfdb 4.3.1 wrote from millivolts (wrsamp with p_signal).
# Expected: the DICOM file has the record's amplitudes, within some microvolts.
# Seen:     all leads are cut off at the range of the smallest one: R in V4 falls from 1.6 mV to 0.08 mV here.
#           "1 converted, 0 refused", no warning.
#           (wrsamp gives each lead the gain with which it fills its 16 bits. ecg2dcm puts all leads on the finest of
#           these steps, and clips. Where all leads have one gain, as with d_signal and adc_gain, all is well.)
# Why it matters: the files are valid and look like low-voltage ECGs; a lead that is almost flat makes it worse.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ecg2dcm==1.3.1 pydicom==2.4.5 wfdb==4.3.1 numpy==2.4.6 pandas==3.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import datetime
import sys
from importlib.metadata import version

import numpy as np
import pydicom
import wfdb
from ecg2dcm.convert import main

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
HEIGHT = np.array([0.4, 1, 0.6, -0.7, -0.1, 0.8, -0.3, -0.9, 0.2, 1.6, 1.4, 0.8])
t = np.arange(5000) / 500
beats = sum(np.exp(-((t - at) ** 2) / 2 / 0.012**2) for at in np.arange(0.5, 10, 0.8))
mv = beats[:, None] * HEIGHT + 0.005 * np.random.default_rng(0).standard_normal((5000, 12))
form = {"fs": 500, "units": ["mV"] * 12, "sig_name": LEADS, "fmt": ["16"] * 12}
form |= {"base_date": datetime.date(2020, 1, 2), "base_time": datetime.time(3, 4, 5)}
wfdb.wrsamp("own", p_signal=mv, **form)
steps = np.rint(mv * 1000).astype("i2")
wfdb.wrsamp("one", d_signal=steps, adc_gain=[1000.0] * 12, baseline=[0] * 12, **form)


def worst(name):
    """The largest errors in mV, of the record as wfdb reads it and of its DICOM file; that file's signal."""
    assert main([f"{name}.hea", "-o", "dcm"]) == 0
    dicom = pydicom.dcmread(f"dcm/{name}.dcm").waveform_array(0) / 1000
    return [np.abs(x - mv).max() for x in (wfdb.rdrecord(name).p_signal, dicom)], dicom


(_, same), _ = worst("one")
(record, seen), dicom = worst("own")
print(f"ecg2dcm {version('ecg2dcm')}, wfdb {wfdb.__version__}, pydicom {pydicom.__version__}, numpy {np.__version__}")
print(f"one gain for all leads: at most {same:.4f} mV off")
print(f"expected of wrsamp's gains: as little (the record itself: {record:.4f} mV)")
print(f"seen: {seen:.3f} mV off; V4 goes from {np.ptp(mv[:, 9]):.3f} to {np.ptp(dicom[:, 9]):.3f} mV peak to peak")
ranges = np.ptp(dicom, axis=0)
cut = ranges.max() < 1.1 * np.ptp(mv, axis=0).min()
sys.exit(0 if max(same, record) < 0.001 and seen > 1 and cut else "this has changed")
PYTHON
