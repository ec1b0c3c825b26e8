"""Clinical exports typed in their documented layouts (DICOM: written by pydicom), expected millivolts typed by hand."""

import base64
import binascii
import os
import random
import shutil
import struct
import sys
import zlib

import numpy as np
import pytest

from sharding.options import REASONS
from sharding.sources import clinical
from sharding.sources.protocol import SourceConfig
from tests.support import recordings
from tests.support.dicom import dicom, shorts
from umbra.errors import UserError

OPTIONS = SourceConfig("c", "clinical")
NAME, DATE = "ROE", "1950"


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("ecgdatakit", reason="pip install umbra[clinical]")
    pytest.importorskip("pydicom", reason="pip install umbra[clinical]")
    return tmp_path


def read(folder, record, wanted):
    return clinical.read(folder, record, wanted, OPTIONS)


def reason_of(folder, record, wanted=("I", "II")):
    return recordings.reason_of(clinical, folder, record, OPTIONS, wanted)


def b64(data):
    return base64.b64encode(data).decode()


# ---- GE MUSE XML: eight leads of int16, LeadAmplitudeUnitsPerBit microvolt each, and a median beat beside them ----


def muse(leads=None, scale="4.88", units="MICROVOLTS", age="63", extra="", crc=0):
    leads = leads or {"I": [100, -50, 0], "II": [200, 50, -1], "V1": [1000, -1000, 1]}

    def wave(kind, values):
        data = "".join(
            f"<LeadData><LeadByteCountTotal>{2 * len(x)}</LeadByteCountTotal><LeadSampleSize>2</LeadSampleSize>"
            f"<LeadAmplitudeUnitsPerBit>{scale}</LeadAmplitudeUnitsPerBit><LeadID>{name[:2]}</LeadID>"
            f"<LeadAmplitudeUnits>{units}</LeadAmplitudeUnits><LeadSampleCountTotal>{len(x)}</LeadSampleCountTotal>"
            f"<LeadDataCRC32>{zlib.crc32(shorts(x)) + crc}</LeadDataCRC32>"
            f"<WaveFormData>\n{b64(shorts(x))}\n</WaveFormData></LeadData>"
            for name, x in values.items()
        )
        return (
            f"<Waveform><WaveformType>{kind}</WaveformType><SampleBase>500</SampleBase>"
            f"<SampleExponent>0</SampleExponent>{data}</Waveform>"
        )

    return f"""<?xml version="1.0" encoding="ISO-8859-1"?>
<!DOCTYPE RestingECG SYSTEM "restecg.dtd">
<RestingECG>{extra}<PatientDemographics><PatientID>4711</PatientID><PatientAge>{age}</PatientAge>
<AgeUnits>YEARS</AgeUnits><DateofBirth>02-03-1950</DateofBirth><Gender>FEMALE</Gender>
<PatientLastName>ROE</PatientLastName><PatientFirstName>Jané</PatientFirstName></PatientDemographics>
<TestDemographics><AcquisitionTime>10:11:12</AcquisitionTime><AcquisitionDate>02-02-2015</AcquisitionDate>
</TestDemographics>
<Diagnosis><DiagnosisStatement><StmtText>ROE: sinus rhythm</StmtText></DiagnosisStatement></Diagnosis>
{wave("Median", {"I": [7, 7]})}{wave("Rhythm", leads)}</RestingECG>""".encode("latin-1")


def test_muse_xml(folder):
    (folder / "a.XML").write_bytes(muse())
    head = clinical.head(folder, "a.XML", OPTIONS)
    assert (head.rate, head.samples, head.leads, head.files) == (500, 3, ["I", "II", "V1"], ["a.XML"])
    assert head.words == {"patient": "4711", "age": "63", "sex": "F"}
    found = read(folder, "a.XML", ["V1", "I", "aVF"])
    assert (found.leads, found.rate, found.flags) == (["V1", "I", "II"], 500, ("derived",))
    np.testing.assert_allclose(found.mv, [[4.88, -4.88, 0.00488], [0.488, -0.244, 0], [0.976, 0.244, -0.00488]], 1e-6)
    assert found.missing is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (muse(units="MMHG"), "units"),
        (muse(units=""), "units"),
        (muse(scale="0"), "gain"),
        (muse({"I": [1], "II": [1], "II again": [2]}), "duplicate_lead"),
        (muse({"I": [1, 2], "II": [1]}), "skew"),
        (muse({"V1": [1, 2]}), "missing_lead"),
        (muse().replace(b"<SampleBase>500", b"<SampleBase>20"), "rate"),
        (muse().replace(b"<SampleBase>500", b"<SampleBase>x"), "header"),
        (muse().replace(b"LeadSampleCountTotal>3", b"LeadSampleCountTotal>4"), "header"),
        (muse()[:-20], "header"),
        (muse().replace(b'"restecg.dtd"', b'"restecg.dtd" [<!ENTITY a "aaaaaaaaaa">]'), "header"),
        (muse().replace(b'"restecg.dtd"', b'"x" [<!ENTITY a SYSTEM "file:///etc/passwd">]'), "header"),
        (b"<?xml version='1.0'?><report><RestingTest/></report>", "format"),
        (b"", "format"),
        (muse(extra="<a>" * 20000 + "</a>" * 20000), ""),
        (muse(extra=" " * (8 << 20)), "too_large"),
        (muse(crc=1), ""),
    ],
)
def test_muse_xml_refused(folder, data, reason):
    (folder / "a.xml").write_bytes(data)
    assert reason_of(folder, "a.xml") == reason


def test_check_sums_and_ages(folder):
    (folder / "a.xml").write_bytes(muse(crc=1))
    assert read(folder, "a.xml", ["I"]).flags == ("checksum",)
    (folder / "a.xml").write_bytes(muse(age=""))  # born 3 February 1950, recorded the day before the 65th birthday
    assert clinical.head(folder, "a.xml", OPTIONS).words["age"] == "64"
    (folder / "a.xml").write_bytes(muse(age="").replace(b"1950", b"2016"))
    assert "age" not in clinical.head(folder, "a.xml", OPTIONS).words


# ---- Philips XML: int16 in base64, plain or XLI-compressed, `resolution` microvolt each ----


def philips(waveform, attributes='dataencoding="Base64"', encoding="utf-8"):
    labels = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6"
    return f"""<?xml version="1.0" encoding="{encoding}"?>
<restingecgdata xmlns="http://www3.medical.philips.com"><documentinfo><documenttype>PhilipsECG</documenttype>
<documentversion>1.04</documentversion></documentinfo><patient><generalpatientdata><patientid>p 9</patientid>
<name><lastname>ROE</lastname></name><age><dateofbirth>1950-02-03</dateofbirth></age><sex>Male</sex>
</generalpatientdata></patient><dataacquisition date="2015-02-04" time="10:11:12"><signalcharacteristics>
<samplingrate>500</samplingrate><resolution>5</resolution><numberchannelsallocated>12</numberchannelsallocated>
</signalcharacteristics></dataacquisition><waveforms><parsedwaveforms {attributes} numberofleads="12"
leadlabels="{labels}" durationperchannel="8" samplespersecond="500" resolution="5">{waveform}</parsedwaveforms>
</waveforms></restingecgdata>""".encode(encoding)


def xli(samples):
    """A lead as XLI: second differences and 64, high bytes before low bytes, each a 10-bit LZW code of one byte."""
    x = [*samples, 0]
    slope = [2 * x[i] - x[i - 1] - x[i + 1] for i in range(1, len(x) - 1)]
    words = struct.pack(f">{len(samples)}h", x[0], x[1], *(64 + s for s in slope[1:]))
    bits = "".join(f"{byte:010b}" for byte in words[::2] + words[1::2])
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return struct.pack("<ihh", len(data), 0, slope[0]) + data


# Limb leads as stored: III, aVR, aVL and aVF are what is left when they are computed from I and II.
STORED = [[10, 20, 30, 40], [30, 20, 10, 0], [0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 3, 0], [4, 0, 0, 0]] + [
    [100 * k, -100 * k, 0, 1] for k in range(1, 7)
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_philips_xml_compressed(folder, encoding):
    waveform = b64(b"".join(map(xli, STORED)))
    (folder / "a.xml").write_bytes(philips(waveform, 'dataencoding="Base64" compression="XLI"', encoding))
    head = clinical.head(folder, "a.xml", OPTIONS)
    assert (head.rate, head.samples, len(head.leads)) == (500, 4, 12)
    assert head.words == {"patient": "p 9", "age": "65", "sex": "M"}
    found = read(folder, "a.xml", ["II", "III", "aVR", "aVL", "aVF", "V6"])
    expected = [[30, 20, 10, 0], [20, 0, -20, -41], [-20, -22, -20, -20], [-5, 10, 22, 40], [21, 10, -5, -21]]
    np.testing.assert_allclose(found.mv, np.array([*expected, [600, -600, 0, 1]]) * 0.005, atol=1e-6)
    assert found.flags == ()


def test_philips_xml_uncompressed(folder):
    (folder / "a.xml").write_bytes(philips(b64(b"".join(map(shorts, STORED)))))
    np.testing.assert_allclose(read(folder, "a.xml", ["III", "V1"]).mv, [[0, 0, 0, 0.005], [0.5, -0.5, 0, 0.005]])
    (folder / "a.xml").write_bytes(philips(b64(shorts([1, 2, 3]))))
    assert reason_of(folder, "a.xml") == "header"
    (folder / "a.xml").write_bytes(philips("", 'dataencoding="Base64" compression="ZIP"'))
    assert reason_of(folder, "a.xml") == "format"


def test_a_compressed_waveform_that_would_fill_the_memory_is_refused(folder):
    attributes = 'dataencoding="Base64" compression="XLI"'
    lead = struct.pack("<ihh", 40000, 0, 0) + bytes(40000)
    for waveform in (b64(lead), "<x/>" + b64(lead), b64(xli(STORED[0]) * 20000)):
        (folder / "a.xml").write_bytes(philips(waveform, attributes))
        assert reason_of(folder, "a.xml") == "too_large"


# ---- HL7 aECG: value = origin + scale * digit ----


def aecg(increment=("0.002", "s"), scale=("2.5", "uV"), digits="0 100 -40", second="MDC_ECG_LEAD_II"):
    lead = """<component><sequence><code code="{}" codeSystem="2.16.840.1.113883.6.24"/><value xsi:type="SLIST_PQ">
<origin value="{}" unit="uV"/><scale value="{}" unit="{}"/><digits>{}</digits></value></sequence></component>"""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<AnnotatedECG xmlns="urn:hl7-org:v3" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<effectiveTime><low value="20150204101112"/></effectiveTime>
<componentOf><timepointEvent><componentOf><subjectAssignment>
<subject><trialSubject><id root="1.2" extension="S-7"/><subjectDemographicPerson><name>ROE</name>
<administrativeGenderCode code="F"/><birthTime value="19500203"/></subjectDemographicPerson></trialSubject></subject>
</subjectAssignment></componentOf></timepointEvent></componentOf>
<component><series><code code="RHYTHM"/><component><sequenceSet><component><sequence><code code="TIME_ABSOLUTE"/>
<value xsi:type="GLIST_TS"><head value="20150204101112.000"/><increment value="{increment[0]}" unit="{increment[1]}"/>
</value></sequence></component>
{lead.format("MDC_ECG_LEAD_I", 0, *scale, digits)}{lead.format(second, 1000, *scale, digits)}
{lead.format("MDC_ECG_LEAD_AVR", 0, 1, "mV", "3 2 1")}</sequenceSet></component></series></component>
</AnnotatedECG>""".encode()


def test_hl7_aecg(folder):
    (folder / "a.xml").write_bytes(aecg())
    head = clinical.head(folder, "a.xml", OPTIONS)
    assert (head.rate, head.samples, head.leads) == (500, 3, ["I", "II", "aVR"])
    assert head.words == {"patient": "S-7", "age": "65", "sex": "F"}
    expected = [[0, 0.25, -0.1], [1, 1.25, 0.9], [3, 2, 1]]
    np.testing.assert_allclose(read(folder, "a.xml", ["I", "II", "aVR"]).mv, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "rate", "reason"),
    [
        ({"increment": ("4", "ms")}, 250, ""),
        ({"increment": ("0.00388349514563107", "s")}, 257.5, ""),
        ({"increment": ("1", "h")}, None, "header"),
        ({"increment": ("0", "s")}, None, "header"),
        ({"scale": ("1", "")}, 500, "units"),
        ({"scale": ("1", "mmHg")}, 500, "units"),
        ({"scale": ("nan", "uV")}, 500, "gain"),
        ({"scale": ("-2.5", "uV")}, 500, ""),
        ({"digits": "1 2 x"}, None, "header"),
        ({"digits": "1 2"}, None, "skew"),
        ({"second": "MDC_ECG_LEAD_I"}, 500, "duplicate_lead"),
    ],
)
def test_hl7_aecg_quirks(folder, options, rate, reason):
    (folder / "a.xml").write_bytes(aecg(**options))
    assert reason_of(folder, "a.xml") == reason
    if rate:
        assert clinical.head(folder, "a.xml", OPTIONS).rate == pytest.approx(rate, abs=1e-3)


# ---- DICOM waveform: (sample * sensitivity * correction) + baseline, padding values are no samples ----


def test_dicom(folder):
    dicom(folder / "a.dcm", [(0, 100), (-50, -32768), (1900, 1)])
    head = clinical.head(folder, "a.dcm", OPTIONS)
    assert (head.rate, head.samples, head.leads) == (257.5, 3, ["I", "II"])
    assert head.words == {"patient": "D1", "age": "71", "sex": "F"}
    found = read(folder, "a.dcm", ["I", "II"])
    np.testing.assert_allclose(found.mv, [[0.1, 0.05, 2.0], [0.2, 0.0, 0.101]], atol=1e-6)
    assert found.missing.tolist() == [False, True, False]
    assert found.at_limit is found.saturated is None


def test_dicom_leads_in_several_groups_are_named(folder):
    """3 x 4 layouts store each column as a multiplex group of its own; only one of them is decoded."""
    import pydicom

    dicom(folder / "a.dcm", [(0, 100), (-50, 3)])
    dicom(folder / "b.dcm", [(0, 100), (-50, 3)], labels=("2:3", "2:4"))
    whole, other = pydicom.dcmread(folder / "a.dcm"), pydicom.dcmread(folder / "b.dcm")
    whole.WaveformSequence.append(other.WaveformSequence[0])
    whole.save_as(folder / "a.dcm")
    assert reason_of(folder, "a.dcm") == ""
    assert reason_of(folder, "a.dcm", ("I", "II", "V1")) == "multi_segment"
    assert reason_of(folder, "b.dcm", ("I", "II")) == "missing_lead"


def test_a_dicom_of_a_real_cart_equals_pydicoms(folder):
    import pydicom
    from pydicom.data import get_testdata_file

    path = get_testdata_file("waveform_ecg.dcm")
    expected = pydicom.dcmread(path).waveform_array(0).T / 1000
    shutil.copy(path, folder / "real.DCM")
    names = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    np.testing.assert_allclose(read(folder, "real.DCM", names).mv, expected, atol=1e-6)
    assert clinical.head(folder, "real.DCM", OPTIONS).rate == 1000


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"units": "mm[Hg]"}, "units"),
        ({"labels": ("2:1", "2:1")}, "duplicate_lead"),
        ({"labels": ("2:1", "2:3")}, "missing_lead"),
        ({"ChannelSampleSkew": "2"}, "skew"),
        ({"ChannelSensitivity": "0"}, "gain"),
        ({"syntax": "1.2.840.10008.1.2.1.99"}, "format"),
        ({"syntax": "1.2.840.10008.1.2.2"}, ""),
    ],
)
def test_dicom_quirks(folder, options, reason):
    dicom(folder / "a.dcm", [(0, 100), (-50, 3)], **options)
    assert reason_of(folder, "a.dcm") == reason


# ---- SCP-ECG: sections with CRCs, int16 or Huffman codes of differences, AVM nanovolt each ----


def scp(leads, avm=5000, difference=0, huffman=False, counts=None, codes=(1, 2)):
    """`leads`: the bytes of each lead; `counts`: its samples."""
    counts = counts or [len(data) // 2 for data in leads]

    def tag(number, data):
        return struct.pack("<BH", number, len(data)) + data

    patient = tag(0, b"ROE\0") + tag(2, b"scp-5\0") + tag(5, struct.pack("<HBB", 1950, 2, 3)) + tag(8, b"\1")
    bodies = {
        1: patient + tag(25, struct.pack("<HBB", 2015, 2, 4)) + tag(255, b""),
        3: bytes([len(leads), 4 | len(leads) << 3])
        + b"".join(struct.pack("<IIB", 1, count, code) for count, code in zip(counts, codes)),
        6: struct.pack("<HHBB", avm, 2000, difference, 0)
        + b"".join(struct.pack("<H", len(data)) for data in leads)
        + b"".join(leads),
    }
    if huffman:
        bodies[2] = struct.pack("<H", 19999)

    def section(number, body):
        body += bytes(len(body) % 2)
        rest = struct.pack("<HIBB6s", number, 16 + len(body), 13, 13, b"SCPECG" if number == 0 else bytes(6)) + body
        return struct.pack("<H", binascii.crc_hqx(rest, 0xFFFF)) + rest

    size = 16 + 10 * 12
    pointers, sections = struct.pack("<HII", 0, size, 7), b""
    for number in range(1, 12):
        data = section(number, bodies[number]) if number in bodies else b""
        pointers += struct.pack("<HII", number, len(data), 7 + size + len(sections) if data else 0)
        sections += data
    record = section(0, pointers) + sections
    record = struct.pack("<I", 6 + len(record)) + record
    return struct.pack("<H", binascii.crc_hqx(record, 0xFFFF)) + record


def test_scp(folder):
    (folder / "a.scp").write_bytes(scp([shorts([10, -20, 30]), shorts([1, 2, 3])]))
    head = clinical.head(folder, "a.scp", OPTIONS)
    assert (head.rate, head.samples, head.leads) == (500, 3, ["I", "II"])
    assert head.words == {"patient": "scp-5", "age": "65", "sex": "M"}
    found = read(folder, "a.scp", ["I", "II"])
    np.testing.assert_allclose(found.mv, [[0.05, -0.1, 0.15], [0.005, 0.01, 0.015]], atol=1e-6)
    assert found.flags == ()


def test_scp_huffman_codes_of_differences(folder):
    """The standard's own table: 0 is `0`, +1 `100`, -2 `1101`; `1111111110` comes before a value of 8 bits."""
    one = int("11111111100000101001001101000000", 2).to_bytes(4, "big")
    two = int("11111111101111011010010011010000", 2).to_bytes(4, "big")
    (folder / "a.scp").write_bytes(scp([one, two], difference=1, huffman=True, counts=[4, 4]))
    expected = [[10, 10, 11, 9], [-10, -9, -8, -10]]
    np.testing.assert_allclose(read(folder, "a.scp", ["I", "II"]).mv, np.array(expected) * 0.005, atol=1e-6)
    (folder / "a.scp").write_bytes(scp([one, two], difference=2, huffman=True, counts=[4, 4]))
    expected = [[10, 0, -9, -20], [-10, 1, 13, 23]]
    np.testing.assert_allclose(read(folder, "a.scp", ["I", "II"]).mv, np.array(expected) * 0.005, atol=1e-6)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (scp([shorts([1, 2]), shorts([1])]), "skew"),
        (scp([shorts([1]), shorts([1])], avm=0), "units"),
        (scp([shorts([1]), shorts([1])], codes=(1, 1)), "duplicate_lead"),
        (scp([shorts([1]), shorts([1])], counts=[4_000_000_000] * 2), "header"),
        (scp([b"\xff", b"\xff"], huffman=True, counts=[4_000_000_000] * 2), "header"),
        (scp([shorts([1]), shorts([1])])[:-3], "header"),
        (b"\0" * 200, "format"),
    ],
)
def test_scp_refused(folder, data, reason):
    (folder / "a.scp").write_bytes(data)
    assert reason_of(folder, "a.scp") == reason


def test_scp_with_a_wrong_check_sum(folder):
    data = bytearray(scp([shorts([10]), shorts([1])]))
    data[-1] ^= 1
    (folder / "a.scp").write_bytes(data)
    assert read(folder, "a.scp", ["I"]).flags == ("checksum",)


# ---- EDF: physical = (digital - digital minimum) * gain + physical minimum, signals at their own rates ----


def edf(records, signals, duration="0.04", patient="", plus="", count=None):
    """`records`: per record the int16 lists of all signals; `signals`: (label, unit, physical and digital limits)."""

    def text(value, width):
        return str(value).encode("latin-1").ljust(width)[:width]

    columns = [(16, 0), (80, None), (8, 1), (8, 2), (8, 3), (8, 4), (8, 5), (80, None)]
    head = text("0", 8) + text(patient, 80) + text("Startdate 04-FEB-2015 X X X" if plus else "", 80)
    head += b"04.02.1510.11.12" + text(256 * (len(signals) + 1), 8) + text(plus, 44)
    head += text(len(records) if count is None else count, 8) + text(duration, 8) + text(len(signals), 4)
    for width, field in columns:
        head += b"".join(text("" if field is None else signal[field], width) for signal in signals)
    head += b"".join(text(len(values), 8) for values in records[0]) + bytes(b" " * 32 * len(signals))
    return head + b"".join(shorts(values) for record in records for values in record)


ONE = ("ECG I", "mV", -5, 5, -1000, 1000)
TWO = ("EKG II", "uV", 0, 4000, 0, 2000)
RESP = ("Resp", "", -1, 1, -100, 100)
RECORDS = [[[0, 100, -200, 1000], [0, 500, 1000, 2], [7]], [[1, 2, 3, 4], [1, 1, 1, 1], [8]]]


def tal(onset):
    data = f"+{onset}\x14\x14\0".encode().ljust(12, b"\0")
    return list(struct.unpack("<6h", data))


def test_edf(folder):
    (folder / "a.edf").write_bytes(edf(RECORDS, [ONE, TWO, RESP], patient="12 F 03-FEB-1950 Jane_ROE"))
    head = clinical.head(folder, "a.edf", OPTIONS)
    assert (head.rate, head.samples) == (100, 8)
    assert len(head.words["patient"]) == 16  # plain EDF: one free text, a hash of it
    assert not {"age", "sex"} & set(head.words)
    found = read(folder, "a.edf", ["I", "II"])
    expected = [[0, 0.5, -1, 5, 0.005, 0.01, 0.015, 0.02], [0, 1, 2, 0.004, 0.002, 0.002, 0.002, 0.002]]
    np.testing.assert_allclose(found.mv, expected, atol=1e-6)
    assert np.flatnonzero(found.at_limit).tolist() == [0, 3]  # 0 is the lower limit of II, 1000 the upper one of I
    assert found.missing is found.saturated is None


def test_edf_labels_with_their_reference(folder):
    signals = [("EKG I-Ref", *ONE[1:]), ("EKG II-Ref", *TWO[1:]), RESP]
    (folder / "a.edf").write_bytes(edf(RECORDS, signals))
    assert read(folder, "a.edf", ["I", "II"]).mv.shape == (2, 8)


def test_edf_plus_and_gaps(folder):
    notes = ("EDF Annotations", "", -1, 1, -32768, 32767)
    patient = "P-12 F 03-FEB-1950 Jane_ROE"
    for name, second in (("whole", "0.04"), ("gap", "5")):
        records = [[*RECORDS[0][:2], tal(0)], [*RECORDS[1][:2], tal(second)]]
        data = edf(records, [ONE, TWO, notes], patient=patient, plus="EDF+D")
        (folder / f"{name}.edf").write_bytes(data)
    assert clinical.head(folder, "whole.edf", OPTIONS).words == {"patient": "P-12", "age": "65", "sex": "F"}
    assert reason_of(folder, "whole.edf") == ""
    assert reason_of(folder, "gap.edf") == "multi_segment"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (edf(RECORDS, [ONE, TWO, RESP])[:-2], "truncated"),
        (edf(RECORDS, [ONE, TWO, RESP], count=99999999), "truncated"),
        (edf(RECORDS, [ONE, TWO, RESP], count=-1), ""),
        (edf(RECORDS, [ONE, TWO, RESP], duration="0"), "header"),
        (edf(RECORDS, [ONE, TWO, RESP], duration="nan"), "header"),
        (edf(RECORDS, [ONE, ("II", "", 0, 1, 0, 9), RESP]), "units"),
        (edf(RECORDS, [ONE, ("II", "mV", 1, 1, 0, 9), RESP]), "units"),
        (edf(RECORDS, [ONE, ("II", "mV", 0, "inf", 0, 9), RESP]), "gain"),
        (edf(RECORDS, [ONE, ("Lead I", "mV", 0, 1, 0, 9), RESP]), "duplicate_lead"),
        (edf([[[0, 1], [1], [1]]], [ONE, TWO, RESP], duration="0.01"), "skew"),
        (b"\xffBIOSEMI" + edf(RECORDS, [ONE, TWO, RESP])[8:], "format"),
    ],
)
def test_edf_quirks(folder, data, reason):
    (folder / "a.edf").write_bytes(data)
    assert reason_of(folder, "a.edf") == reason


def test_an_edf_rate_that_is_no_whole_number(folder):
    data = edf([[[0] * 103, [1] * 103]], [ONE, TWO], duration="0.4")
    (folder / "a.edf").write_bytes(data)
    assert clinical.head(folder, "a.edf", OPTIONS).rate == 257.5


# ---- all of them ----


@pytest.fixture
def samples(folder):
    """One file of each format."""
    (folder / "muse.xml").write_bytes(muse())
    (folder / "philips.xml").write_bytes(philips(b64(b"".join(map(shorts, STORED)))))
    (folder / "xli.xml").write_bytes(
        philips(b64(b"".join(map(xli, STORED))), 'dataencoding="Base64" compression="XLI"')
    )
    (folder / "aecg.xml").write_bytes(aecg())
    dicom(folder / "dicom.dcm", [(0, 100), (-50, 3)])
    (folder / "scp.scp").write_bytes(scp([shorts([10, -20]), shorts([1, 2])]))
    (folder / "edf.edf").write_bytes(edf(RECORDS, [ONE, TWO, RESP], patient="12 F 03-FEB-1950 Jane_ROE"))
    return folder


def test_names_and_dates_stay_behind(samples):
    for record in clinical.find(samples, "", OPTIONS):
        data = (samples / record).read_bytes()
        assert NAME.encode() in data
        assert DATE.encode() in data or struct.pack("<H", 1950) in data
        head = clinical.head(samples, record, OPTIONS)
        assert set(head.words) <= {"patient", "age", "sex"}
        assert NAME not in str(head)
        assert DATE not in str(head)


def test_find_takes_clinical_endings_and_leaves_the_output_out(samples):
    for name in ("out/a.xml", "sub/b.EDF", "notes.txt"):
        (samples / name).parent.mkdir(exist_ok=True)
        (samples / name).write_bytes(b"")
    assert clinical.find(samples, "out", OPTIONS) == [
        *("aecg.xml", "dicom.dcm", "edf.edf", "muse.xml", "philips.xml", "scp.scp", "sub/b.EDF", "xli.xml"),
    ]


def test_what_is_no_regular_file_or_leaves_the_folder(samples):
    os.mkfifo(samples / "pipe.xml")
    (samples / "folder.dcm").mkdir()
    inside = samples / "sub"
    inside.mkdir()
    assert reason_of(samples, "pipe.xml") == "unreadable"
    assert reason_of(samples, "folder.dcm") == "unreadable"
    assert reason_of(samples, "gone.scp") == "missing_file"
    for record in ("../muse.xml", str(samples / "muse.xml"), "", "a/../../muse.xml"):
        assert reason_of(inside, record) == "path"


def test_what_a_file_is_its_content_tells(samples):
    (samples / "muse.xml").rename(samples / "dicom.dcm")
    assert clinical.head(samples, "dicom.dcm", OPTIONS).words["patient"] == "4711"


def test_mutated_files_never_crash(samples):
    dice = random.Random(0)
    reasons = set()
    for record in clinical.find(samples, "", OPTIONS):
        data = (samples / record).read_bytes()
        for _ in range(60):
            mutant = bytearray(data)
            for _ in range(dice.randint(1, 5)):
                place = dice.randrange(len(mutant) or 1)
                kind = dice.randrange(4)
                if kind == 0:
                    mutant[place : place + 1] = bytes([dice.randrange(256)])
                elif kind == 1:
                    del mutant[place : place + dice.randint(1, 30)]
                elif kind == 2:
                    mutant[place:place] = dice.choice([b"9" * 9, b"-", b"\xff" * 4, b"\0", b"<", b"nan", b"1e999"])
                elif place > len(mutant) // 2:
                    mutant = mutant[: place + 1]
            (samples / record).write_bytes(mutant)
            reasons.add(reason_of(samples, record))
    assert {"", "header", "format"} <= reasons <= {"", *REASONS}


@pytest.mark.parametrize("package", ["ecgdatakit", "pydicom"])
def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch, package):
    if package == "pydicom":
        pytest.importorskip("ecgdatakit", reason="pip install umbra[clinical]")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"the package {package}: pip install umbra\[clinical\]") as error:
        clinical.check(OPTIONS)
    assert "\n" not in str(error.value)
