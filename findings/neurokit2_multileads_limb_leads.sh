#!/bin/sh
# neurokit2 0.2.12: a simulated 12-lead ECG, ecg_simulate(method="multileads"), without noise.
# Expected: limb leads as electrodes make them: III = II - I, aVR = -(I + II) / 2, aVL and aVF likewise; leads of
#           other amplitudes.
# Seen:     III is 1.0 mV off, aVR 1.4 mV, aVL and aVF 0.4 to 0.6 mV, of 1.6 mV from lowest to highest: each lead is put
#           between -0.4 and 1.2 mV by itself. aVR is upright.
# Why it matters: it is the 12-lead ECG that tests are written with. Leads derived of I and II, checks for swapped
#           electrodes, and vectorcardiograms fail on it although they are right, and R amplitudes say nothing.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet neurokit2==0.2.12 numpy==2.4.6 pandas==3.0.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import neurokit2
import numpy as np

ecg = neurokit2.ecg_simulate(duration=10, sampling_rate=500, method="multileads", noise=0, random_state=1)
lead = {name: ecg[name].to_numpy() for name in ecg.columns}
i, ii = lead["I"], lead["II"]
laws = {"III": ii - i, "aVR": -(i + ii) / 2, "aVL": i - ii / 2, "aVF": ii - i / 2}
apart = {name: float(np.abs(lead[name] - law).max().round(2)) for name, law in laws.items()}
highest = {name: float(x.max().round(1)) for name, x in lead.items()}
lowest = {float(x.min().round(1)) for x in lead.values()}
print(f"neurokit2 {neurokit2.__version__}, numpy {np.__version__}")
print(f"expected: no lead off its law by more than 0.01 mV. seen: {apart}")
print(f"expected: leads of other heights, aVR turned down. seen: highest {highest}, lowest {lowest}")
upright = lead["aVR"].max() > 2 * -lead["aVR"].min()
same = set(highest.values()) == {1.2} and lowest == {-0.4}
sys.exit(0 if min(apart.values()) > 0.3 and apart["aVR"] > 1 and same and upright else "this has changed")
PYTHON
