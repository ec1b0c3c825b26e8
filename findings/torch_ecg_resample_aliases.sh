#!/bin/sh
# torch_ecg 0.0.33, torch 2.13.0: an ECG's 500 Hz are made 100 Hz by both of its classes called Resample.
# Expected: both low-pass first, so that 60 Hz mains are gone; sample n stays at n / 100 s.
# Seen:     torch_ecg._preprocessors.Resample low-passes. torch_ecg.preprocessors.Resample, the one for tensors, picks points of
#           the line through the samples: mains of 60 Hz become a tone of 40 Hz, of 0.95 of their amplitude, in the band
#           of QRS complexes; and it stretches time, so that the last sample is 8 ms late.
# Why it matters: what is 100 Hz from one is not from the other; an encoder of one sees other ECGs by the other.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch_ecg==0.0.33 torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import torch
import torch_ecg
from torch_ecg._preprocessors import Resample as OfArrays
from torch_ecg.preprocessors import Resample as OfTensors

time = np.arange(5000) / 500


def both(signal):
    """Samples at 100 Hz, by the class for arrays and by that for tensors."""
    array, _ = OfArrays(100)(signal[None], 500)
    return array[0], OfTensors(500, 100)(torch.tensor(signal[None, None]))[0, 0].numpy()


def strongest(signal):
    """(Hz of the highest line of the spectrum, amplitude of a tone of that power)."""
    highest = np.abs(np.fft.rfft(signal)).argmax()
    return int(np.fft.rfftfreq(len(signal), 0.01)[highest].round()), float((np.sqrt(2) * signal.std()).round(2))


mains = [strongest(signal) for signal in both(np.sin(2 * np.pi * 60 * time))]
clock = [float(signal[-1].round(4)) for signal in both(time)[1:]]
print(f"torch_ecg {torch_ecg.__version__}, torch {torch.__version__}")
print(f"a tone of 60 Hz, amplitude 1, as (Hz, amplitude). expected: amplitude below 0.1. seen: {mains}")
print(f"a ramp of seconds, its last sample, of tensors. expected: 9.99. seen: {clock[0]}")
right, wrong = mains
sys.exit(0 if right[1] < 0.1 and wrong[0] == 40 and wrong[1] > 0.9 and clock == [9.998] else "this has changed")
PYTHON
