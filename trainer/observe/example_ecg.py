"""A synthetic ECG, so that figures of masks need not show a patient's recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from umbra import leads as lead_algebra

Array = NDArray[np.float64]

# Waves of one beat: time from R in s, width (standard deviation) in s, and a vector (x to the left, y to the feet,
# z to the front) in mV. Sum of Gaussians after McSharry et al., IEEE Trans Biomed Eng 50(3), 2003, on a heart vector as
# in Sameni et al., EURASIP J Adv Signal Process 2007.
_WAVES = (
    ("P", -0.165, 0.022, (0.08, 0.11, 0.04)),
    ("Q", -0.026, 0.008, (-0.14, -0.06, 0.20)),
    ("R", 0.000, 0.0115, (1.05, 0.85, 0.00)),
    ("S", 0.028, 0.0115, (-0.12, -0.20, -0.75)),
    ("T1", 0.250, 0.050, (0.18, 0.14, 0.10)),
    ("T2", 0.290, 0.028, (0.13, 0.10, 0.07)),
)
_CHEST = {
    "V1": (-0.20, 0.02, 1.00),
    "V2": (0.32, 0.06, 1.15),
    "V3": (0.50, 0.10, 1.05),
    "V4": (0.90, 0.22, 0.70),
    "V5": (0.95, 0.20, 0.30),
    "V6": (0.80, 0.20, 0.05),
}


def synthetic_example(leads: Sequence[str], samples: int, rate: float, seed: int = 0) -> Array:
    """A synthetic sinus rhythm, [leads, samples] in mV: no patient's recording, deterministic.

    Each beat is a sum of Gaussians in the heart vector. The limb leads follow from I and II: III = II - I (Einthoven),
    aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2 (Goldberger). Other leads get lead II.
    """
    random = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    beats = 0.35 + np.cumsum(0.82 + 0.03 * random.standard_normal(int(samples / rate / 0.6) + 4)) - 0.82
    vector = np.zeros((3, samples))
    for _, shift, width, amplitude in _WAVES:
        bumps = np.exp(-0.5 * ((time[None] - beats[:, None] - shift) / width) ** 2).sum(0)
        vector += np.asarray(amplitude)[:, None] * bumps
    one = vector[0] * 0.75
    two = 0.40 * vector[0] + 0.90 * vector[1]
    known = {
        "I": one,
        "II": two,
        **{lead: lead_algebra.derived(lead, one, two) for lead in lead_algebra.DERIVED},
        **{name: np.asarray(weights) @ vector for name, weights in _CHEST.items()},
    }
    return np.stack([known.get(lead, two) for lead in leads])
