"""The report: mistakes in units, leads and rates show in its numbers; its counts are the tables'; its page is whole."""

import tracemalloc
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding import report
from sharding.build import build
from sharding.options import BuildConfig
from sharding.report import pictures, signals, tables
from sharding.sources.protocol import SourceConfig
from sharding.writer import ShardWriter
from tests.support.recordings import LEADS, beats, write_folder, write_record
from umbra.errors import UserError
from umbra.schema import Geometry, Manifest, Shard, fingerprint, read_manifest

# Of the R, S and T waves, mV; I and II give the other limb leads.
WAVES = {
    "I": (0.7, -0.1, 0.2),
    "II": (1.0, -0.2, 0.3),
    "V1": (0.2, -0.9, -0.1),
    "V2": (0.4, -1.3, 0.4),
    "V3": (0.7, -1.0, 0.5),
    "V4": (1.2, -0.6, 0.45),
    "V5": (1.3, -0.3, 0.35),
    "V6": (1.0, -0.1, 0.25),
}
SNOMED = ("426783006", "164889003")


def ecg(seed: int, bpm: float = 70.0, rate: float = 100.0, seconds: float = 10.0) -> np.ndarray:
    """12 leads of a regular rhythm, int16 microvolt [12, samples], with wander, a random size and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(rate * seconds)) / rate
    phase = (time + rng.uniform(0, 60 / bpm)) % (60 / bpm) - 0.3 * 60 / bpm
    shapes = [np.exp(-0.5 * ((phase - at) / width) ** 2) for at, width in ((0, 0.012), (0.04, 0.014), (0.22, 0.045))]
    x = {lead: np.array(sizes) * rng.uniform(0.7, 1.3, 3) @ shapes for lead, sizes in WAVES.items()}
    for lead in x:
        x[lead] = x[lead] + 0.05 * np.sin(2 * np.pi * 0.25 * time + rng.uniform(0, 6)) + rng.normal(0, 0.01, len(time))
    one, two = x["I"], x["II"]
    x |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return np.rint(1000 * np.stack([x[lead] for lead in LEADS])).astype("<i2")


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(report, "ECGS", 2)


def write_set(folder: Path, signals: dict[str, list[np.ndarray]], rate: float = 100.0, shards: int = 3) -> Path:
    """A finished data set of windows [12, samples] by source, by hand: each in turn goes into the next shard."""
    parts: list[list[tuple[str, np.ndarray]]] = [[] for _ in range(shards)]
    for i, pair in enumerate([(source, x) for source, windows in signals.items() for x in windows]):
        parts[i % shards].append(pair)
    geometry = Geometry(12, parts[0][0][1].shape[1], 512)
    (folder / "private").mkdir(parents=True)
    listed, rows = [], []
    for number, part in enumerate(parts):
        split = ("train", "val", "test")[number % 3]
        name = f"{split}-{number:06d}.tar"
        with open(folder / name, "wb") as file:
            writer = ShardWriter(file, geometry, number)
            for index, (source, x) in enumerate(part):
                key = writer.add(x, b"{}".ljust(512))
                patient = index // 2  # two windows each, and the same codes in other shards are other rows of patients
                row = (number, index, key, patient, source, (40.0, np.nan, 90.0)[index % 3], ("male", None)[index % 2])
                rows.append((*row, list(SNOMED[: index % 3])))
            listed.append(Shard(name, split, len(part), geometry.shard_bytes(len(part)), writer.close()))
    names = ("shard", "index", "key", "patient", "source", "age", "sex", "codes")
    kinds = (pa.int32(), pa.int32(), pa.string(), pa.int64(), pa.string(), pa.float32(), pa.string())
    columns = [pa.array(c, k) for c, k in zip(zip(*rows), (*kinds, pa.list_(pa.string())))]
    pq.write_table(pa.table(dict(zip(names, columns))), folder / "samples.parquet")
    mark = fingerprint(listed, geometry, rate, list(LEADS), 1.0)
    manifest = Manifest(mark, rate, list(LEADS), geometry.samples, 1.0, 512, listed, [0.0] * 12, [1.0] * 12, True, "k")
    (folder / "manifest.json").write_text(manifest.to_json())
    return folder


def swapped(x: np.ndarray, a: str, b: str) -> np.ndarray:
    names = [{a: b, b: a}.get(lead, lead) for lead in LEADS]
    return np.ascontiguousarray(x[[LEADS.index(name) for name in names]])


def about(found: dict, source: str) -> list[str]:
    return [line for line in found["findings"] if line.startswith(f"{source}: ")]


def test_a_clean_set_has_no_finding_and_the_numbers_of_its_signals(tmp_path):
    signals = [ecg(i) for i in range(30)]
    found = report.summary(write_set(tmp_path / "set", {"clean": signals}))
    assert found["findings"] == []
    numbers = found["sources"]["clean"]
    x = np.stack(signals) / 1000.0
    assert numbers["sampled"] == 30
    assert numbers["peak_to_peak_mv"] == pytest.approx(np.median(np.ptp(x, axis=2)), abs=1e-5)
    for row, lead in enumerate(LEADS):
        expected = np.percentile(x[:, row], [1, 50, 99], method="inverted_cdf")
        assert numbers["percentiles_mv"][lead] == pytest.approx(expected, abs=1e-6)
        assert numbers["lead_peak_to_peak_mv"][lead] == pytest.approx(np.median(np.ptp(x[:, row], axis=1)), abs=1e-5)
    assert max(numbers["residuals"].values()) < 0.02
    assert (numbers["positive_qrs"]["II"], numbers["positive_qrs"]["aVR"]) == (1.0, 0.0)
    assert numbers["chest_order"] == ["V1", "V2", "V3", "V4", "V5", "V6"]


def test_a_source_in_half_the_unit_stands_apart(tmp_path):
    right, double = [ecg(i) for i in range(20)], [2 * ecg(100 + i) for i in range(20)]
    found = report.summary(write_set(tmp_path / "set", {"right": right, "double": double}))
    sizes = {name: n["peak_to_peak_mv"] for name, n in found["sources"].items()}
    assert sizes["double"] / sizes["right"] == pytest.approx(2, rel=0.2)
    assert len(found["findings"]) == 1
    assert "double is" in found["findings"][0]
    assert "as large as right" in found["findings"][0]


@pytest.mark.parametrize("factor", [1 / 10, 5])
def test_an_unusual_amplitude_is_named_where_there_is_but_one_source(tmp_path, factor):
    signals = [np.rint(factor * ecg(i)).astype("<i2") for i in range(12)]
    found = report.summary(write_set(tmp_path / "set", {"one": signals}))
    assert "peak-to-peak amplitude" in about(found, "one")[0]


@pytest.mark.parametrize(("a", "b"), [("I", "II"), ("II", "III"), ("aVL", "aVF"), ("aVR", "aVL"), ("III", "aVF")])
def test_swapped_limb_leads_break_einthoven_or_goldberger(tmp_path, a, b):
    signals = {"right": [ecg(i) for i in range(12)], "wrong": [swapped(ecg(50 + i), a, b) for i in range(12)]}
    found = report.summary(write_set(tmp_path / "set", signals))
    assert max(found["sources"]["right"]["residuals"].values()) < 0.02
    assert max(found["sources"]["wrong"]["residuals"].values()) > 0.3
    assert set(found["sources"]["wrong"]["mending_swap"]) == {a, b}
    assert any("Leads may be swapped" in line and "would fix it" in line for line in about(found, "wrong"))
    assert about(found, "right") == []


def test_residuals_are_those_of_the_formulas():
    x = np.random.default_rng(0).normal(size=(1, 12, 400))
    x -= x.mean(axis=2, keepdims=True)
    one, two, three, right = x[0, 0], x[0, 1], x[0, 2], x[0, 3]
    found = signals.residuals(x @ x.transpose(0, 2, 1) / 400, list(LEADS))

    def rms(*parts):
        return np.sqrt(np.mean(np.square(parts)))

    assert found["III"][0] == pytest.approx(rms(one + three - two) / rms(one, two, three))
    assert found["aVR"][0] == pytest.approx(rms(right + (one + two) / 2) / rms(one, two, right))


def test_exchanged_arm_electrodes_keep_einthoven_and_turn_avr_over(tmp_path):
    def arms(x):
        one, two, three, right, left = x[:5]
        return np.concatenate([[-one, three, two, left, right], x[5:]]).astype("<i2")

    found = report.summary(write_set(tmp_path / "set", {"arms": [arms(ecg(i)) for i in range(12)]}))
    assert max(found["sources"]["arms"]["residuals"].values()) < 0.02
    assert found["sources"]["arms"]["positive_qrs"]["aVR"] > 0.9
    assert found["sources"]["arms"]["positive_qrs"]["I"] == 0.0
    assert any("the QRS of aVR is positive" in line for line in about(found, "arms"))


@pytest.mark.parametrize(("a", "b"), [("V1", "V6"), ("V3", "V4"), ("V2", "V5")])
def test_swapped_chest_leads_are_named(tmp_path, a, b):
    found = report.summary(write_set(tmp_path / "set", {"wrong": [swapped(ecg(i), a, b) for i in range(12)]}))
    order = [{a: b, b: a}.get(lead, lead) for lead in LEADS[6:]]
    assert found["sources"]["wrong"]["chest_order"] in (order, order[::-1])
    assert any("chest leads" in line for line in about(found, "wrong"))


@pytest.mark.parametrize("rate", [100.0, 500.0])
@pytest.mark.parametrize("bpm", [42.0, 75.0, 128.0, 180.0])
def test_heart_rate_is_that_of_the_beats(tmp_path, rate, bpm):
    signals = [ecg(i, bpm, rate) for i in range(4)]
    signals[0][3, 200:210] = 15000  # a spike in one lead is no beat
    found = report.summary(write_set(tmp_path / "set", {"s": signals}, rate, shards=1))
    assert found["sources"]["s"]["bpm"] == pytest.approx(bpm, rel=0.05)
    assert found["sources"]["s"]["bpm_5_95"] == pytest.approx([bpm, bpm], rel=0.05)


def test_what_has_no_beats_has_no_heart_rate(tmp_path):
    flat = np.zeros((12, 1000), "<i2")
    flat[:, 500] = 1
    found = report.summary(write_set(tmp_path / "set", {"s": [flat] * 12}))
    assert found["sources"]["s"]["no_bpm"] == 1.0
    assert any("no heart rate" in line for line in about(found, "s"))


def test_a_lead_that_is_not_there_has_no_numbers(tmp_path):
    signals = [ecg(i) for i in range(12)]
    for x in signals:
        x[[2, 7]] = 0
    found = report.summary(write_set(tmp_path / "set", {"s": signals}))
    numbers = found["sources"]["s"]
    assert np.isnan(
        [*numbers["percentiles_mv"]["V2"], numbers["residuals"]["III"], numbers["positive_qrs"]["V2"]]
    ).all()
    assert numbers["residuals"]["aVR"] < 0.02
    assert numbers["chest_order"] == []
    assert found["findings"] == []
    assert report.report(tmp_path / "set").is_file()


def test_padding_and_leads_that_are_not_there_are_no_part_of_the_numbers(tmp_path):
    signals = [ecg(i) + np.int16(300) for i in range(12)]
    for x in signals:
        x[11] = 0
        x[:, 900:] = 0
    numbers = report.summary(write_set(tmp_path / "set", {"short": signals}))["sources"]["short"]
    whole = [x[:, :900] for x in signals]
    expected = report.summary(write_set(tmp_path / "cut", {"short": whole}))["sources"]["short"]
    for lead in LEADS[:11]:
        assert numbers["percentiles_mv"][lead] == pytest.approx(expected["percentiles_mv"][lead], abs=1e-6)
        sizes = [numbers["lead_peak_to_peak_mv"][lead], expected["lead_peak_to_peak_mv"][lead]]
        assert sizes[0] == pytest.approx(sizes[1], abs=1e-5)
    assert np.isnan(numbers["percentiles_mv"]["V6"]).all()
    assert numbers["residuals"] == pytest.approx(expected["residuals"], abs=1e-3)


def test_counts_are_those_of_the_table(tmp_path):
    signals = {"a": [ecg(i, seconds=2) for i in range(17)], "b": [ecg(i, seconds=2) for i in range(12)]}
    folder = write_set(tmp_path / "set", signals)
    found = report.summary(folder)
    rows = pq.read_table(folder / "samples.parquet").to_pylist()
    splits = [s.split for s in read_manifest(folder).shards]
    assert found["windows"] == 29
    assert found["counts"]["source"] == {"a": 17, "b": 12}
    assert found["counts"]["sex"] == Counter(r["sex"] or "unknown" for r in rows)
    assert found["counts"]["codes"] == Counter(code for r in rows for code in r["codes"])
    bands = {40.0: "40-49", 90.0: "90+"}
    assert found["counts"]["age"] == Counter(bands.get(r["age"], "unknown") for r in rows)
    assert found["patients"] == len({(r["shard"], r["patient"]) for r in rows})
    for split, n in found["splits"].items():
        mine = [r for r in rows if splits[r["shard"]] == split]
        assert n == {"windows": len(mine), "patients": len({r["patient"] for r in mine}), "shards": 1}


def test_patients_are_counted_once_across_batches(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "set", {"a": [ecg(i, seconds=2) for i in range(31)]}, shards=2)
    whole = report.summary(folder)
    monkeypatch.setattr(tables, "BATCH_ROWS", 3)
    monkeypatch.setattr(signals, "BATCH_VALUES", 12 * 200 * 4)
    small = report.summary(folder)
    assert (small["patients"], small["splits"], small["counts"]) == (
        whole["patients"],
        whole["splits"],
        whole["counts"],
    )
    assert small["sources"]["a"]["percentiles_mv"] == whole["sources"]["a"]["percentiles_mv"]


def test_windows_are_the_rows_asked_for(tmp_path):
    signals = [ecg(i) for i in range(9)]
    folder = write_set(tmp_path / "set", {"a": signals})
    found = np.concatenate(list(report.windows(folder, read_manifest(folder), np.array([8, 0, 4]))))
    assert (found == np.stack([signals[0], signals[4], signals[8]])).all()  # row 4 is the second of the second shard


def test_the_sample_is_bounded_and_drawn_from_all_sources(tmp_path, monkeypatch):
    few, many = [ecg(i, seconds=2) for i in range(5)], [ecg(9, seconds=2)] * 200
    folder = write_set(tmp_path / "set", {"few": few, "many": many})
    monkeypatch.setattr(tables, "SAMPLE", 40)
    found = report.summary(folder)
    assert {name: n["sampled"] for name, n in found["sources"].items()} == {"few": 5, "many": 20}
    counts = report.count(folder, read_manifest(folder))
    assert len(set(counts.picked["many"].tolist())) == 20
    assert max(counts.picked["many"]) > 150
    assert (report.count(folder, read_manifest(folder)).picked["many"] == counts.picked["many"]).all()


def test_memory_does_not_grow_with_the_set(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SAMPLE", 20)
    monkeypatch.setattr(signals, "BATCH_VALUES", 12 * 1000 * 5)
    x = ecg(0)
    peaks = []
    for name, count in (("small", 30), ("large", 1500)):
        folder = write_set(tmp_path / name, {"a": [x] * count})
        tracemalloc.start()
        report.summary(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2e6  # 1,500 windows hold 36 MB


class Page(HTMLParser):
    """What a page refers to, and whether each tag is closed in turn."""

    VOID = ("meta", "img", "br", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        words = dict(attributes)
        self.links += [words[k] for k in ("src", "href", "srcset", "data", "poster") if words.get(k)]
        self.ids += [words["id"]] if "id" in words else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def assert_self_contained(page: Page, raw: str) -> None:
    assert not page.open
    assert not page.tags["script"] + page.tags["link"] + page.tags["iframe"]
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    assert not any(word in raw for word in ("http:", "https:", "url(", "@import"))


def test_the_page_is_self_contained_and_the_same_each_time(tmp_path):
    signals = {"<b>$x_{</b>&": [ecg(i) for i in range(12)], "other": [3 * ecg(i) for i in range(12)]}
    folder = write_set(tmp_path / "set", signals)
    path = report.report(folder)
    assert path == folder / "private" / "report" / "index.html"
    raw = path.read_text()
    page = Page(raw)
    assert_self_contained(page, raw)
    assert "<b>$x_{" in page.text  # escaped, so it is text
    assert "times as large as" in page.text
    assert "24windows of 10 s" in page.text
    pictures = sorted(p.name for p in path.parent.glob("*.png"))
    assert pictures == sorted(["amplitude.png", "heart-rate.png", *(f"ecg-{i:02d}.png" for i in range(1, 3))])
    assert page.tags["img"] == 4
    report.report(folder)
    assert path.read_text() == raw


def build_with_rejections(tmp_path: Path) -> Path:
    """12 good records, 5 with a flat lead, one each without V3, too short, and cut off."""
    root = tmp_path / "in"
    write_folder(root, 12)
    for i in range(5):
        x = beats(i)
        x[:, 4] = 7
        write_record(root, f"flat{i}", x)
    write_record(root, "nov3", np.delete(beats(7), 8, axis=1), leads=(*LEADS[:8], *LEADS[9:]))
    write_record(root, "short", beats(8, samples=300))
    write_record(root, "cut", beats(9))
    (root / "cut.dat").write_bytes((root / "cut.dat").read_bytes()[:5000])
    source = SourceConfig(name="hand", format="wfdb", public=True)
    build(BuildConfig(input=str(root), output=str(tmp_path / "out"), source=source))
    return tmp_path / "out"


def test_rejected_records_are_counted_and_drawn(tmp_path):
    output = build_with_rejections(tmp_path)
    rejected = {"flat_lead": 5, "missing_lead": 1, "short": 1, "truncated": 1}
    assert report.summary(output)["rejected"] == rejected
    without = report.report(output)
    assert "input=FOLDER" in Page(without.read_text()).text
    assert not list(without.parent.glob("rejected-*"))
    path = report.report(output, tmp_path / "in")
    raw = path.read_text()
    page = Page(raw)
    assert_self_contained(page, raw)
    drawn = sorted(p.stem for p in path.parent.glob("rejected-*"))
    assert drawn == [*(f"rejected-flat_lead-{i}" for i in (1, 2, 3)), "rejected-missing_lead-1", "rejected-short-1"]
    assert "cut" in page.text.partition("Cannot be drawn")[0].rpartition("truncated")[2]
    assert str(tmp_path) not in raw
    for child in (tmp_path / "in").iterdir():
        child.unlink()
    assert (
        "Cannot be drawn: the header or a signal file does not exist"
        in Page(report.report(output, tmp_path / "in").read_text()).text
    )
    assert not list(path.parent.glob("rejected-*"))


def test_without_the_private_tables_the_page_says_so(tmp_path):
    output = build_with_rejections(tmp_path)
    (output / "private" / "records.parquet").unlink()
    assert report.summary(output)["rejected"] is None
    assert "is missing, so rejections are unknown" in Page(report.report(output).read_text()).text


def test_mistakes_of_the_user_are_one_line(tmp_path):
    with pytest.raises(UserError, match="not a finished data set"):
        report.report(tmp_path)
    folder = write_set(tmp_path / "set", {"a": [ecg(i, seconds=2) for i in range(6)]})
    with pytest.raises(UserError, match="is not a folder"):
        report.report(folder, tmp_path / "nowhere")
    shard = folder / read_manifest(folder).shards[1].name
    shard.write_bytes(shard.read_bytes()[:-2000])
    with pytest.raises(UserError, match=f"{shard.name} is missing or truncated"):
        report.summary(folder)
    pq.write_table(pq.read_table(folder / "samples.parquet").slice(1), folder / "samples.parquet")
    with pytest.raises(UserError, match="has 5 rows for 6 samples of its manifest"):
        report.summary(folder)
    (folder / "samples.parquet").unlink()
    with pytest.raises(UserError, match=r"samples.parquet is missing: run the same build again"):
        report.summary(folder)


def test_ecg_paper_has_its_scale(tmp_path):
    """25 mm/s and 10 mm/mV, measured on the picture: a step of 1 mV at 2 s in lead II alone."""
    from matplotlib.image import imread

    x = np.zeros((1, 500), np.float32)
    x[0, 250:] = 1.0
    pictures.draw_ecg(tmp_path / "p.png", x, 100.0, ["II"])
    ink = imread(tmp_path / "p.png")[..., :3].max(axis=2) < 0.7
    millimetre = pictures.DPI / 25.4
    columns = np.flatnonzero(ink.sum(axis=0) > 8 * millimetre)
    ridges = columns[np.r_[True, np.diff(columns) > 2]] / millimetre
    pulse, step = ridges[1] - ridges[0], ridges[2]
    assert pulse == pytest.approx(5, abs=0.5)
    assert step == pytest.approx(14 + 2.495 * 25, abs=0.6)
    at = round(step * millimetre)
    column = np.flatnonzero(ink[:, at - 3 : at + 4].any(axis=1))
    assert (column.max() - column.min()) / millimetre == pytest.approx(10, abs=0.6)
