"""Was the test split seen in pre-training? Patients by their pseudonyms, recordings by fingerprints of their signals.

An encoder directory names its pre-training data by their fingerprint alone, of a mixture all its sources; the data are
those of `pretrained_on`, the evaluated ones, or what the run around the encoder was trained on. Weights may have seen
further data sets: those of the encoder that a run began with, and those that they were fine-tuned on. Only the counts
leave this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.places import named
from trainer.data.remote.fetch import is_remote
from trainer.evaluate.config import TransferConfig
from trainer.run.record import RECORD
from umbra.encoders.encoder import EncoderConfig
from umbra.errors import UserError
from umbra.files import read_json, read_yaml
from umbra.parquet import open_samples
from umbra.schema import MANIFEST, Manifest, Shard, read_manifest
from umbra.signal_fingerprints import NEAR, SHORTEST, SLOWEST, Numbers, computed, distances, file_of, leads_of, of_shard

NAME_IT = "give the folder of its pre-training data as pretrained_on=DIR"
NAME_IT_TOO = "give its folder as also_trained_on=[DIR]"
Mask = NDArray[np.bool_]
WAYS = {"by_patient": "patients", "by_signal": "recordings"}


@dataclass(frozen=True)
class Found:
    """What one way of looking found: windows of the test split that were seen, and their patients. `why` says what
    could not be looked at; with `checked` false that is everything, or part of it."""

    checked: bool
    windows: int = 0
    patients: int = 0
    why: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set on this machine."""

    root: Path
    manifest: Manifest

    def shards(self, split: str) -> list[Shard]:
        return self.manifest.of_split(split)

    def patients(self, split: str) -> NDArray[np.int64]:
        """The patient code of each window of a split."""
        codes: NDArray[np.int64] = open_samples(self.root, self.manifest).read(["patient"]).column(0).to_numpy()
        shards = self.shards(split)
        first = self.manifest.first_row(split) if shards else 0
        return codes[first : first + sum(shard.samples for shard in shards)]

    @property
    def seconds(self) -> float:
        return self.manifest.samples / self.manifest.rate


def check(config: TransferConfig, about: EncoderConfig) -> dict[str, Any]:
    """The entry `leaks` of result.json; prints what was found. `about`: the encoder's config.json.

    Raises `UserError` if patients or recordings of the test split were in the pre-training, unless `allow_leak` is set,
    and if `pretrained_on` is no data set or not that of the encoder.
    """
    if config.encoder == "random" or config.mode == "scratch":
        return {"pretrained": False}
    test = DataSet(Path(config.data), read_manifest(config.data))
    first, why = _pretraining_data(config, about, test)
    more, unknown = _further_data(config, about, [test, *first])
    sets, missing = [*first, *more], [*([why] if why else []), *unknown]
    patients = test.patients("test")
    looks = {"by_patient": _by_patient, "by_signal": _by_signal}
    found = {
        way: _found([look(test, seen, patients) for seen in sets], missing, patients) for way, look in looks.items()
    }
    _refuse_or_print(config, found)
    return {
        "pretrained": True,
        "data": about.data.get("fingerprint") or ("+".join(one.manifest.fingerprint for one in first) or None),
        "allowed": config.allow_leak,
        **{way: asdict(one) for way, one in found.items()},
    }


def _found(looks: Sequence[tuple[Mask, str]], missing: Sequence[str], patients: NDArray[np.int64]) -> Found:
    """What was found in any of the data sets: of each the windows that were seen, and what could not be looked at."""
    leaked = np.zeros(len(patients), bool)
    for seen, _ in looks:
        leaked |= seen
    why = "; ".join(dict.fromkeys([*(why for _, why in looks if why), *missing]))
    return Found(not why, int(leaked.sum()), len(np.unique(patients[leaked])), why)


def _refuse_or_print(config: TransferConfig, found: dict[str, Found]) -> None:
    words = {
        "by_patient": "{patients:,} patients ({windows:,} windows) known by pseudonym",
        "by_signal": "{windows:,} recordings ({patients:,} patients) known by signal",
    }
    leaked = " and ".join(words[way].format(**asdict(one)) for way, one in found.items() if one.windows)
    if leaked and not config.allow_leak:
        raise UserError(
            f"{leaked} of the test split of {config.data} were in the pre-training of {config.encoder}: evaluate on "
            "a data set without them, or say allow_leak=true, which result.json records"
        )
    if leaked:
        print(f"leaks: {leaked} of the test split were in pre-training; allowed by allow_leak")
    for way, one in found.items():
        if one.why:
            print(f"leaks: {WAYS[way]} of the test split in pre-training: not checkable: {one.why}")
        elif not one.windows:
            print(f"leaks: no {WAYS[way]} of the test split in pre-training")


# ---- where the pre-training data are ----


def _pretraining_data(config: TransferConfig, about: EncoderConfig, test: DataSet) -> tuple[list[DataSet], str]:
    """The data sets that the encoder was pre-trained on, and why others of them, or all, are not known."""
    known, found = _known(about.data), list[DataSet]()
    for place in named(config.pretrained_on).values() if config.pretrained_on else ():
        given = DataSet(Path(place), read_manifest(place))
        if known and given.manifest.fingerprint not in known.values():
            raise UserError(
                f"pretrained_on={place} has the fingerprint {given.manifest.fingerprint}, "
                f"{config.encoder} was pre-trained on {', '.join(known.values())}: name the data set that it was "
                "pre-trained on"
            )
        found.append(given)
    if not known:
        return found, "" if found else f"the encoder does not say what it was pre-trained on; {NAME_IT}"
    why = []
    for name, fingerprint in known.items():
        if fingerprint in [one.manifest.fingerprint for one in found]:
            continue
        if fingerprint == test.manifest.fingerprint:
            found.append(test)
            continue
        one, words = _of_run(Path(config.encoder).resolve().parent, about, name, fingerprint)
        found += [one] if one else []
        why += [f"{name}: {words}" if name and words else words]
    return found, "; ".join(filter(None, why))


def _known(data: Any) -> dict[str, str]:
    """The fingerprints of the data sets that the entry `data` of an encoder names, by the source of a mixture; a single
    one has no name."""
    of = data if isinstance(data, dict) else {}
    if sources := of.get("sources"):
        return {str(name): str(source["fingerprint"]) for name, source in sources.items()}
    one = of.get("fingerprint")
    return {"": str(one)} if one else {}


def _of_run(run: Path, about: EncoderConfig, name: str, known: str) -> tuple[DataSet | None, str]:
    """A data set of the run directory that an encoder lies in, if it still is where the run found it."""
    record, settings = run / RECORD, run / "config.yaml"
    if not record.is_file() or not settings.is_file():
        return None, f"the encoder does not lie in the directory of its run; {NAME_IT}"
    try:
        same = read_json(record, NAME_IT).get("fingerprint") == about.data["fingerprint"]
        place = (read_yaml(settings, NAME_IT).get("data") or {}).get("path")
    except (UserError, AttributeError):
        same, place = False, None
    if same and name:
        place = place.get(name) if isinstance(place, dict) else None
        if place is None:
            return None, f"the run was last without it; {NAME_IT}"
    if not same or not isinstance(place, str):
        return None, f"{run} is not the run of the encoder; {NAME_IT}"
    if is_remote(place):
        return None, f"its pre-training data are at {place}; copy them and {NAME_IT}"
    if not (Path(place) / MANIFEST).is_file():
        return None, f"its pre-training data are no longer in {place}; {NAME_IT}"
    found = DataSet(Path(place), read_manifest(place))
    if found.manifest.fingerprint != known:
        return None, f"{place} now holds another data set than in pre-training; {NAME_IT}"
    return found, ""


def _further_data(
    config: TransferConfig, about: EncoderConfig, at_hand: list[DataSet]
) -> tuple[list[DataSet], list[str]]:
    """The other data sets that the weights have seen, and why some of them are not known."""
    given = [DataSet(Path(place), read_manifest(place)) for place in config.also_trained_on]
    known = {data.manifest.fingerprint: data for data in [*at_hand, *given]}
    own = {about.data.get("fingerprint"), *_known(about.data).values()}
    names = {name: what for name, what in _earlier(about.training) if name not in own}
    found = {name: known[name] for name in names if name in known} | {d.manifest.fingerprint: d for d in given}
    missing = {name or "that it does not name": what for name, what in names.items() if name not in known}
    return list(found.values()), [
        f"the encoder {what} a data set, {name}, which is not at hand; {NAME_IT_TOO}" for name, what in missing.items()
    ]


def _earlier(training: Any) -> Iterator[tuple[str, str]]:
    """(fingerprint, what was done with it) of each data set before the last pre-training, and of each fine-tuning."""
    of = training if isinstance(training, dict) else {}
    if isinstance(labels := of.get("labels"), dict):
        yield str(labels.get("data") or ""), "was fine-tuned on"
        yield from _earlier({"labels": labels.get("before")})
    if isinstance(init := of.get("init"), dict):
        for fingerprint in _known(init.get("data")).values() or [""]:
            yield fingerprint, "began with the weights of one trained on"
        yield from _earlier(init.get("training"))


# ---- by patients ----


def _by_patient(test: DataSet, seen: DataSet, patients: NDArray[np.int64]) -> tuple[Mask, str]:
    """Test windows of patients whose pseudonym is among those of the train split that was seen, and what could not be
    looked at."""
    ours, theirs = test.manifest.patient_keys, seen.manifest.patient_keys
    leaked = np.isin(patients, seen.patients("train")) if ours & theirs else np.zeros(len(patients), bool)
    why = []
    if other := sorted(ours ^ theirs):
        names = ", ".join(f"{name} (key {key})" for name, key in other)
        why.append(f"pseudonyms depend on key and source.name, which are not those of both sets for {names}")
    if not (test.manifest.patient_ids and seen.manifest.patient_ids):
        why.append("a source without patient ids counts each record as a patient")
    return leaked, "; ".join(why)


# ---- by signals ----


def _by_signal(test: DataSet, seen: DataSet, patients: NDArray[np.int64]) -> tuple[Mask, str]:
    """Test windows whose fingerprint is near to one of the train split that was seen, and what could not be looked
    at."""
    nothing = np.zeros(len(patients), bool)
    leads = leads_of([lead for lead in test.manifest.leads if lead in seen.manifest.leads])
    seconds = min(test.seconds, seen.seconds)
    if why := _unlike(test, seen, leads, seconds):
        return nothing, why
    for data, split in ((test, "test"), (seen, "train")):
        if why := _missing(data, split):
            return nothing, why
    wanted = np.concatenate(list(_fingerprints(test, "test", leads, seconds)))
    near = distances(wanted, _fingerprints(seen, "train", leads, seconds)) <= NEAR
    leaked, empty = (np.asarray(of_piece.reshape(len(patients), -1).any(1)) for of_piece in (near, ~wanted.any(axis=1)))
    blank = int(empty.sum())
    return leaked, f"{blank:,} windows are empty in leads {', '.join(leads)}" if blank else ""


def _unlike(test: DataSet, seen: DataSet, leads: Sequence[str], seconds: float) -> str:
    """Why the signals of two data sets do not compare; empty if they do."""
    if not leads:
        return "they have no lead in common"
    if seconds < SHORTEST:
        return f"windows of {seconds:g} s are too short, {SHORTEST:g} s are needed"
    if (rate := min(test.manifest.rate, seen.manifest.rate)) < SLOWEST:
        return f"a rate of {rate:g} Hz is too low, {SLOWEST:g} Hz are needed"
    return ""


def _missing(data: DataSet, split: str) -> str:
    """Why the fingerprints of a split cannot be had; empty if they can. Says so if they have to be computed."""
    shards = [shard for shard in data.shards(split) if not file_of(data.root, shard.name).is_file()]
    if gone := [shard.name for shard in shards if not (data.root / shard.name).is_file()]:
        return f"{len(gone):,} shards of {data.root} are missing, first {gone[0]}"
    if shards:
        count = sum(shard.samples for shard in shards)
        print(f"leaks: computing the fingerprints of {count:,} windows of {data.root}", flush=True)
    return ""


def _fingerprints(data: DataSet, split: str, leads: Sequence[str], seconds: float) -> Iterator[Numbers]:
    """Those of a split, shard by shard: the kept ones where they are of these leads and this length."""
    kept = leads == leads_of(data.manifest.leads) and seconds == data.seconds
    for shard in data.shards(split):
        if kept:
            yield of_shard(data.root, data.manifest, shard)
        else:
            yield computed(data.root, data.manifest, shard, leads, seconds)
