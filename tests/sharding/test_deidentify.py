import hashlib
import hmac
import math
import pickle
import random
from datetime import date

import pytest

from sharding import deidentify as d
from umbra.errors import UserError


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("63", 63),
        ("56.0", 56),
        ("0.5", 0),
        ("89", 89),
        ("89.5", 90),
        ("90", 90),
        ("300", 90),
        ("71 years", 71),
        (">89", 90),
        ("> 89 y", 90),
        ("90+", 90),
        (">= 90", 90),
    ],
)
def test_age(text, years):
    assert d.age(text) == years


@pytest.mark.parametrize("text", ["", "NaN", "unknown", "-4", "born 1950-02-03", "Unknown", ">18", "65+", "<1"])
def test_no_age(text):
    assert math.isnan(d.age(text))


def test_sex():
    assert [d.sex(v) for v in ("F", "Female", "m", "MALE", "?", "", "Smith")] == [
        "female",
        "female",
        "male",
        "male",
        None,
        None,
        None,
    ]
    assert [d.sex(v, {"0": "male", "1": "female"}) for v in ("0", "1", "1.0", "2")] == [
        "male",
        "female",
        "female",
        None,
    ]


def verhoeff(number: str) -> int:
    """0 where the last digit is the right check digit (Verhoeff 1969), worked out in the symmetries of a pentagon."""
    turns = [lambda x, k=k: (x + k) % 5 for k in range(5)] + [lambda x, k=k: (k - x) % 5 for k in range(5)]
    products = [
        [next(c for c in range(10) if all(turns[c](x) == turns[a](turns[b](x)) for x in range(5))) for b in range(10)]
        for a in range(10)
    ]
    check, digits = 0, list(map(int, reversed(number)))
    for place, digit in enumerate(digits):
        for _ in range(place % 8):
            digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
        check = products[check][digit]
    return check


def is_date(text: str) -> bool:
    year, month, day = (
        (text[:4], text[4:6], text[6:]) if text[:2] in ("18", "19", "20") else (text[4:], text[2:4], text[:2])
    )
    try:
        return len(text) == 8 and 1850 < date(int(year), int(month), int(day)).year < 2100
    except ValueError:
        return False


def test_listed_concepts_are_concepts_and_no_dates():
    assert len(d.SNOMED) == 143
    for code in d.SNOMED:
        assert (verhoeff(code), code[-3:-1] in ("00", "10")) == (0, True), code  # no digit is mistyped
        assert not is_date(code), code
    assert (is_date("19200107"), verhoeff("19200107")) == (True, 0)  # a date that a rule would let pass
    assert d.codes("19200107,20241108,426783006") == (("426783006",), ("19200107", "20241108"))


def test_codes_leave_everything_else_behind():
    assert d.codes("426783006,164889003") == (("426783006", "164889003"), ())
    assert d.codes("SR;NORM;SR") == (("SR", "NORM"), ())
    assert d.codes("{'NORM': 100.0, 'LVOLT': 0.0}") == (("NORM", "LVOLT"), ())
    assert d.codes("SR;Smith;4711") == (("SR",), ("Smith", "4711"))
    assert d.codes("Smith", frozenset({"Smith"})) == (("Smith",), ())
    assert d.codes("{'NORM': __import__('os')}") == ((), ())
    assert d.codes("Unknown") == ((), ())
    assert len(d.SCP) == 71


def test_pseudonym_is_an_hmac():
    key = d.PseudonymKey(b"k" * 16, "id")
    code = d.pseudonym(key, "ptbxl", "patient", "15709")
    digest = hmac.new(b"k" * 16, b"ptbxl\0patient\x0015709", hashlib.sha256).digest()
    assert code == int.from_bytes(digest[:8], "big") // 2 < 2**63
    others = [("cinc", "patient", "15709"), ("ptbxl", "record", "15709"), ("ptbxl", "patient", "15708")]
    assert len({code, *(d.pseudonym(key, *other) for other in others)}) == 4
    assert "kkkk" not in repr(key)


def test_identity_of_floats_and_nothing():
    assert [d.identity(v) for v in (" 15709.0", "15709", "nan", "Unknown", "")] == ["15709", "15709", "", "", ""]


def test_keys(tmp_path, monkeypatch):
    monkeypatch.delenv(d.KEY_VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"source.public=true"):
        d.load_key("", False, tmp_path)
    assert d.load_key("", True, tmp_path).key_id == "public"
    file = tmp_path / "key"
    file.write_text("a long secret of one's own\n")
    of_file = d.load_key(str(file), True, tmp_path)
    monkeypatch.setenv(d.KEY_VARIABLE, "a long secret of one's own")
    of_variable = d.load_key("", False, tmp_path)
    assert of_file == of_variable
    assert of_file.key_id != "public"
    monkeypatch.setenv(d.KEY_VARIABLE, "short")
    with pytest.raises(UserError, match="at least 16"):
        d.load_key("", True, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        d.load_key(str(tmp_path / "nope"), True, tmp_path)


def test_synthetic_folder_needs_no_key(tmp_path, monkeypatch):
    from sharding import synthetic

    monkeypatch.delenv(d.KEY_VARIABLE, raising=False)
    assert synthetic.MARK == d.SYNTHETIC_MARKER
    (tmp_path / synthetic.MARK).write_text("")
    assert d.load_key("", False, tmp_path).key_id == "public"


def counted(pairs, parts=1):
    """The merged counts of (cell, patient) pairs that come in `parts`, all of a patient in one."""
    cells = d.CellCounts()
    for part in range(parts):
        cells.add([(cell, patient) for cell, patient in pairs if patient % parts == part])
    return cells.merged()


def test_small_cells_are_merged():
    cells = [("a", p) for p in range(40)] + [("a", 0)] + [("b", p) for p in range(12)]
    cells += [("c", p) for p in range(100, 104)] + [("d", p) for p in range(200, 203)]
    counts = {"a": {"samples": 41, "patients": 40}, "merged": {"samples": 19, "patients": 19}}
    assert counted(cells) == counted(cells, 7) == counts
    assert counted([("a", 1), ("b", 2)]) == {}
    assert counted([("a", p) for p in range(10)], 3) == {"a": {"samples": 10, "patients": 10}}


def test_merged_cells_are_those_of_all_patients_at_once():
    dice = random.Random(1)
    for _ in range(300):
        sizes = [dice.choice([1, 2, 5, 9, 10, 11, 30]) for _ in range(dice.randint(1, 6))]
        pairs = [(chr(97 + n), dice.randrange(40)) for n, size in enumerate(sizes) for _ in range(size)]
        patients = {cell: {p for c, p in pairs if c == cell} for cell, _ in pairs}
        merged, union = [], set()
        for cell in sorted(patients, key=lambda c: (len(patients[c]), c)):
            if len(patients[cell]) < 10 or 0 < len(union) < 10:
                merged.append(cell)
                union |= patients[cell]
        expected = {c: (sum(cell == c for cell, _ in pairs), len(ps)) for c, ps in patients.items() if c not in merged}
        if len(union) >= 10:
            expected["merged"] = (sum(cell in merged for cell, _ in pairs), len(union))
        for parts in (1, 4):
            assert {c: (n["samples"], n["patients"]) for c, n in counted(pairs, parts).items()} == expected


def test_counts_do_not_grow_with_the_patients():
    cells = d.CellCounts()
    for part in range(50):
        cells.add((("a", "b")[p % 2], p) for p in range(part * 100, part * 100 + 100))
    assert len(pickle.dumps(cells)) < 500


def test_age_bands():
    assert [d.age_band(a) for a in (0.0, 39.0, 89.0, 90.0, math.nan)] == ["0-9", "30-39", "80-89", "90+", "unknown"]
