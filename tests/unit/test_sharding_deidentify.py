import hashlib
import hmac
import math

import pytest

from sharding import deidentify as d
from sharding.config import UserError


@pytest.mark.parametrize(
    ("text", "years"),
    [("63", 63), ("56.0", 56), ("0.5", 0), ("89", 89), ("89.5", 90), ("90", 90), ("300", 90), ("71 years", 71)],
)
def test_age(text, years):
    assert d.age(text) == years


@pytest.mark.parametrize("text", ["", "NaN", "unknown", "-4", "born 1950-02-03", "Unknown"])
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


def test_snomed_check_digit():
    real = ("426783006", "164889003", "427084000", "426177001", "427393009", "284470004", "10370003", "59118001")
    assert all(d.is_snomed(code) for code in real)
    assert not any(
        d.is_snomed(code) for code in ("426783007", "12345678", "5551234567", "19700101", "0426783006", "SR")
    )


def test_codes_leave_everything_else_behind():
    assert d.codes("426783006,164889003") == (("426783006", "164889003"), 0)
    assert d.codes("SR;NORM;SR") == (("SR", "NORM"), 0)
    assert d.codes("{'NORM': 100.0, 'LVOLT': 0.0}") == (("NORM", "LVOLT"), 0)
    assert d.codes("SR;Smith;4711") == (("SR",), 2)
    assert d.codes("Smith", frozenset({"Smith"})) == (("Smith",), 0)
    assert d.codes("{'NORM': __import__('os')}") == ((), 0)
    assert d.codes("Unknown") == ((), 0)
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
    from sharding.sources import synthetic

    monkeypatch.delenv(d.KEY_VARIABLE, raising=False)
    assert synthetic.MARK == d.SYNTHETIC_MARKER
    (tmp_path / synthetic.MARK).write_text("")
    assert d.load_key("", False, tmp_path).key_id == "public"


def test_small_cells_are_merged():
    cells = [("a", p) for p in range(40)] + [("a", 0)] + [("b", p) for p in range(12)]
    cells += [("c", p) for p in range(100, 104)] + [("d", p) for p in range(200, 203)]
    counts = d.merged_counts(cells)
    assert counts == {"a": {"samples": 41, "patients": 40}, "merged": {"samples": 19, "patients": 19}}
    assert d.merged_counts([("a", 1), ("b", 2)]) == {}
    assert d.merged_counts([("a", p) for p in range(10)]) == {"a": {"samples": 10, "patients": 10}}


def test_age_bands():
    assert [d.age_band(a) for a in (0.0, 39.0, 89.0, 90.0, math.nan)] == ["0-9", "30-39", "80-89", "90+", "unknown"]
