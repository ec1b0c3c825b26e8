"""Statistics of the signals: amplitudes, heart rates, leads, and the warnings derived from them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from umbra import leads
from umbra.errors import UserError
from umbra.schema import DTYPE, Manifest

Array = NDArray[Any]

LOOK_SECONDS = 30.0
BATCH_VALUES = 1 << 21
QUIET = 1e-7  # mV squared: a slope of a third of a microvolt per sample is not a QRS
# Thresholds of the warnings.
RESIDUAL = 0.1
MIN_WINDOWS = 10
QRS_SIGNS = {"I": 1, "II": 1, "aVR": -1, "V1": -1, "V5": 1, "V6": 1}
TYPICAL_MV = (0.4, 3.0)
SOURCES_RATIO = 1.6
TYPICAL_BPM = (50.0, 110.0)


@dataclass
class Measured:
    """A source's sampled windows: `percentiles` [3, leads] in mV (1st, 50th, 99th), `peak_to_peak` [n, leads] in mV,
    `bpm` [n], `qrs` [n, leads] (the sign of the QRS), `covariance` [n, leads, leads] in mV squared.

    NaN marks a flat (not recorded) lead or a rate that was not found. Padding (zeros in all leads at the end) is
    ignored.
    """

    percentiles: Array
    peak_to_peak: Array
    bpm: Array
    qrs: Array
    covariance: Array


def windows(output: Path, manifest: Manifest, rows: Array) -> Iterator[Array]:
    """The int16 windows `[n, leads, samples]` of some rows, in batches of bounded size; the first 30 s of each.

    Raises `UserError` for a shard that is missing or too short.
    """
    geometry = manifest.geometry
    look = min(manifest.samples, round(LOOK_SECONDS * manifest.rate))
    ends = np.cumsum([s.samples for s in manifest.shards])
    size = max(1, BATCH_VALUES // (geometry.leads * look))
    for start in range(0, len(rows), size):
        some = np.sort(rows[start : start + size])
        out = np.empty((len(some), geometry.leads, look), DTYPE)
        of = np.searchsorted(ends, some, side="right")
        for shard in np.unique(of):
            path, held = output / manifest.shards[shard].name, manifest.shards[shard].samples
            if not path.is_file() or path.stat().st_size < geometry.shard_bytes(held):
                raise UserError(f"{path} is missing or truncated: run `python -m sharding verify {output}`")
            shape, strides = (held, geometry.leads, manifest.samples), (geometry.stride, 2 * manifest.samples, 2)
            raw = np.memmap(path, np.uint8, "r")
            view = np.ndarray(shape, DTYPE, raw, geometry.first, strides)
            out[of == shard] = view[some[of == shard] - (ends[shard] - held), :, :look]
        yield out


def measure(output: Path, manifest: Manifest, rows: Array) -> Measured:
    """Measures the windows of some rows (of one source)."""
    unit = manifest.resolution_uv / 1000.0
    count = len(manifest.leads)
    seen = np.zeros((count, 1 << 16), np.int64)
    parts = []
    for units in windows(output, manifest, rows):
        real = _real(units)
        held = np.where(real, units, units[..., :1])
        top, low = held.max(axis=2).astype(np.float32), held.min(axis=2).astype(np.float32)
        flat = top == low
        where = units.astype(np.int64) + ((1 << 15) + (np.arange(count) << 16))[:, None]
        seen += np.bincount(where[~flat[..., None] & real], minlength=count << 16).reshape(count, -1)
        x = units.astype(np.float32) * np.float32(unit)
        share = real.mean(axis=2, keepdims=True, dtype=np.float32).clip(1e-6)
        x, rate = _slower((x - x.mean(axis=2, keepdims=True) / share) * real, manifest.rate)
        energy = qrs_energy(x, rate)
        bpm = heart_rates(energy, rate)
        covariance = (x @ x.transpose(0, 2, 1) / (x.shape[2] * share)).astype(np.float64)
        qrs = np.sign(_qrs_area(x, energy, rate))
        qrs[flat], covariance[flat] = np.nan, np.nan
        covariance.transpose(0, 2, 1)[flat] = np.nan
        parts.append((np.where(flat, np.nan, (top - low) * unit), bpm, qrs, covariance))
    columns = [np.concatenate(column) for column in zip(*parts)]
    return Measured(_percentiles(seen, (1, 50, 99)) * unit, *columns)


def _real(units: Array) -> Array:
    """Which samples [n, 1, samples] of windows `units` [n, leads, samples] are not padding."""
    some: Array = np.asarray(units.any(axis=1, keepdims=True))
    return np.logical_or.accumulate(some[..., ::-1], axis=2)[..., ::-1]


def _percentiles(seen: Array, wanted: Sequence[float]) -> Array:
    """Exact percentiles [wanted, leads] in int16 units from counts of each value [leads, 65536]; NaN without any."""
    below = np.cumsum(seen, axis=1)
    total = below[:, -1]
    places = [(below < np.ceil(total * p / 100)[:, None]).sum(axis=1) - (1 << 15) for p in wanted]
    return np.where(total > 0, np.stack(places).astype(float), np.nan)


def nan_median(values: Array, axis: int | None = None) -> Any:
    """The median ignoring NaN; NaN, without a warning, if there are no other values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=axis)


def _slower(x: Array, rate: float) -> tuple[Array, float]:
    """Downsamples by averaging to 100 Hz or slightly more: enough to detect QRS complexes."""
    step = max(1, int(rate // 100))
    return x[..., : x.shape[2] // step * step].reshape(*x.shape[:2], -1, step).mean(axis=3), rate / step


def qrs_energy(x: Array, rate: float) -> Array:
    """QRS energy over time: `x` [n, leads, samples] in mV -> [n, samples], about 1 in a QRS, small elsewhere.

    After Pan and Tompkins, IEEE Trans Biomed Eng 32(3), 1985: band-pass 5 to 15 Hz, slope, square, mean over 120 ms;
    then each lead is normalised by its peak height and the median over the leads is taken, to be robust to bad leads.
    """
    from scipy.ndimage import uniform_filter1d
    from scipy.signal import butter, sosfiltfilt

    if x.shape[2] < rate:  # too short to be sure of containing a beat
        return np.zeros((len(x), x.shape[2]), np.float32)
    band = sosfiltfilt(butter(2, (5.0, 15.0), "bandpass", fs=rate, output="sos"), x, axis=2).astype(np.float32)
    slope = np.gradient(band, axis=2)
    energy = uniform_filter1d(slope * slope, max(1, round(0.12 * rate)), axis=2)
    return _by_height(np.median(_by_height(energy, rate, QUIET), axis=1), rate)


def _by_height(energy: Array, rate: float, quiet: float = 0.0) -> Array:
    """Normalised by its peak height, the median of the maxima of each 2 s; 0 if that is not above `quiet`."""
    length = min(round(2.0 * rate), energy.shape[-1])
    pieces = energy[..., : energy.shape[-1] // length * length].reshape(*energy.shape[:-1], -1, length)
    height = np.median(pieces.max(axis=-1), axis=-1)[..., None]
    return np.divide(energy, height, out=np.zeros_like(energy), where=height > quiet)


def heart_rates(energy: Array, rate: float) -> Array:
    """Beats per minute [n] from `qrs_energy` [n, samples]: 60 s over the median RR interval; NaN below 3 peaks.

    A peak is at least 0.3 high and 0.25 s from a higher one. All windows are searched at once, joined with gaps.
    """
    from scipy.ndimage import median
    from scipy.signal import find_peaks

    apart = max(1, round(0.25 * rate))
    line = np.pad(energy, ((0, 0), (apart, apart)))
    peaks, _ = find_peaks(line.ravel(), height=0.3, distance=apart)
    window = peaks // line.shape[1]
    same = window[1:] == window[:-1]
    of, between = window[1:][same], np.diff(peaks)[same]
    found = np.flatnonzero(np.bincount(of, minlength=len(energy)) >= 2)
    bpm = np.full(len(energy), np.nan)
    if len(found):
        bpm[found] = 60.0 * rate / np.asarray(median(between, of, found))
    return bpm


def _qrs_area(x: Array, energy: Array, rate: float) -> Array:
    """Net area of the QRS in each lead [n, leads]: the signal above its mean over 0.6 s, weighted by `energy`."""
    from scipy.ndimage import uniform_filter1d

    above = x - uniform_filter1d(x, max(1, round(0.6 * rate)), axis=2)
    return np.einsum("nlt,nt->nl", above, np.where(energy > 0.3, np.minimum(energy, 1.0), 0.0))


# ---- lead checks and warnings ----


def residuals(covariance: Array, names: Sequence[str]) -> dict[str, Array]:
    """RMS difference [n] of III, aVR, aVL, aVF from the value computed from I and II, relative to the three leads' RMS.

    III = II - I (Einthoven); aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2 (Goldberger).
    """
    out = {}
    for lead, (one, two) in leads.DERIVED.items():
        if {"I", "II", lead} <= set(names):
            rows = [names.index(name) for name in ("I", "II", lead)]
            weights = np.array([-one, -two, 1.0])
            three = covariance[:, rows][:, :, rows]
            power = np.einsum("i,nij,j->n", weights, three, weights)
            out[lead] = np.sqrt(np.maximum(power, 0) / np.trace(three, axis1=1, axis2=2).clip(1e-12) * 3)
    return out


def mending_swap(covariance: Array, names: Sequence[str]) -> tuple[str, str] | None:
    """The two limb leads whose swap brings all residuals below the threshold; None if there are none."""
    limb = [name for name in leads.CANONICAL[:6] if name in names]
    for a, b in itertools.combinations(limb, 2):
        turned = [{a: b, b: a}.get(name, name) for name in names]
        if all(nan_median(r) < RESIDUAL for r in residuals(covariance, turned).values()):
            return a, b
    return None


def chest_order(covariance: Array, names: Sequence[str]) -> list[str]:
    """V1 to V6 in the order that makes neighbours most similar (median correlation), V1 before V6; [] if incomplete.

    Neighbouring chest electrodes record similar signals, so that swapped leads give an order other than V1 to V6.
    """
    chest = leads.CANONICAL[6:]
    if not set(chest) <= set(names):
        return []
    rows = [names.index(name) for name in chest]
    part = covariance[:, rows][:, :, rows]
    size = np.sqrt(np.einsum("nii->ni", part))
    alike = nan_median(part / (size[:, :, None] * size[:, None, :]), axis=0)
    if not np.isfinite(alike).all():
        return []
    orders = [o for o in itertools.permutations(range(6)) if o.index(0) < o.index(5)]
    best = max(
        orders, key=lambda o: (round(sum(alike[a, b] for a, b in itertools.pairwise(o)), 6), o == tuple(range(6)))
    )
    return [chest[i] for i in best]


def numbers(measured: Measured, names: list[str]) -> dict[str, Any]:
    """Statistics of a source, medians over sampled windows. Amplitudes in mV, `residuals` and `positive_qrs` 0..1."""
    gaps = residuals(measured.covariance, names)
    off = {lead: float(nan_median(gap)) for lead, gap in gaps.items()}
    broken = any(value > RESIDUAL for value in off.values())
    known = ~np.isnan(measured.qrs)
    shares = np.where(known.any(axis=0), (measured.qrs > 0).sum(axis=0) / known.sum(axis=0).clip(1), np.nan)
    found = measured.bpm[~np.isnan(measured.bpm)]
    return {
        "sampled": len(measured.bpm),
        "percentiles_mv": dict(zip(names, measured.percentiles.T.tolist())),
        "peak_to_peak_mv": float(nan_median(measured.peak_to_peak)),
        "lead_peak_to_peak_mv": dict(zip(names, nan_median(measured.peak_to_peak, axis=0).tolist())),
        "bpm": float(nan_median(measured.bpm)),
        "bpm_5_95": np.percentile(found, [5, 95]).tolist() if len(found) else [np.nan, np.nan],
        "no_bpm": float(np.isnan(measured.bpm).mean()),
        "residuals": off,
        "mending_swap": mending_swap(measured.covariance, names) if broken else None,
        "positive_qrs": dict(zip(names, shares.tolist())),
        "chest_order": chest_order(measured.covariance, names),
    }


def findings(of_sources: Mapping[str, Mapping[str, Any]], seconds: float) -> list[str]:
    """Warnings derived from the `numbers` of each source, as sentences; `seconds`: length of a window."""
    lines = []
    for source, n in of_sources.items():
        lines += [f"{source}: {text}" for text in (*_lead_warnings(n), *_size_warnings(n, seconds))]
    sizes = {
        s: n["peak_to_peak_mv"]
        for s, n in of_sources.items()
        if n["sampled"] >= MIN_WINDOWS and n["peak_to_peak_mv"] > 0
    }
    if sizes and max(sizes.values()) > SOURCES_RATIO * min(sizes.values()):
        small, large = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        lines.append(
            f"{large} is {sizes[large] / sizes[small]:.1f} times as large as {small} (median peak-to-peak "
            f"{sizes[large]:.2f} and {sizes[small]:.2f} mV): is one of them in another unit or gain?"
        )
    return lines


def _lead_warnings(n: Mapping[str, Any]) -> Iterator[str]:
    if off := {lead: value for lead, value in n["residuals"].items() if value > RESIDUAL}:
        listed = ", ".join(f"{lead} ({100 * value:.0f} %)" for lead, value in off.items())
        swap = n["mending_swap"]
        hint = f"; swapping {swap[0]} and {swap[1]} would fix it" if swap else ""
        yield (
            f"limb leads do not follow from I and II: {listed} of their amplitude is unexplained in the median window, "
            f"where almost nothing should be. Leads may be swapped, inverted or have a different gain{hint}."
        )
    if n["sampled"] < MIN_WINDOWS:
        return
    for lead, sign in QRS_SIGNS.items():
        share = n["positive_qrs"].get(lead, np.nan)
        if (share if sign < 0 else 1 - share) > 0.5:
            usual, found = ("negative", "positive") if sign < 0 else ("positive", "negative")
            part = share if sign < 0 else 1 - share
            yield (
                f"the QRS of {lead} is {found} in {100 * part:.0f} % of the windows, but {usual} in most hearts: leads "
                "or electrodes may be swapped, or the sign inverted."
            )
    if n["chest_order"] and n["chest_order"] != list(leads.CANONICAL[6:]):
        yield (
            f"neighbouring chest leads are most similar in the order {' '.join(n['chest_order'])}: are some of them "
            "swapped?"
        )


def _size_warnings(n: Mapping[str, Any], seconds: float) -> Iterator[str]:
    if n["sampled"] < MIN_WINDOWS:
        return
    low, high = TYPICAL_MV
    if not low <= n["peak_to_peak_mv"] <= high:
        yield (
            f"the median peak-to-peak amplitude is {n['peak_to_peak_mv']:.3g} mV, where {low:g} to {high:g} mV are "
            "usual: is the unit or gain wrong?"
        )
    low, high = TYPICAL_BPM
    if n["no_bpm"] > 0.2 and seconds >= 5:
        yield f"no heart rate was found in {100 * n['no_bpm']:.0f} % of the windows: are they ECGs?"
    elif n["bpm"] < low or n["bpm"] > high:
        usual = f"where {low:g} to {high:g} are usual"
        yield f"the median heart rate is {n['bpm']:.0f}/min, {usual}: is the sampling rate right?"
