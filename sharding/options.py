"""The config of a build, its validation, and the closed list of reasons why a record or window is rejected."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sharding import signal
from sharding.sources import protocol
from sharding.sources.protocol import SourceConfig
from umbra import leads, resume
from umbra.config import check_fields, setting
from umbra.errors import UserError
from umbra.schema import SPLITS

MOST_SAMPLES = 1 << 24  # of a window

REASONS = {
    "missing_file": "the header or a signal file does not exist",
    "unreadable": "a file cannot be opened, or is not a regular file",
    "path": "a file name that is absolute, or outside the folder where it belongs",
    "header": "the header is invalid or ambiguous",
    "multi_segment": "a record whose segments do not match",
    "segment": "a segment of another record, which is read as a whole",
    "format": "a signal format that is not supported",
    "shape": "an array whose shape does not match its leads",
    "frames": "an impossible number of samples per frame",
    "skew": "leads with skew or of different lengths",
    "truncated": "the signal file is damaged, or shorter than its header states",
    "empty": "no samples",
    "too_large": "more values than a record may have (leads x samples; WFDB 2^33, others 2^26): split it",
    "rate": "a sampling rate out of bounds",
    "gain": "an impossible gain",
    "duplicate_lead": "a lead occurs twice",
    "missing_lead": "a lead is missing and cannot be derived",
    "short": "shorter than one window",
    "duplicate_record": "the table, the tar or another part of a join also has the record",
    "no_split": "the config assigns it to no split",
    "patient_overflow": "a patient has more windows than fit into one shard",
    "nan": "missing samples",
    "saturated": "a lead stays at a limit of the A/D converter",
    "flat_lead": "a lead that never changes",
    "units": "units that are not a voltage, or amplitudes that suggest a wrong unit",
    "amplitude": "a value beyond 20 mV",
    "clipped": "a value that does not fit int16 at this resolution",
    "metadata": "metadata larger than its space in the shard",
}

FLAGS = {  # notes on windows that are kept
    "checksum": "the signals do not match the header's checksum",
    "derived": "limb leads derived from I and II",
    "padded": "short record padded with zeros at the end",
    "lost_segment": "another segment of the record cannot be read",
    "at_limit": "samples at a limit of the A/D converter",
    "still_ends": f"no lead changes for {signal.STILL_SECONDS:g} s or more at the start or end: padding?",
}


def padding_advice(source: Mapping[str, Any]) -> str:
    """What to do about `still_ends` in a data set with this config of its `source`."""
    cut = "cut it off in the files (private/records.parquet names the records, detail)"
    if source.get("format") in ("wfdb", "clinical"):
        return cut
    if source.get("array", {}).get("trim"):
        return f"it is not zeros at the ends of a record, which source.array.trim cuts off: {cut}"
    return (
        "source.array.trim=true cuts zeros off, and min_seconds keeps records that are then shorter than a window; if "
        f"it is not zeros, {cut}"
    )


_FIXES = {
    "missing_lead": "leads=[I,...] names the leads to build, missing_leads=zero fills the others with zeros",
    "shape": "source.array.leads must name the array's leads, source.array.leads_last=true if they are the last axis",
    "short": "a shorter window, seconds=..., or min_seconds=... to pad",
    "units": "source.array.units, or the gain in the headers",
    "amplitude": "source.array.units, or the gain in the headers",
    "rate": "source.array.rate",
}


def fix_of(reasons: Counter[str], there: Sequence[str] = ()) -> str:
    """What to try where all was rejected, by the most frequent reason; empty if there is nothing to name.

    `there`: the wanted leads that records without all of them have.
    """
    reason = reasons.most_common(1)[0][0] if reasons else ""
    if reason == "missing_lead" and there:
        names = f"leads=[{','.join(there)}]"
        return f"; {names} builds the leads that are there, missing_leads=zero fills the others with zeros"
    return f"; {fix}" if (fix := _FIXES.get(reason, "")) else ""


def named(reasons: Counter[str]) -> str:
    return ", ".join(f"{n} {reason} ({REASONS.get(reason, '')})" for reason, n in reasons.most_common())


_SPLIT = ">= 0 and <= 1 (together at most 1), or a list"


@dataclass
class SplitConfig:
    """Which patients go to which split."""

    column: str = ""
    """The table's column of splits (empty: patients are assigned at random)."""
    train: Any = setting(0.8, allowed=_SPLIT)
    """Training: a fraction of the patients or, with `column`, a list of that column's values."""
    val: Any = setting(0.1, allowed=_SPLIT)
    """Validation: a fraction or values, as for `train`."""
    test: Any = setting(0.1, allowed=_SPLIT)
    """Testing: a fraction or values, as for `train`."""

    def fractions(self) -> list[float]:
        """The fractions of the splits, in order. Raises `UserError` if they are none."""
        values = [getattr(self, s) for s in SPLITS]
        if (
            any(isinstance(v, bool) or not isinstance(v, int | float) or not v >= 0 for v in values)
            or sum(values) > 1 + 1e-9
        ):
            raise UserError(
                f"split: train={values[0]} val={values[1]} test={values[2]} must be fractions that add up to at most 1 "
                "(or name the table's column in split.column)"
            )
        if values[0] == 0:
            raise UserError("split.train must be more than 0")
        return [float(v) for v in values]


@dataclass
class BuildConfig:
    """The config of a build."""

    input: str = ""
    """The folder of the recordings to read."""
    output: str = ""
    """The folder of the data set to write."""
    rate: float = setting(100.0, signal.IN_RATES)
    """Sampling rate of the shards in Hz; recordings are resampled."""
    seconds: float = setting(10.0, "> 0 and < 1000000")
    """Length of a window in seconds; with `rate` it must give a whole number of samples."""
    min_seconds: float = setting(0.0, ">= 0", allowed=">= 0 and <= `seconds`")
    """Minimum length in seconds, at most `seconds`, of a record that is padded with zeros at its end to one window;
    shorter ones are rejected (0: no padding)."""
    leads: list[str] = field(default_factory=lambda: list(leads.CANONICAL))
    """Leads of the shards, in order, in upper or lower case; missing limb leads are derived from I and II."""
    missing_leads: str = setting("refuse", choices=("refuse", "zero"))
    """For a record without one of `leads`: `refuse` it, or fill the lead with `zero` (`samples.parquet` lists the leads
    that are present)."""
    high_pass: float = setting(0.0, ">= 0", allowed=">= 0 and <= `rate` / 4")
    """Cut-off in Hz of a zero-phase high-pass against baseline wander, at most a quarter of `rate` (0: none)."""
    workers: int = setting(1, ">= 1 and <= 1024")
    """Processes on this machine."""
    samples_per_shard: int = setting(1000, ">= 1 and <= 999999")
    """Maximum number of windows per shard; a patient's windows beyond it are rejected."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Which patients are for training, validation and testing."""
    labels: list[str] = field(default_factory=list)
    """Columns of the table that become columns of samples.parquet."""
    seed: int = setting(0, ">= 0 and < 1e18")
    """Random seed of the order of patients and of random splits."""
    resolution_uv: float = setting(1.0, ">= 0.001 and <= 1000")
    """Microvolts per int16 unit."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """The data set that is read."""
    key_file: str = ""
    """A file with the pseudonym key (or set the variable UMBRA_KEY); not needed for public sources."""
    task: int = setting(0, ">= 0 and < 100000")
    """This machine's number among the `tasks`, from 0: it builds every `tasks`-th shard from this one on."""
    tasks: int = setting(1, ">= 1 and <= 100000")
    """Number of machines that build together; they share only the file system."""
    timeout: float = setting(300.0, ">= 1 and <= 86400")
    """Timeout in seconds; a record that cannot be read in time stops its shard."""

    @property
    def samples(self) -> int:
        return round(self.rate * self.seconds)

    def check(self) -> None:
        """Raises `UserError` for values that cannot work, whatever the input holds."""
        check_fields(self)
        if abs(self.rate * self.seconds - self.samples) > 1e-6 or self.samples > MOST_SAMPLES:
            raise UserError(
                f"seconds={self.seconds:g} times rate={self.rate:g} must be a whole number of samples, at most "
                f"{MOST_SAMPLES}"
            )
        for key, highest in (("min_seconds", self.seconds), ("high_pass", self.rate / 4)):
            if getattr(self, key) > highest:
                raise UserError(f"{key}={getattr(self, key):g} must be between 0 and {highest:g}")
        if not self.split.column:
            self.split.fractions()
        if self.task >= self.tasks:
            raise UserError(f"task={self.task} must be between 0 and tasks-1={self.tasks - 1}")
        _canonical_leads(self)
        for key, name in {"name": self.source.name, **{f"parts.{k}": v for k, v in self.source.parts.items()}}.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", str(name)):
                raise UserError(f"source.{key}={name} must be 1 to 40 letters, digits, - and _, because it is public")
        if paths := [folder for folder in self.source.parts if "/" in folder]:
            raise UserError(f"source.parts: '{paths[0]}' is a path: give the bare name of one folder")
        _check_pattern(self.source.patient_pattern)
        protocol.module(self.source.format).check(self.source)


def validated(config: BuildConfig) -> BuildConfig:
    """The config with canonical lead names. Raises `UserError` for invalid values."""
    _check_input(config)
    config.check()
    return dataclasses.replace(config, leads=_canonical_leads(config))


def _canonical_leads(config: BuildConfig) -> list[str]:
    names = [name for lead in config.leads if (name := leads.canonical(lead))]
    if not names or len(names) < len(config.leads) or len(set(names)) < len(names):
        raise UserError(f"leads={config.leads} must be distinct leads of {', '.join(leads.CANONICAL)}")
    return names


def _check_input(config: BuildConfig) -> None:
    if not config.input or not config.output:
        raise UserError("input=FOLDER and output=FOLDER are required")
    if not Path(config.input).exists():
        raise UserError(f"input folder {config.input} does not exist")
    if not Path(config.input).is_dir():
        raise UserError(f"input={config.input} is not a folder")
    if not any(os.scandir(config.input)):
        raise UserError(f"input folder {config.input} is empty")


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"source.patient_pattern={pattern} is no regular expression: {error}") from error
    if pattern and groups != 1:
        raise UserError(f"source.patient_pattern={pattern} has {groups} groups: put ( ) around the patient's id alone")


def content(config: BuildConfig, key_id: str) -> dict[str, Any]:
    """The part of a config that determines the bytes of the result."""
    values = {k: v for k, v in dataclasses.asdict(config).items() if not resume.is_free("build", k)}
    return {**json.loads(json.dumps(values)), "key_id": key_id}
