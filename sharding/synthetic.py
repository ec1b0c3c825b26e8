"""Synthetic patients: 12-lead ECGs of five rhythms as WFDB records, for demonstrations and tests without real data.

A moving dipole (the heart vector) is a sum of Gaussian kernels around each beat (McSharry et al. 2003, IEEE Trans
Biomed Eng 50:289; in three dimensions after Sameni et al. 2007, EURASIP J Adv Signal Process 2007:43407), and the eight
independent leads are its projections (Dower et al. 1980, Clin Cardiol 3:87). The other limb leads follow from I and II,
so Einthoven's and Goldberger's laws hold exactly. Axes: x to the left, y to the feet, z to the back; s and mV.

Each record has its own random generator, seeded by (seed, patient, record): it does not depend on other records or on
the number of patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.fft import irfft
from tqdm import tqdm

from umbra.config import check_fields, setting
from umbra.errors import UserError
from umbra.files import claim_folder, make_folder, read_yaml, write_text
from umbra.leads import CANONICAL, DERIVED, INDEPENDENT, derived

Array = NDArray[np.float64]

# SNOMED CT codes as in the PhysioNet/CinC challenges 2020 and 2021, and the prevalence of each rhythm.
SINUS, BRADYCARDIA, TACHYCARDIA = "426783006", "426177001", "427084000"
FIBRILLATION, VENTRICULAR = "164889003", "427172004"
RHYTHMS = {SINUS: 0.28, BRADYCARDIA: 0.18, TACHYCARDIA: 0.18, FIBRILLATION: 0.18, VENTRICULAR: 0.18}
# Mean heart rate (beats per minute); the limits of bradycardia and tachycardia are 60 and 100 by definition.
RATES = {
    SINUS: (60.5, 99.5),
    BRADYCARDIA: (50.0, 59.5),
    TACHYCARDIA: (100.5, 118.0),
    FIBRILLATION: (60.0, 130.0),
    VENTRICULAR: (48.0, 120.0),
}

DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)
# Weights of the electrodes RA, LA, LL, V1..V6 in the independent leads (V1..V6 against Wilson's central terminal).
ELECTRODES = np.zeros((8, 9))
ELECTRODES[0, :2] = -1, 1
ELECTRODES[1, [0, 2]] = -1, 1
ELECTRODES[2:, :3] = -1 / 3
ELECTRODES[2:, 3:] = np.eye(6)

# Kernels of one heart beat: seconds from the R peak (P: from the P peak, T: from the T peak), width, direction (mV).
KERNELS = (
    ("P right", -0.014, 0.017, (0.045, 0.085, -0.050)),
    ("P left", 0.016, 0.019, (0.075, 0.055, 0.035)),
    ("Q septal", -0.024, 0.0070, (-0.140, -0.060, -0.230)),
    ("R apical", 0.000, 0.0095, (0.950, 0.440, 0.100)),
    ("R lateral", 0.012, 0.0100, (0.520, 0.180, 0.720)),
    ("S basal", 0.028, 0.0095, (-0.220, -0.200, 0.330)),
    ("ST", 0.100, 0.0400, (0.015, 0.012, -0.030)),
    ("T upstroke", -0.045, 0.0480, (0.150, 0.095, -0.120)),
    ("T peak", 0.000, 0.0330, (0.210, 0.130, -0.160)),
    ("U", 0.130, 0.0280, (0.012, 0.010, -0.014)),
)
OFFSETS = np.array([kernel[1] for kernel in KERNELS])
WIDTHS = np.array([kernel[2] for kernel in KERNELS])
VECTORS = np.array([kernel[3] for kernel in KERNELS])
P, QRS, ST, T, U = slice(0, 2), slice(2, 6), slice(6, 7), slice(7, 9), slice(9, 10)
ONSET = 0.042  # seconds from QRS onset to R peak at normal QRS width
BEFORE, AFTER = 0.42, 0.86  # seconds around an R peak in which its kernels are evaluated

GAIN = 1000.0  # units per mV, as in PTB-XL
BATCH = 32
MARK = "synthetic.yaml"


@dataclass
class SynthConfig:
    """A folder of synthetic recordings."""

    output: str = ""
    """Output folder: new, empty, or begun with the same settings."""
    patients: int = setting(800, ">= 1 and <= 10000000")
    """Number of patients."""
    records_per_patient: int = setting(1, ">= 1 and <= 1000")
    """Recordings per patient."""
    seconds: float = setting(10.0, ">= 5 and <= 3600")
    """Length of a recording in seconds."""
    rate: float = setting(500.0, ">= 80 and <= 4000")
    """Sampling rate in Hz."""
    seed: int = setting(0, f">= 0 and < {2**63}")
    """Random seed; each record has its own generator, seeded by (seed, patient, record)."""

    def check(self) -> None:
        """Raises `UserError` for an invalid value."""
        if not self.output:
            raise UserError("output is not set: give it as key=value")
        check_fields(self)


@dataclass(frozen=True)
class Patient:
    """What a patient's recordings have in common.

    `vectors` [kernels, 3] in mV and `widths` [kernels] in s of the beat, `field` [8, 3] the projection of the heart
    vector to the leads, `qtc` (Fridericia) and `pr` in s, `mains` the mains frequency in Hz.
    """

    number: int
    age: int
    sex: str
    qtc: float
    pr: float
    widths: Array
    vectors: Array
    field: Array
    mains: float

    @property
    def name(self) -> str:
        return f"P{self.number:05d}"


@dataclass(frozen=True)
class Recording:
    """One record before rendering.

    `beats` [n] times of the R peaks (also some outside the record), `ventricular` [n] which of them are premature,
    `centres` and `widths` [n, kernels], `vectors` [n, kernels, 3], `atrial` [3, samples] f-waves, `noise` [9, samples].
    """

    name: str
    patient: Patient
    rhythm: str
    rate: float
    beats: Array
    ventricular: NDArray[np.bool_]
    centres: Array
    widths: Array
    vectors: Array
    field: Array
    atrial: Array | None
    noise: Array

    @property
    def samples(self) -> int:
        return self.noise.shape[1]


def write(config: SynthConfig, progress: bool = True) -> None:
    """Writes the recordings as WFDB records `P00/P00012_1.hea` and `.dat`, and finally the list `RECORDS`.

    The same config gives the same bytes; a finished folder is left unchanged. Raises `UserError` for invalid
    settings and for a folder with other content.
    """
    config.check()
    root = Path(config.output)
    if _finished(root, config):
        if progress:
            print(f"{root} already holds these recordings: nothing to do")
        return
    jobs = [(p, r) for p in range(config.patients) for r in range(config.records_per_patient)]
    names = []
    with tqdm(total=len(jobs), unit=" records", desc="synthesis", disable=not progress) as bar:
        for chunk in _chunks(jobs):
            recordings = [draw(config.seed, p, r, config.seconds, config.rate) for p, r in chunk]
            for recording, signals in zip(recordings, render(recordings), strict=True):
                names.append(_write_record(root, recording, quantise(signals)))
            bar.update(len(chunk))
    write_text(root / "RECORDS", "".join(f"{name}\n" for name in names))


def draw(seed: int, patient: int, record: int, seconds: float = 10.0, rate: float = 500.0) -> Recording:
    """Draws record number `record` of patient number `patient` (both from 0)."""
    who = draw_patient(seed, patient)
    rng = np.random.default_rng([seed, patient, record + 1])
    rhythm = str(rng.choice(list(RHYTHMS), p=list(RHYTHMS.values())))
    breath = rng.uniform(0.15, 0.35), rng.uniform(0, 2 * np.pi)
    beats, ventricular = _rhythm(rng, rhythm, who, seconds, breath)
    centres, widths = _timing(who, rhythm, beats)
    vectors = np.broadcast_to(who.vectors, (len(beats), *VECTORS.shape)).copy()
    vectors *= 1 + rng.uniform(0.01, 0.10) * np.sin(2 * np.pi * breath[0] * beats + breath[1])[:, None, None]
    vectors *= 1 + 0.02 * rng.standard_normal((len(beats), len(KERNELS), 1))
    if rhythm == FIBRILLATION:
        vectors[:, P] = 0
    if ventricular.any():
        _make_ventricular(rng, who, ventricular, centres, widths, vectors)
    samples = round(seconds * rate)
    return Recording(
        name=f"{who.name}_{record + 1}",
        patient=who,
        rhythm=rhythm,
        rate=rate,
        beats=beats,
        ventricular=ventricular,
        centres=centres,
        widths=widths,
        vectors=vectors,
        field=who.field * np.exp(0.06 * rng.standard_normal((8, 1))),
        atrial=_fibrillation(rng, samples, rate) if rhythm == FIBRILLATION else None,
        noise=_noise(rng, samples, rate, who.mains, breath),
    )


def draw_patient(seed: int, number: int) -> Patient:
    """Draws what all recordings of a patient have in common.

    Women's QTc is longer by about 18 ms (Rautaharju et al. 1992, Can J Cardiol 8:690), their QRS is smaller (Macfarlane
    et al. 1994, J Electrocardiol 27 Suppl:14), their ST and T are lower (Bidoggia et al. 2000, Am Heart J 140:430), all
    with wide overlap. The axis turns left with age.
    """
    rng = np.random.default_rng([seed, number, 0])
    female = bool(rng.random() < 0.5)
    age = int(np.clip(rng.normal(58, 17), 18, 95))
    widths = WIDTHS.copy()
    vectors = VECTORS * np.exp(0.25 * rng.standard_normal((len(KERNELS), 1)))
    vectors += 0.22 * np.linalg.norm(vectors, axis=1, keepdims=True) * rng.standard_normal(VECTORS.shape)
    vectors[P] *= np.exp(0.45 * rng.standard_normal())
    vectors[QRS] *= (0.88 if female else 1.14) * np.exp(0.36 * rng.standard_normal()) * (1 - 0.003 * (age - 58))
    vectors[T] *= (0.72 if female else 1.08) * np.exp(0.42 * rng.standard_normal())
    vectors[ST] *= (0.5 if female else 1.5) * np.exp(0.45 * rng.standard_normal())
    vectors[QRS] @= _rotation(rng, (10, 16, 23), (0, 0, 0.35 * (age - 58))).T
    vectors[P] @= _rotation(rng, (8, 8, 12)).T
    vectors[6:] @= _rotation(rng, (14, 18, 20)).T
    widths[QRS] *= (0.98 if female else 1.02) * np.exp(0.24 * rng.standard_normal())
    widths[P] *= np.exp(0.15 * rng.standard_normal())
    widths[T] *= np.exp(0.12 * rng.standard_normal())
    return Patient(
        number=number,
        age=age,
        sex="Female" if female else "Male",
        qtc=float(np.clip((0.420 if female else 0.402) + 0.017 * rng.standard_normal(), 0.35, 0.47)),
        pr=float(np.clip(0.160 + 0.0004 * (age - 58) + 0.018 * rng.standard_normal(), 0.12, 0.20)),
        widths=widths,
        vectors=vectors,
        field=DOWER * (1 + 0.12 * rng.standard_normal(DOWER.shape)),
        mains=float(rng.choice([50.0, 60.0])),
    )


def render(recordings: Sequence[Recording]) -> Array:
    """The leads in millivolt, `[records, 12, samples]` in canonical order, of recordings of one rate and length."""
    heart = _heart_vectors(recordings)
    field = np.stack([r.field for r in recordings])
    noise = np.stack([r.noise for r in recordings])
    eight = np.einsum("bla,bat->blt", field, heart) + np.einsum("le,bet->blt", ELECTRODES, noise)
    leads = np.empty((len(recordings), len(CANONICAL), eight.shape[2]))
    for row, lead in enumerate(CANONICAL):
        if lead in DERIVED:
            leads[:, row] = derived(lead, eight[:, 0], eight[:, 1])
        else:
            leads[:, row] = eight[:, INDEPENDENT.index(lead)]
    return leads


def quantise(signals: Array) -> NDArray[np.int16]:
    """Millivolt to the int16 units of the signal files (1 microvolt each)."""
    return np.clip(np.rint(signals * GAIN), -32767, 32767).astype("<i2")


def _heart_vectors(recordings: Sequence[Recording]) -> Array:
    """`[records, 3, samples]`: the kernels of all beats are evaluated at once, then added at their positions."""
    rate, samples = recordings[0].rate, recordings[0].samples
    before, span = int(BEFORE * rate), int((BEFORE + AFTER) * rate)
    beats = np.concatenate([r.beats for r in recordings])
    centres = np.concatenate([r.centres for r in recordings])
    widths = np.concatenate([r.widths for r in recordings])
    vectors = np.concatenate([r.vectors for r in recordings])
    first = np.rint(beats * rate).astype(np.int64) - before
    time = (first[:, None] + np.arange(span)) / rate - beats[:, None]
    pulses = np.zeros((len(beats), 3, span))
    for k in range(len(KERNELS)):
        bell = np.exp(-0.5 * ((time - centres[:, k, None]) / widths[:, k, None]) ** 2)
        pulses += vectors[:, k, :, None] * bell[:, None]
    heart = np.zeros((len(recordings), 3, samples + 2 * span))
    owner = np.repeat(np.arange(len(recordings)), [len(r.beats) for r in recordings])
    for record, start, pulse in zip(owner, first + span, pulses, strict=True):
        heart[record, :, start : start + span] += pulse
    heart = heart[:, :, span : span + samples]
    for row, recording in enumerate(recordings):
        if recording.atrial is not None:
            heart[row] += recording.atrial
    return heart


def _rhythm(
    rng: Generator, rhythm: str, who: Patient, seconds: float, breath: tuple[float, float]
) -> tuple[Array, NDArray[np.bool_]]:
    """Times of the R peaks from before the record to after it, and which of them are ventricular."""
    low, high = RATES[rhythm]
    mean = 60 / rng.uniform(low, high)
    count = int(seconds / mean) + 12
    if rhythm == FIBRILLATION:
        rr = np.maximum(mean * np.exp(rng.uniform(0.16, 0.30) * rng.standard_normal(count)), 0.32)
    else:
        depth = np.exp(rng.uniform(np.log(0.004), np.log(0.07))) * np.clip(1.6 - who.age / 80, 0.4, 1.3)
        rr = 1 + depth * np.sin(2 * np.pi * breath[0] * mean * np.arange(count) + breath[1])
        rr = mean * (rr + 0.008 * rng.standard_normal(count))
    beats = np.cumsum(rr) - rr[0] - rng.uniform(2.0, 2.0 + mean)
    inside = beats[(beats >= 0) & (beats < seconds)]
    beats *= mean * (len(inside) - 1) / (inside[-1] - inside[0])
    beats = beats[(beats > -AFTER) & (beats < seconds + BEFORE)]
    ventricular = np.zeros(len(beats), bool)
    if rhythm == VENTRICULAR:
        _add_premature(rng, who, beats, ventricular, seconds)
    return beats, ventricular


def _add_premature(rng: Generator, who: Patient, beats: Array, ventricular: NDArray[np.bool_], seconds: float) -> None:
    """Makes isolated beats premature, two to five in ten seconds, each with a full compensatory pause."""
    free = [k for k in range(2, len(beats) - 1) if 0.4 < beats[k] < seconds - 0.4]
    wanted = max(1, round(int(rng.integers(2, 6)) * seconds / 10))
    coupling = rng.uniform(0.58, 0.80)
    while free and wanted:
        k = int(rng.choice(free))
        rr = beats[k] - beats[k - 1]
        earliest = _qt(who.qtc, rr) + 0.03
        early = np.clip(coupling * rr + 0.01 * rng.standard_normal(), min(earliest, 0.86 * rr), 0.86 * rr)
        beats[k] = beats[k - 1] + early
        ventricular[k] = True
        free = [other for other in free if abs(other - k) > 2]
        wanted -= 1


def _qt(qtc: float, rr: Array | float) -> Array | float:
    """QT interval after Fridericia (1920): QTc times the cube root of RR (s)."""
    return qtc * np.cbrt(rr)


def _timing(who: Patient, rhythm: str, beats: Array) -> tuple[Array, Array]:
    """Centres (from the R peak) and widths of all kernels of all beats, `[n, kernels]` each."""
    rr = np.diff(beats, prepend=beats[0] - np.diff(beats).mean())
    slow = np.convolve(np.pad(rr, (3, 0), mode="edge"), [0.25] * 4, mode="valid")
    rr = 0.3 * rr + 0.7 * slow if rhythm == FIBRILLATION else slow
    stretch = np.cbrt(rr)[:, None]
    qrs = who.widths[3] / WIDTHS[3]
    widths = np.broadcast_to(who.widths, (len(beats), len(KERNELS))).copy()
    widths[:, 6:] *= stretch
    centres = np.broadcast_to(OFFSETS, widths.shape).copy()
    centres[:, QRS] *= qrs
    peak = _qt(who.qtc, rr) - ONSET * qrs - 2.2 * widths[:, 8]
    pr = np.minimum(who.pr, 0.30 * rr + 0.04)  # from P onset to QRS onset; the P wave's centre is 45 ms after its onset
    centres[:, P] -= (pr + ONSET * qrs - 0.045)[:, None]
    centres[:, 6:] *= stretch
    centres[:, T] += peak[:, None]
    centres[:, U] += peak[:, None]
    return centres, widths


def _make_ventricular(
    rng: Generator, who: Patient, which: NDArray[np.bool_], centres: Array, widths: Array, vectors: Array
) -> None:
    """Turns beats into ventricular ones of one focus: no P wave, a wide QRS of another axis, discordant ST and T."""
    axis = rng.standard_normal(3) * (1.0, 0.8, 0.8)
    axis /= np.linalg.norm(axis)
    size = np.linalg.norm(who.vectors[QRS].sum(axis=0)) * rng.uniform(0.6, 1.4)
    wide = rng.uniform(1.8, 2.6)
    loop = axis + 0.35 * rng.standard_normal((4, 3))
    vectors[which, P] = 0
    vectors[which, QRS] = size * np.array([0.25, 0.55, 0.45, 0.15])[:, None] * loop
    vectors[which, ST] = -size * 0.12 * axis
    vectors[which, T] = -size * np.array([0.16, 0.22])[:, None] * (axis + 0.2 * rng.standard_normal(3))
    vectors[which, U] = 0
    widths[which, QRS] = WIDTHS[QRS] * wide
    centres[which, QRS] = OFFSETS[QRS] * wide
    widths[which, T] *= 1.25
    centres[which, 6:] += 0.03


def _rotation(rng: Generator, spread: Sequence[float], mean: Sequence[float] = (0, 0, 0)) -> Array:
    """A random rotation about x, y and z; `spread` (standard deviations) and `mean` in degrees."""
    x, y, z = np.deg2rad(np.asarray(mean) - np.asarray(spread) * rng.standard_normal(3))
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _fibrillation(rng: Generator, samples: int, rate: float) -> Array:
    """f-waves `[3, samples]`: a sawtooth of varying frequency and amplitude, after Stridh and Sörnmo (2001)."""
    time = np.arange(samples) / rate
    frequency = rng.uniform(4.5, 8.0) + 0.4 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * time + rng.uniform(0, 6.28))
    phase = 2 * np.pi * np.cumsum(frequency) / rate + rng.uniform(0, 6.28)
    size = np.exp(rng.uniform(np.log(0.025), np.log(0.10)))
    size = size * (1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.1, 0.7) * time + rng.uniform(0, 6.28)))
    saw = sum(np.sin(i * phase) / i for i in (1, 2, 3))
    turn = rng.uniform(0.2, 0.6)
    direction = np.array([0.35, 0.55, -0.75])[:, None] * (1 + 0.3 * rng.standard_normal((3, 1)))
    return direction * size * (saw + turn * np.array([0.0, 1.0, -1.0])[:, None] * np.cos(phase))


def _noise(rng: Generator, samples: int, rate: float, mains: float, breath: tuple[float, float]) -> Array:
    """Noise of the nine electrodes `[9, samples]`: baseline wander, muscle, mains, amplifier; levels vary widely."""
    time = np.arange(samples) / rate
    muscle = _log_uniform(rng, 0.003, 0.060) * np.exp(0.4 * rng.standard_normal((9, 1)))
    wander = _log_uniform(rng, 0.01, 0.20) * np.exp(0.3 * rng.standard_normal((9, 1)))
    hum = _log_uniform(rng, 0.0005, 0.015) * np.exp(0.5 * rng.standard_normal((9, 1)))
    f = np.fft.rfftfreq(samples, 1 / rate)[1:]
    # Spectral densities (mV per root Hz) of unit RMS: wander falls as 1/f below 0.6 Hz, muscle is at 20 to 150 Hz.
    slow = 0.30 / np.hypot(f, 0.15) * np.exp(-0.5 * (f / 0.5) ** 2)
    fast = (f / 25) ** 2 / (1 + (f / 25) ** 2) / np.sqrt(1 + (f / 130) ** 4) / 11.0
    spectrum = np.zeros((9, len(f) + 1), complex)
    draws = rng.standard_normal((2, 9, len(f)))
    spectrum[:, 1:] = draws[0] + 1j * draws[1]
    scale = 0.5 * np.sqrt(rate * samples)
    gentle = spectrum.copy()
    gentle[:, 1:] *= scale * wander * slow
    spectrum[:, 1:] *= scale * np.hypot(muscle * fast, 0.0003)
    noise = irfft(spectrum, samples) * _bursts(rng, time) + irfft(gentle, samples)
    noise += (
        wander * rng.uniform(0, 0.8) * np.sin(2 * np.pi * breath[0] * time + breath[1] + rng.normal(0, 0.4, (9, 1)))
    )
    if mains < rate / 2:
        noise += hum * np.sin(2 * np.pi * mains * time + rng.uniform(0, 2 * np.pi))
    return noise + _motion(rng, time)


def _motion(rng: Generator, time: Array) -> Array:
    """Motion artefacts `[9, samples]`: a random number of short deflections, each at one electrode."""
    noise = np.zeros((9, len(time)))
    for _ in range(int(rng.poisson(_log_uniform(rng, 0.3, 3.0) * time[-1]))):
        since = (time - rng.uniform(0, time[-1])) / _log_uniform(rng, 0.008, 0.08)
        shape = np.exp(-0.5 * since**2) * np.cos(rng.uniform(0, 2.5) * since + rng.uniform(0, 2 * np.pi))
        noise[rng.integers(9)] += _log_uniform(rng, 0.08, 0.8) * shape
    return noise


def _bursts(rng: Generator, time: Array) -> Array:
    """Envelope of muscle noise: constant, or with one to three contractions."""
    envelope = np.ones_like(time)
    for _ in range(int(rng.integers(0, 4))):
        centre, width = rng.uniform(0, time[-1]), rng.uniform(0.2, 1.2)
        envelope += rng.uniform(0.3, 1.4) * np.exp(-0.5 * ((time - centre) / width) ** 2)
    return envelope


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _finished(root: Path, config: SynthConfig) -> bool:
    """Whether `root` is already complete. Claims an empty or interrupted folder; raises `UserError` for any other."""
    settings = {key: value for key, value in asdict(config).items() if key != "output"}
    claim_folder(root, "output")
    mark = root / MARK
    if mark.is_file():
        if read_yaml(mark, "choose another folder") != settings:
            raise UserError(
                f"output={root} holds synthetic recordings with other settings ({mark}): choose another folder"
            )
        return (root / "RECORDS").is_file()
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"output={root} is not empty: choose a new folder")
    make_folder(root, "output")
    write_text(mark, yaml.safe_dump(settings))
    return False


def _chunks(jobs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(jobs), BATCH):
        yield jobs[start : start + BATCH]


def _write_record(root: Path, recording: Recording, units: NDArray[np.int16]) -> str:
    """Writes `.dat` (format 16, leads interleaved) and `.hea`; returns the record's name relative to `root`."""
    folder = f"P{recording.patient.number // 1000:02d}"
    (root / folder).mkdir(exist_ok=True)
    path = root / folder / recording.name
    path.with_suffix(".dat").write_bytes(np.ascontiguousarray(units.T).tobytes())
    path.with_suffix(".hea").write_text(_header(recording, units))
    return f"{folder}/{recording.name}"


def _header(recording: Recording, units: NDArray[np.int16]) -> str:
    """The header's text: https://www.physionet.org/physiotools/wag/header-5.htm."""
    name, who = recording.name, recording.patient
    checksums = units.sum(axis=1, dtype=np.int64) % 65536
    lines = [f"{name} {len(units)} {recording.rate:g} {units.shape[1]}"]
    for lead, row, checksum in zip(CANONICAL, units, checksums, strict=True):
        lines.append(f"{name}.dat 16 {GAIN:.1f}(0)/mV 16 0 {row[0]} {checksum} 0 {lead}")
    lines += [f"# Age: {who.age}", f"# Sex: {who.sex}", f"# Dx: {recording.rhythm}", f"# Patient ID: {who.name}"]
    return "\n".join(lines) + "\n"
