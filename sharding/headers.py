"""Reads headers and table into one row per record, as columns: the basis of the plan. No signals are read.

Records are described in chunks, by any number of workers, and returned as arrow tables, so that tens of millions fit
into memory. Raw patient ids and record names become pseudonyms here; `record` itself stays in `private/`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sharding import deidentify, metadata, signal, watchdog
from sharding.metadata import Table, label, read_table
from sharding.options import BuildConfig
from sharding.sources import protocol
from umbra import leads
from umbra.errors import UserError
from umbra.schema import SAMPLE_COLUMNS, SAMPLES

CHUNK = 1024
MOST_WORDS = 1000
MOST_WINDOWS = (1 << 31) - 1
Unknown = tuple[str, str]
# Permanent errors; any other (EIO, ESTALE, ...) stops the planning, so that no record is dropped by mistake.
LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
_WORD = pa.dictionary(pa.int32(), pa.string())
COLUMNS = {
    "record": pa.large_string(),
    "name": pa.int64(),  # hash of `record`
    "reason": _WORD,
    "detail": _WORD,
    "patient": pa.int64(),
    "own": pa.bool_(),  # no patient id: the record counts as its own patient
    "age": pa.float32(),
    "sex": _WORD,
    "codes": _WORD,  # joined by ;
    "left_out": pa.int32(),  # number of words in code fields that are not known codes
    "part": _WORD,  # name of the source, by `source.parts`
    "leads": _WORD,  # wanted leads that are present or derivable, joined by spaces
    "windows": pa.int32(),
    "stretches": _WORD,  # FIRST-LAST of each stretch that windows are cut from; empty: the whole record, read at once
    "reader": _WORD,  # which of a source's readers decodes the samples
    "files": _WORD,  # joined by newlines; * stands for the record's name
    "bytes": pa.int64(),  # of all its files; -1: one is missing
    "stamp": pa.int64(),  # hash of their sizes and modification times
}


@dataclass
class Survey:
    """What is known before headers are read: all records, and their words, splits and labels from the table, if any."""

    table: Table | None
    records: pa.Array
    splits: pa.Array | None
    labels: dict[str, pa.Array]

    def chunks(self) -> Iterator[tuple[list[str], dict[str, list[str]]]]:
        """(records, words by kind), `CHUNK` records at a time."""
        words = self.table.words if self.table else {}
        for start in range(0, len(self.records), CHUNK):
            part = {kind: values.slice(start, CHUNK).to_pylist() for kind, values in words.items()}
            yield self.records.slice(start, CHUNK).to_pylist(), part


def all_records(config: BuildConfig, table: Table | None) -> pa.Array:
    """The names of all records of the input. Raises `UserError` if there is none."""
    if table is not None:
        if not len(table.records):
            raise UserError(f"{table.path} has no rows")
        return table.records.cast(pa.large_string())
    found = _found(config)
    if not len(found):
        endings = protocol.module(config.source.format).ENDINGS
        raise UserError(f"input folder {config.input} contains no file with the ending {' or '.join(endings)}")
    return found


def _found(config: BuildConfig) -> pa.Array:
    root = Path(config.input)
    with watchdog.limit(config.timeout, lambda: f"input folder {root} {watchdog.LISTING_HANGS}"):
        found = protocol.module(config.source.format).find(root, inside(root, Path(config.output)), config.source)
    return pa.array([_encodable(name) for name in found], pa.large_string())


def unlisted(config: BuildConfig, known: Survey) -> pa.Array:
    """The records below the input that no row of the table names; none without a table."""
    if known.table is not None:
        with contextlib.suppress(UserError):  # no file can be read: each row gets its own reason
            return metadata.unlisted(known.table, config.source.table, _found(config))
    return pa.array([], pa.large_string())


def table_notes(config: BuildConfig, known: Survey) -> list[str]:
    """Lines on columns of the config that the table lacks, or on a table with patients that is not used."""
    options = config.source.table
    if known.table is None:
        unread = metadata.with_patients(Path(config.input), options)
        return [f"{name} has patient ids, but is not used: set source.table.file=[{name}]" for name in unread]
    lists = {kind: getattr(options, kind) for kind in ("patient", "age", "sex", "codes")}
    asked = {k: names for k, names in lists.items() if k == "patient" or names != getattr(metadata.TableConfig(), k)}
    lacking = [f"{k}=[{','.join(names)}]" for k, names in asked.items() if names and k not in known.table.words]
    name = Path(known.table.path).name
    return [f"{name} lacks the columns of source.table {' '.join(lacking)}"] if lacking else []


def listing(config: BuildConfig) -> str:
    """Hash of the names of all files that may hold records; empty with a table, which has its own stamp."""
    if config.source.table.file:
        return ""
    root = Path(config.input)
    endings = protocol.module(config.source.format).ENDINGS
    with watchdog.limit(config.timeout, lambda: f"input folder {root} {watchdog.LISTING_HANGS}"):
        names = protocol.files_below(root, inside(root, Path(config.output)), endings)
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _encodable(name: str) -> str:
    """A file name with invalid UTF-8 escaped: the file cannot be read under it, but the record is accounted for."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


def inside(root: Path, output: Path) -> str:
    """The path of `output` relative to `root`; empty if it is not inside."""
    relative = os.path.relpath(os.path.realpath(output), os.path.realpath(root))
    return "" if relative == "." or relative.startswith("..") else relative


def describe_all(
    config: BuildConfig,
    key: deidentify.PseudonymKey,
    known: Survey,
    pool: Executor | None,
    tick: Callable[[int], object],
) -> tuple[pa.Table, Counter[Unknown]]:
    """(one row per record in the order of `known.records`, each column one contiguous array; counts of the commonest
    unknown words for codes and sexes, as (kind, word))."""
    job = partial(describe, config, key)
    parts: dict[str, Any] = {name: [] for name in COLUMNS if name != "record"}
    unknown: Counter[Unknown] = Counter()
    for part, words in in_order(job, known.chunks(), pool):
        unknown.update(words)
        if len(unknown) > 20 * MOST_WORDS:  # bounds memory; the commonest words occur in every chunk
            unknown = Counter(dict(unknown.most_common(MOST_WORDS)))
        for name in parts:
            parts[name] += part.column(name).chunks
        tick(len(part))
    for name in parts:  # one by one, so that at most one column is in memory twice
        column = pa.chunked_array(parts[name], COLUMNS[name])
        parts[name] = (column.unify_dictionaries() if COLUMNS[name] == _WORD else column).combine_chunks()
    return pa.table({"record": known.records, **parts}), unknown


def in_order(job: Callable[[Any], Any], items: Iterator[Any], pool: Executor | None, ahead: int = 64) -> Iterator[Any]:
    """`map(job, items)` over the pool, in order, with at most `ahead` items in flight."""
    if pool is None:
        yield from map(job, items)
        return
    waiting = deque(pool.submit(job, item) for item in islice(items, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(job, item) for item in islice(items, 1))


def describe(
    config: BuildConfig, key: deidentify.PseudonymKey, chunk: tuple[list[str], dict[str, list[str]]]
) -> tuple[pa.Table, Counter[Unknown]]:
    """(the rows of some records, counts of their unknown words for codes and sexes).

    Words from the table override those from the header.
    """
    records, words = chunk
    kinds = list(words)
    per_record = zip(*words.values()) if kinds else (() for _ in records)
    vocabulary, unknown = _vocabulary(config.source), Counter[Unknown]()
    rows = [
        _describe(config, key, vocabulary, unknown, record, dict(zip(kinds, values)))
        for record, values in zip(records, per_record)
    ]
    columns = zip(*rows)
    table = pa.table([pa.array(c, kind) for c, kind in zip(columns, COLUMNS.values())], names=list(COLUMNS))
    return table, unknown


def _vocabulary(source: protocol.SourceConfig) -> frozenset[str]:
    """The codes that a config allows: `source.vocabulary`, and the codes to which its table's words and columns map."""
    translated = [*source.table.code_values.values(), *source.table.code_columns.values()]
    return frozenset([*source.vocabulary, *" ".join(map(str, translated)).split()])


class _Found(NamedTuple):
    """What a record's header gives: `leads`, `windows` and `stretches` as in `COLUMNS`, or the reason why there are
    none; the words of the header and, over them, of the table."""

    words: dict[str, str]
    files: list[str]
    reader: str = ""
    reason: str = ""
    detail: str = ""
    leads: str = ""
    windows: int = 0
    stretches: str = ""


def _describe(
    config: BuildConfig,
    key: deidentify.PseudonymKey,
    vocabulary: frozenset[str],
    unknown: Counter[Unknown],
    record: str,
    words: dict[str, str],
) -> tuple[Any, ...]:
    """The values of `COLUMNS` of one record; counts unknown words in `unknown`."""
    found = _found_in_header(config, record, words)
    words = found.words
    codes, left_out = deidentify.codes(words.get("codes", ""), vocabulary)
    unknown.update(("codes", word[:40]) for word in left_out)
    sex = deidentify.sex(words.get("sex", ""), config.source.table.sex_values)
    if sex is None and (word := deidentify.identity(words.get("sex", ""))):
        unknown["sex", word[:40]] += 1
    patient = patient_in(record, config.source.patient_pattern) or deidentify.identity(words.get("patient", ""))
    whom = ("patient", patient) if patient else ("record", record)
    pattern = file_pattern(record, found.files or [record.partition("#")[0]])
    return (
        record,
        name_hash(record),
        found.reason,
        found.detail,
        deidentify.pseudonym(key, config.source.name, *whom),
        not patient,
        deidentify.age(words.get("age", "")),
        sex,
        ";".join(codes),
        len(left_out),
        _part(record, config.source),
        found.leads,
        found.windows,
        found.stretches,
        found.reader,
        pattern,
        *stamp(Path(config.input), record, pattern),
    )


def _found_in_header(config: BuildConfig, record: str, words: dict[str, str]) -> _Found:
    """Reads a record's header. Raises `UserError` if it cannot be read now, but perhaps later."""
    source = protocol.module(config.source.format)
    try:
        with watchdog.limit(config.timeout, lambda: f"the header of {record} {watchdog.HANGS}"):
            head = source.head(Path(config.input), record, config.source)
        words = {**head.words, **{k: v for k, v in words.items() if deidentify.identity(v)}}
        return _planned(config, head, getattr(source, "MAX_READ", math.inf), _Found(words, head.files, head.reader))
    except protocol.Rejected as error:
        return _Found(words, error.files, reason=error.reason, detail=error.detail)
    except OSError as error:
        if error.errno not in LASTING:
            raise UserError(f"{record} cannot be read now ({error.strerror}): run the same command again") from error
        return _Found(words, [], reason="unreadable", detail=error.strerror or "")


def _planned(config: BuildConfig, head: protocol.Head, most: float, found: _Found) -> _Found:
    """`found` with its leads, windows and stretches, or the reason; a record of more than `most` values is read in
    pieces."""
    reason, detail, present = _leads(tuple(head.leads), tuple(config.leads), config.missing_leads)
    if not reason and not signal.can_resample(head.rate, config.rate):
        reason, detail = "rate", f"{head.rate:.9g} Hz has no simple ratio to {config.rate:g} Hz"
    found = found._replace(reason=reason, detail=detail, leads=present)
    if reason:
        return found
    runs = stretches(head, present.split())
    found = found._replace(windows=_windows(config, head.rate, runs))
    if head.segments or head.samples * len(head.leads) > most:
        found = found._replace(stretches=" ".join(f"{first}-{last}" for first, last in runs))
    if not runs:
        return found._replace(reason="missing_lead", detail="no segment has all leads")
    if not found.windows:
        longest = max(last - first for first, last in runs)
        return found._replace(reason="short", detail=f"{longest / head.rate:.4g} s")
    return found


def patient_in(record: str, pattern: str) -> str:
    """The patient's id in a record's path by `source.patient_pattern`; empty where there is none."""
    match = re.search(pattern, record) if pattern else None
    return deidentify.identity(match[1] or "") if match else ""


def _part(record: str, source: protocol.SourceConfig) -> str:
    """The name of a record's source, by its folders."""
    if not source.parts:
        return source.name
    folders = record.partition("#")[0].split("/")[:-1]
    return next((source.parts[folder] for folder in folders if folder in source.parts), source.name)


@lru_cache(maxsize=4096)
def _leads(names: tuple[str, ...], wanted: tuple[str, ...], policy: str) -> tuple[str, str, str]:
    """(reason, detail, wanted leads that are present or derivable) for a header's signal names."""
    try:
        rows = leads.index(names)
    except ValueError as error:
        return "duplicate_lead", str(error), ""
    absent = leads.missing(rows, wanted)
    present = [lead for lead in wanted if lead not in absent]
    if absent and (policy == "refuse" or not present):
        return "missing_lead", " ".join(absent), ""
    return "", "", " ".join(present)


@lru_cache(maxsize=4096)
def planned_windows(samples: int, rate: float, target_rate: float, window: int, min_seconds: float) -> int:
    """Number of windows of `window` samples in a record: whole ones, or one padded one if it is short."""
    length = signal.resampled_length(samples, rate, target_rate)
    if length < window:
        return int(0 < min_seconds <= samples / rate)
    return min(length // window, MOST_WINDOWS)


def _windows(config: BuildConfig, rate: float, runs: list[tuple[int, int]]) -> int:
    """Number of windows in the stretches of a record."""
    fitting = (config.rate, config.samples, config.min_seconds)
    return min(sum(planned_windows(last - first, rate, *fitting) for first, last in runs), MOST_WINDOWS)


def stretches(head: protocol.Head, wanted: Sequence[str]) -> list[tuple[int, int]]:
    """(first, last) samples, last exclusive, of each stretch of adjacent segments that have all wanted leads."""
    if not head.segments:
        return [(0, head.samples)]
    runs: list[tuple[int, int]] = []
    for first, last, names in head.segments:
        if leads.missing(leads.index(names), wanted):
            continue
        begin = runs.pop()[0] if runs and runs[-1][1] == first else first
        runs.append((begin, last))
    return runs


def name_hash(record: str) -> int:
    return int.from_bytes(hashlib.blake2b(record.encode("utf-8", "surrogateescape"), digest_size=8).digest()) >> 1


def segments_of_others(rows: pa.Table) -> NDArray[np.int64]:
    """The rows that are segments of another row's record: their headers are among its files."""
    files = pa.array(rows.column("files").combine_chunks())
    several = [i for i, pattern in enumerate(files.dictionary.to_pylist()) if pattern.count(".hea") > 1]
    whole = np.flatnonzero(np.isin(files.indices.to_numpy(), several))
    parts: list[int] = []
    for record, pattern in zip(*(rows.column(c).take(pa.array(whole)).to_pylist() for c in ("record", "files"))):
        names = files_of(record, pattern)[1:]
        parts += [name_hash(name.removesuffix(".hea")) for name in names if name.endswith(".hea")]
    return np.setdiff1d(np.flatnonzero(np.isin(rows.column("name").to_numpy(), parts)), whole)


# ---- has an input changed? ----


def file_pattern(record: str, files: Sequence[str]) -> str:
    """The files of a record as a pattern that similar records share (`*.hea`, `*.dat`), one per line."""
    folder, slash, name = record.partition("#")[0].rpartition("/")
    return "\n".join(f.removeprefix(folder + slash).replace(name, "*", 1) for f in files)


def files_of(record: str, pattern: str) -> list[str]:
    """The files of a record, relative to the input: the inverse of `file_pattern`."""
    folder, slash, name = record.partition("#")[0].rpartition("/")
    return [folder + slash + file.replace("*", name, 1) for file in pattern.split("\n")]


def stamp(root: Path, record: str, pattern: str) -> tuple[int, int]:
    """(bytes of all files, hash of their sizes and modification times); (-1, 0) if one is missing."""
    total, parts = 0, ""
    for file in files_of(record, pattern):
        try:
            status = os.stat(protocol.contained(root, file))
            total += status.st_size
            parts += f"{status.st_size} {status.st_mtime_ns} "
        except (OSError, ValueError, protocol.Rejected):
            return -1, 0
    return total, name_hash(parts)


def changed(root: Path, rows: pa.Table) -> str:
    """Describes the first change in these rows' files; empty if there is none."""
    columns = (rows.column(c).to_pylist() for c in ("record", "files", "bytes", "stamp"))
    for record, pattern, size, before in zip(*columns):
        now = stamp(root, record, pattern)
        if now != (size, before):
            return f"record {record} {'is gone' if now[0] < 0 <= size else 'is new' if size < 0 else 'has changed'}"
    return ""


# ---- before the headers ----


def survey(config: BuildConfig, wanted_split: Callable[[BuildConfig, Table | None], pa.Array | None]) -> Survey:
    """Lists the records and checks the config against the table, before headers are read. Raises `UserError`."""
    table = read_table(Path(config.input), config.source.table, config.rate)
    if config.labels and table is None:
        raise UserError(f"labels={config.labels} need a table (source.table.file)")
    if taken := [name for name in config.labels if name in SAMPLE_COLUMNS]:
        raise UserError(f"labels: {SAMPLES} already has a column '{taken[0]}': leave it out or rename it")
    splits = wanted_split(config, table)
    labels = {name: label(table, name, config.source.vocabulary) for name in config.labels} if table else {}
    records, pattern = all_records(config, table), config.source.patient_pattern
    if pattern and not any(patient_in(record.as_py(), pattern) for record in records):
        raise UserError(f"source.patient_pattern={pattern} finds no id in any record's path, as {records[0].as_py()}")
    return Survey(table, records, splits, labels)
