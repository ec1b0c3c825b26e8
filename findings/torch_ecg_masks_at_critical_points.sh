#!/bin/sh
# torch_ecg 0.0.33, torch 2.13.0: RandomMasking of the QRS complexes of 4 ECGs, all chosen (prob=[1, 1]), 0.08 to 0.18 s wide.
# Expected: `critical_points`, samples of R peaks, are the middles of what is hidden; hidden samples have `mask_value`.
# Seen:     of 12 peaks nothing at all is hidden; of 100 points at most the first 144 samples, wherever they are: a
#           point's number is taken for its sample, and windows that begin before sample 0 are empty. `mask_value` is a
#           factor: 0.5 makes 1.5 of 3. Without points, prob=[1, 1] hides about half.
# Why it matters: an experiment with masked QRS complexes runs on whole ECGs, and says that hiding them changes nothing.
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
from torch_ecg.augmenters import RandomMasking

ecgs = torch.full((4, 12, 5000), 3.0)


def masked(prob, points=None, value=0.0):
    return RandomMasking(500, value, [0.08, 0.18], prob, inplace=False)(ecgs, None, critical_points=points)[0]


peaks = masked([1, 1], [np.arange(200, 5000, 400)] * 4)
many = masked([1, 1], [np.arange(2000, 3000, 10)] * 4)
last = [int(np.flatnonzero(ecg[0] == 0).max()) for ecg in many]
values = torch.unique(masked([1, 0.15], value=0.5)).tolist()
share = (masked([1, 1]) == 0).float().mean().item()
print(f"torch_ecg {torch_ecg.__version__}, torch {torch.__version__}")
print(f"expected of 12 points: about 0.16 of the ECG hidden. seen: {(peaks == 0).float().mean().item():.2f}")
print(f"expected of 100 points from 2000 to 2990: samples around them. seen: nothing after samples {last}")
print(f"expected of mask_value=0.5: values 0.5 and 3. seen: {values}")
print(f"expected of prob=[1, 1] without points: all or nearly all. seen: {share:.2f}")
held = (ecgs == 3).all().item()
sys.exit(0 if held and (peaks == 3).all() and max(last) < 150 and values == [1.5, 3] and share < 0.7 else "this has changed")
PYTHON
