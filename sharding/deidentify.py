"""What is allowed outside `private/`: keyed pseudonyms, capped ages, two sexes, codes of closed vocabularies, merged
counts."""

from __future__ import annotations

import ast
import hashlib
import hmac
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sharding.vocabulary import SCP, SNOMED
from umbra.errors import UserError

KEY_VARIABLE = "UMBRA_KEY"
SYNTHETIC_MARKER = "synthetic.yaml"
MIN_KEY = 16
MIN_PATIENTS = 10
PUBLIC_KEY = b"umbra public sources: pseudonyms under this key hide nothing"

_SEXES = {"f": "female", "female": "female", "woman": "female", "m": "male", "male": "male", "man": "male"}


@dataclass(frozen=True)
class PseudonymKey:
    """A secret and its public name: two data sets with one `key_id` have comparable patient codes."""

    secret: bytes
    key_id: str

    def __repr__(self) -> str:
        return f"PseudonymKey(key_id={self.key_id!r})"


def load_key(key_file: str, public: bool, root: Path) -> PseudonymKey:
    """The key in `key_file`, else in the variable UMBRA_KEY, else, for a source marked public, the fixed public one.

    A folder that `python -m sharding synth` wrote (it holds `synthetic.yaml`) has no patients and counts as public.
    Raises `UserError` if there is no key or it has fewer than 16 characters; none is ever generated.
    """
    if key_file:
        if not Path(key_file).is_file():
            raise UserError(f"key_file={key_file} does not exist: name a file that holds the secret key")
        try:
            secret, origin = Path(key_file).read_bytes().strip(), f"key_file={key_file}"
        except OSError as error:
            raise UserError(f"key_file={key_file} cannot be read: {error.strerror}") from error
    else:
        secret, origin = os.environ.get(KEY_VARIABLE, "").encode().strip(), f"the variable {KEY_VARIABLE}"
    if secret:
        if len(secret) < MIN_KEY:
            raise UserError(f"{origin} holds {len(secret)} characters: a key needs at least {MIN_KEY}")
        return PseudonymKey(secret, hashlib.sha256(b"umbra key id" + secret).hexdigest()[:12])
    if public or (root / SYNTHETIC_MARKER).is_file():
        return PseudonymKey(PUBLIC_KEY, "public")
    raise UserError(
        f"no pseudonym key: set the variable {KEY_VARIABLE} (or key_file=FILE) to a secret of at least {MIN_KEY} "
        "characters and keep it, or set source.public=true if these recordings' patient ids are public"
    )


def pseudonym(key: PseudonymKey, source: str, kind: str, identity: str) -> int:
    """HMAC-SHA256 of source, kind (`patient` or `record`) and id under the key, as a non-negative int64."""
    digest = hmac.digest(key.secret, f"{source}\0{kind}\0{identity}".encode("utf-8", "surrogateescape"), "sha256")
    return int.from_bytes(digest[:8], "big") >> 1


def identity(value: str) -> str:
    """A patient id as text, without the `.0` of a float column; empty if missing."""
    text = value.strip()
    text = text[:-2] if text.endswith(".0") else text
    return "" if text.lower() in ("", "nan", "none", "null", "unknown", "na", "n/a", "?") else text


@lru_cache(maxsize=4096)
def age(value: str) -> float:
    """Whole years; over 89 becomes 90 (PTB-XL writes 300 for that, others `>89` or `90+`); NaN for anything else."""
    match = re.fullmatch(r"\s*(>=?)?\s*(\d+(?:\.\d*)?)\s*(\+)?\s*(?:y|yrs?|years?)?\s*", value, re.IGNORECASE)
    if not match:
        return math.nan
    years, open_ended = float(match[2]), bool(match[1] or match[3])
    if open_ended and years < 89:
        return math.nan  # an age group: no age
    return 90.0 if years > 89 or open_ended else float(math.floor(years))


def sex(value: str, values: Mapping[str, str] = {}) -> str | None:
    """`female`, `male` or None; `values` maps a table's own words to them."""
    text = identity(value)
    return _SEXES.get(str(values.get(text, text)).lower())


@lru_cache(maxsize=65536)
def codes(text: str, vocabulary: frozenset[str] = frozenset()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(allowed codes, words left out) of `426783006,164889003`, `SR;NORM` or `{'NORM': 100.0}`.

    Only the words of `sharding/vocabulary.py` and of the config (`vocabulary`) are allowed, so that a name or number
    typed into the field is left out.
    """
    words = _dict_keys(text) if text.lstrip().startswith("{") else re.split(r"[;,|\s]+", text)
    words = [w.strip().strip("'\"[]") for w in words]
    words = [w for w in dict.fromkeys(words) if identity(w)]
    kept = tuple(w for w in words if w in SNOMED or w in SCP or w in vocabulary)
    return kept, tuple(w for w in words if w not in kept)


def _dict_keys(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(key) for key in value] if isinstance(value, dict) else []


def age_band(years: float) -> str:
    if math.isnan(years):
        return "unknown"
    return "90+" if years >= 90 else f"{int(years) // 10 * 10}-{int(years) // 10 * 10 + 9}"


class CellCounts:
    """Samples and patients per cell (a sex, a code, ...), added part by part; no patient is in two parts.

    Memory grows with the cells, not with the patients: patients, each with all its cells, are stored only for cells of
    fewer than 10.
    """

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.patients: Counter[str] = Counter()
        self._few: dict[str, dict[int, set[str]]] = {}

    def add(self, cells: Iterable[tuple[str, int]]) -> None:
        """Adds (cell, patient) pairs, one per sample and cell, of patients that are in no other part."""
        of_patient: dict[int, set[str]] = {}
        for (cell, patient), samples in Counter(cells).items():
            self.samples[cell] += samples
            of_patient.setdefault(patient, set()).add(cell)
        for patient, its_cells in of_patient.items():
            for cell in its_cells:
                self.patients[cell] += 1
                if self.patients[cell] < MIN_PATIENTS:
                    self._few.setdefault(cell, {})[patient] = its_cells
                else:
                    self._few.pop(cell, None)

    def merged(self) -> dict[str, dict[str, int]]:
        """Samples and patients per cell; no cell has fewer than 10 patients.

        Smaller ones become `merged`, together with the next larger cell if they have fewer than 10 in total; if the
        result still has fewer, it is left out.
        """
        order = sorted(self.samples, key=lambda c: (self.patients[c], c))
        small = [cell for cell in order if self.patients[cell] < MIN_PATIENTS]
        union = {patient: cells for cell in small for patient, cells in self._few[cell].items()}
        patients = len(union)
        if 0 < patients < MIN_PATIENTS and len(small) < len(order):
            larger = order[len(small)]
            small.append(larger)
            patients = self.patients[larger] + sum(larger not in cells for cells in union.values())
        kept = sorted(set(order).difference(small))
        counts = {cell: {"samples": self.samples[cell], "patients": self.patients[cell]} for cell in kept}
        if patients >= MIN_PATIENTS:
            counts["merged"] = {"samples": sum(self.samples[cell] for cell in small), "patients": patients}
        return counts
