"""Recordings of whole numbers that need no resampling, so that no rounding reaches the shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.recordings import write_record


def write_recordings(folder: Path) -> None:
    """24 patients of one or two records: beats as triangles over a slow wave, each lead with another height."""
    sample, lead = np.arange(1000)[:, None], np.arange(12)
    for patient in range(24):
        for record in range(1 + patient % 2):
            period, shift = 70 + patient, 17 * record + 5 * patient
            beat = np.maximum(0, 6 - np.abs((sample + shift) % period - 30)) * (40 + 15 * lead)
            slow = np.abs((sample + 50 * lead) % 400 - 200) // 4
            comments = (
                f"Age: {20 + patient}",
                f"Sex: {('Female', 'Male')[patient % 2]}",
                f"Dx: {('426783006', '164889003')[patient % 2]}",
                f"Patient ID: {1000 + patient}",
            )
            digital = (beat + slow + (sample * (lead + 3)) % 7).astype("<i2")
            write_record(folder, f"r{patient:02d}_{record}", digital, comments=comments)
