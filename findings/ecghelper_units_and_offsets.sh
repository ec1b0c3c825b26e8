#!/bin/sh
# ecghelper 0.8.3: 12-lead ECGs converted between EDF, WFDB and GE's XML. wfdb 4.3.1 and pyedflib 0.1.42 write and check.
# Expected: microvolts, the usual unit of EDF, are made millivolts, or written as microvolts; a lead with an offset, as
#           electrodes have, comes back from XML as it comes back from EDF.
# Seen:     1. units are not read, and all that is written says mV: a QRS of 1 mV in an EDF or WFDB file in uV is 1000 mV
#              in the WFDB or EDF file made of it.
#           2. a lead that does not cross 0 mV, here V1 with an offset of 2 mV, is one flat line near 0 in the XML file,
#              as its own reader has it: it writes the lead's baseline in 16 bits, which do not hold it.
# Why it matters: the converter says nothing. Data sets of both units end up in one folder with one unit, and a V1 that
#           is flat reads as a lost electrode.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile ecghelper==0.8.3 wfdb==4.3.1 pyedflib==0.1.42 numpy==2.4.6 pandas==3.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import pyedflib
import wfdb
from ecghelper.waveform import WaveformRecord

LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
HEIGHT = np.array([0.4, 1, 0.6, -0.7, -0.1, 0.8, -0.3, -0.9, 0.2, 1.6, 1.4, 0.8])
t = np.arange(5000) / 500
beats = sum(np.exp(-((t - at) ** 2) / 2 / 0.012**2) for at in np.arange(0.5, 10, 0.8))
mv = beats[:, None] * HEIGHT + 0.005 * np.random.default_rng(0).standard_normal((5000, 12))

limits = {"digital_min": -32768, "digital_max": 32767, "physical_min": -5000, "physical_max": 5000}
with pyedflib.EdfWriter("in.edf", 12) as edf:
    edf.setSignalHeaders([{"label": lead, "dimension": "uV", "sample_frequency": 500, **limits} for lead in LEADS])
    edf.writeSamples(list(1000 * mv.T))
form = {"fs": 500, "units": ["uV"] * 12, "sig_name": LEADS, "fmt": ["16"] * 12}
wfdb.wrsamp("in", d_signal=np.rint(mv * 1000).astype("i2"), adc_gain=[1.0] * 12, baseline=[0] * 12, **form)
ratios = []
print(f"ecghelper {version('ecghelper')}, wfdb {wfdb.__version__}, pyedflib {version('pyedflib')}, numpy {np.__version__}")
print(f"lead II has {np.ptp(mv[:, 1]):.3f} mV from lowest to highest; files in uV")
for kind in ("edf", "wfdb"):
    record = getattr(WaveformRecord, f"from_{kind}")("in.edf" if kind == "edf" else "in")
    record.to_wfdb("out")
    record.to_edf("out.edf")
    back = wfdb.rdrecord("out")
    with pyedflib.EdfReader("out.edf") as edf:
        units = {back.units[1], edf.getPhysicalDimension(1)}
        seen = [np.ptp(back.p_signal[:, 1]), np.ptp(edf.readSignal(1))]
    ratios += [each / np.ptp(mv[:, 1]) for each in seen]
    print(f"of {kind}: WFDB {seen[0]:.1f}, EDF {seen[1]:.1f}, unit {units}")
    assert units == {"mV"}

offset = mv + 2.0 * (np.array(LEADS) == "V1")
record = WaveformRecord(offset.copy(), list(LEADS), 500)
record.to_edf("offset.edf")
record.to_xml("offset.xml")
v1 = LEADS.index("V1")
edf, xml = WaveformRecord.from_edf("offset.edf").data, WaveformRecord.from_xml("offset.xml").data
others = np.abs(np.delete(xml - offset, v1, axis=1)).max()
print(f"V1 with an offset, from {offset[:, v1].min():.2f} to {offset[:, v1].max():.2f} mV")
print(f"of EDF: {edf[:, v1].min():.2f} to {edf[:, v1].max():.2f}; of XML: {xml[:, v1].min():.2f} to {xml[:, v1].max():.2f}")
print(f"the other leads are at most {others:.4f} mV off in XML")
thousand = np.allclose(ratios, 1000, rtol=0.01)
flat = np.ptp(xml[:, v1]) == 0 and np.abs(edf[:, v1] - offset[:, v1]).max() < 0.001 and others < 0.001
sys.exit(0 if thousand and flat else "this has changed")
PYTHON
