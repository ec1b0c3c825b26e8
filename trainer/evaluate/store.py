"""Features of one encoder, computed once for each record and kept in a file that says of which encoder and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import embed
from trainer.evaluate.task import Labelled
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError
from umbra.files import atomic, remove_partial

NONE = "none"


def weights_hash(encoder: Encoder) -> str:
    """sha256 over an encoder's config (input, scaling, architecture) and all its weights and statistics."""
    config = asdict(encoder.config)
    digest = hashlib.sha256(
        json.dumps([config[k] for k in ("architecture", "leads", "rate", "samples", "scaling")]).encode()
    )
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def folder_of(config: TransferConfig) -> Path | None:
    """Where features are kept: `features`, or beside the directory of the encoder; None if nowhere."""
    if config.features:
        return None if config.features == NONE else Path(config.features)
    encoder = Path(config.encoder)
    return encoder.absolute().with_name(f"{encoder.absolute().name}-features") if encoder.is_dir() else None


class Store:
    """The features of one encoder on one data set, by row of samples.parquet.

    Those in the file of `folder` are read, others computed when asked for and written there. A file of another
    encoder or data set, or a damaged one, is not used: `notes` say so, and also if nothing can be written. `computed`
    counts records.
    """

    def __init__(self, encoder: Encoder, batch: int, folder: Path | None, key: str | None = None) -> None:
        self._encoder, self._batch, self._folder = encoder, batch, folder
        self.key = key or weights_hash(encoder)
        self.notes: list[str] = []
        self.computed = 0
        self._fingerprint = ""
        self._rows = np.empty(0, np.int64)
        self._features = np.empty((0, encoder.config.dim), np.float32)

    def of(self, *parts: Labelled) -> list[np.ndarray]:
        """The features float32 `[n, D]` of the records of each part."""
        self._read(parts[0])
        new = [part.take(_first(part.row, self._rows)) for part in _once(parts)]
        self.computed += sum(map(len, new))
        if sum(map(len, new)):
            computed = [embed(self._encoder, part, self._batch) for part in new if len(part)]
            rows = np.concatenate([self._rows, *(part.row for part in new)])
            order = np.argsort(rows)
            self._rows = rows[order]
            self._features = np.concatenate([self._features, *computed])[order]
            self._write()
        return [self._features[np.searchsorted(self._rows, part.row)] for part in parts]

    @property
    def path(self) -> Path | None:
        """The file of these features."""
        return self._folder and self._folder / f"{self._fingerprint}-{self.key[:16]}.safetensors"

    def _read(self, part: Labelled) -> None:
        fingerprint = part.shards.manifest.fingerprint
        if fingerprint == self._fingerprint:
            return
        self._fingerprint = fingerprint
        self._rows, self._features = self._rows[:0], self._features[:0]
        if not self.path or not self.path.is_file():
            return
        try:
            with safe_open(self.path, "np") as file:
                said = file.metadata() or {}
                rows, features = file.get_tensor("rows"), file.get_tensor("features")
        except (SafetensorError, OSError) as error:
            self.notes.append(f"{self.path} is damaged ({error}): its features are computed anew")
            return
        known = said.get("encoder") == self.key and said.get("data") == fingerprint
        if not known or features.shape != (len(rows), self._features.shape[1]) or (np.diff(rows) <= 0).any():
            self.notes.append(f"{self.path} is of another encoder or data set: its features are computed anew")
            return
        self._rows, self._features = rows, features

    def _write(self) -> None:
        if not self.path:
            return
        said = {"encoder": self.key, "data": self._fingerprint}
        try:
            remove_partial(self.path.parent)
            with atomic(self.path) as temporary:
                save_file({"rows": self._rows, "features": self._features}, temporary, said)
        except (UserError, OSError, SafetensorError) as error:
            self.notes.append(f"features are not kept: {error}")
            self._folder = None


def _first(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The indices of the rows that are not known."""
    return np.flatnonzero(~np.isin(rows, known))


def _once(parts: Sequence[Labelled]) -> list[Labelled]:
    """The parts without records that stand in an earlier one."""
    seen = np.empty(0, np.int64)
    out = []
    for part in parts:
        mine = part.take(_first(part.row, seen))
        seen = np.concatenate([seen, mine.row])
        out.append(mine)
    return out
