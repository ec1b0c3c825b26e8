import numpy as np
import pytest

from umbra import leads


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AVR", "aVR"),
        ("avl", "aVL"),
        ("v1", "V1"),
        ("ii", "II"),
        ("Lead I", "I"),
        ("ECG lead aVF", "aVF"),
        ("ECG_V6", "V6"),
        ("DIII", "III"),
        ("MLII", None),
        ("CM5", None),
        ("-aVR", None),
        ("Lead -aVR", None),
        ("ECG -aVR", None),
        ("ECG-aVR", "aVR"),
        ("ECG - II", "II"),
        ("EKG I-Ref", "I"),
        ("EKG aVF-REF", "aVF"),
        ("ECG V3 ref", "V3"),
        ("V7", None),
        ("1", None),
        ("PLETH", None),
        ("", None),
    ],
)
def test_canonical(name, expected):
    assert leads.canonical(name) == expected


def test_limb_leads_follow_from_one_and_two():
    x = np.array([[2.0], [5.0]], np.float32)
    out = leads.arrange(x, ["I", "II"], ["III", "aVR", "aVL", "aVF", "II", "I"])
    assert out[:, 0].tolist() == [3.0, -3.5, -0.5, 4.0, 5.0, 2.0]


def test_order_is_by_name_never_by_position():
    names = ["I", "II", "III", "aVR", "aVF", "aVL"]  # as MIMIC-IV-ECG has them
    x = np.arange(6, dtype=np.float32)[:, None]
    assert leads.arrange(x, names, leads.CANONICAL[:6])[:, 0].tolist() == [0, 1, 2, 3, 5, 4]


def test_missing_leads_are_refused():
    assert leads.missing(["I", "II", "V1"], leads.CANONICAL) == ["V2", "V3", "V4", "V5", "V6"]
    assert leads.missing(["I", "III"], ["II", "aVR"]) == ["II", "aVR"]
    with pytest.raises(ValueError, match="missing leads V2"):
        leads.arrange(np.zeros((2, 4), np.float32), ["I", "II"], ["V2"])
    with pytest.raises(ValueError, match="II occurs twice"):
        leads.index(["I", "II", "ii"])


def test_needed_reads_no_more_than_it_uses():
    assert leads.needed(["I", "II", "V1", "V2"], ["V1"]) == ["V1"]
    assert leads.needed(["I", "II", "V1"], ["aVR", "V1"]) == ["V1", "I", "II"]
