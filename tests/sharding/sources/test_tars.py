"""WebDataset tars against webdataset and tarfile, against values typed by hand, and against hostile archives."""

import io
import json
import random
import tarfile
import time

import numpy as np
import pytest

from sharding.metadata import TableConfig
from sharding.options import REASONS
from sharding.sources import tars
from sharding.sources.protocol import ArrayConfig, Rejected, SourceConfig
from sharding.writer import ShardWriter, metadata_bytes
from tests.support import recordings
from tests.support.recordings import LEADS, beats
from umbra.errors import UserError
from umbra.schema import Geometry

TWO = ("I", "II")


def config(leads=TWO, table=None, **options):
    options = {"rate": 100.0, "leads": list(leads), "units": "uV", **options}
    return SourceConfig("t", "tars", array=ArrayConfig(**options), table=table or TableConfig())


def npy(values, version=(1, 0)):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(values), version=version)
    return stream.getvalue()


def add(tar, name, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def write(path, members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            add(tar, name, data)


X = np.array([[1, -2, 3, 4], [500, -600, 700, 0]], "<i2")


def reason_of(root, record, options, wanted=TWO):
    return recordings.reason_of(tars, root, record, options, wanted)


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    signals = {f"set/rec.{i:03d}": beats(i, samples=50, leads=12).T for i in range(5)}
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:  # its pax headers hold the time of day
        for i, (key, x) in enumerate(signals.items()):
            meta = {"who": i, "years": 60 + i, "codes": ["426783006", "SR"], "name": "Jane Roe"}
            writer.write({"__key__": key.replace(".", "-"), "ecg.npy": x, "json": meta})
    table = TableConfig(patient=["who"], age=["age", "years"], sex=["sex"])
    options = config(LEADS, table, signals="ecg.npy", meta="json")
    records = tars.find(tmp_path, "", options)
    assert records == [f"a.tar#set/rec-{i:03d}" for i in range(5)]
    head = tars.head(tmp_path, records[3], options)
    assert (head.rate, head.samples, head.leads, head.files) == (100, 50, list(LEADS), ["a.tar"])
    assert head.words == {"patient": "3", "age": "63", "codes": "426783006;SR"}
    for record, sample in zip(records, webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode()):
        assert record == f"a.tar#{sample['__key__']}"
        found = tars.read(tmp_path, record, LEADS, options)
        np.testing.assert_allclose(found.mv, sample["ecg.npy"] / 1000, atol=1e-6)
        assert (found.leads, found.rate) == (list(LEADS), 100)


def test_our_own_shards_are_read_back(tmp_path):
    geometry = Geometry(12, 100, 128)
    with open(tmp_path / "train-000000.tar", "wb") as file:
        writer = ShardWriter(file, geometry, 0)
        for i in range(3):
            writer.add(
                beats(i, samples=100).T.copy(), metadata_bytes({"patient": 7 + i, "age": 63.0, "sex": None}, 128)
            )
        writer.close()
    options = config(LEADS, TableConfig(patient=["patient"]), signals="ecg.npy", meta="meta.json")
    assert tars.find(tmp_path, "", options) == [f"train-000000.tar#000000-00000{i}" for i in range(3)]
    assert tars.head(tmp_path, "train-000000.tar#000000-000002", options).words == {"patient": "9", "age": "63.0"}
    found = tars.read(tmp_path, "train-000000.tar#000000-000001", LEADS, options)
    np.testing.assert_allclose(found.mv, beats(1, samples=100).T / 1000, atol=1e-6)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_places_equal_tarfiles(tmp_path, form):
    """Deep folders (ustar's prefix), long names and names that are not ASCII (GNU's and pax's extra headers)."""
    deep = "/".join(["folder" * 5] * 4) + "/deep"
    keys = ["plain", "./dot", deep] + ([] if form == tarfile.USTAR_FORMAT else ["l" * 180, "Grüße/日本", deep * 3])
    write(tmp_path / "a.tar", [(f"{key}.npy", npy(X + i)) for i, key in enumerate(keys)], form)
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {f"a.tar#{name[:-4]}" for name in tar.getnames()} == set(tars.find(tmp_path, "", config()))
    for i, key in enumerate(keys):
        found = tars.read(tmp_path, f"a.tar#{key}", TWO, config())
        np.testing.assert_allclose(found.mv, (X + i) / 1000, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (X, {}, [[0.001, -0.002, 0.003, 0.004], [0.5, -0.6, 0.7, 0.0]]),
        (X.astype(">i2"), {}, [[0.001, -0.002, 0.003, 0.004], [0.5, -0.6, 0.7, 0.0]]),
        (np.asfortranarray(X), {}, [[0.001, -0.002, 0.003, 0.004], [0.5, -0.6, 0.7, 0.0]]),
        (X.T, {"leads_last": True}, [[0.001, -0.002, 0.003, 0.004], [0.5, -0.6, 0.7, 0.0]]),
        (X, {"units": "0.5"}, [[0.5, -1, 1.5, 2], [250, -300, 350, 0]]),
        (X / 1000, {"units": "mV"}, [[0.001, -0.002, 0.003, 0.004], [0.5, -0.6, 0.7, 0.0]]),
        (X, {"leads": ["aVF", "II"]}, None),
        (np.array([[0, 0, 5, 0], [0, 0, 6, 0]]), {"trim": True}, [[0.005], [0.006]]),
    ],
)
def test_arrays_of_all_kinds(tmp_path, values, options, expected):
    write(tmp_path / "a.tar", [("k.npy", npy(values))])
    if expected is None:
        assert reason_of(tmp_path, "a.tar#k", config(**options)) == "missing_lead"
    else:
        found = tars.read(tmp_path, "a.tar#k", TWO, config(**options))
        np.testing.assert_allclose(found.mv, expected, rtol=1e-6)


def test_version_2_of_npy_and_missing_leads_derived(tmp_path):
    write(tmp_path / "a.tar", [("k.npy", npy(X, (2, 0)))])
    found = tars.read(tmp_path, "a.tar#k", ["aVR", "I"], config())
    assert sorted(found.leads) == ["I", "II"]
    assert found.flags == ("derived",)


def test_keys_and_endings_are_webdatasets(tmp_path):
    members = [
        "a.b.npy",
        "b.npy.gz",
        "c.NPY",
        "d.npy",
        "dir.x/e.npy",
        ".hidden.npy",
        "__meta__/f.npy",
        "noending",
        "g.",
    ]
    write(tmp_path / "x" / "s.TAR", [(name, npy(X)) for name in members])
    write(tmp_path / "out" / "t.tar", [("d.npy", npy(X))])
    assert tars.find(tmp_path, "out", config()) == ["x/s.TAR#c", "x/s.TAR#d", "x/s.TAR#dir.x/e"]
    assert tars.find(tmp_path, "out", config(signals="B.npy")) == ["x/s.TAR#a"]
    assert reason_of(tmp_path, "x/s.TAR#dir.x/e", config()) == ""


def test_words_of_the_json_member(tmp_path):
    meta = {"age": None, "sex": 1, "dx": ["NORM", "x, y"], "scp": {"SR": 100.0, "PVC": 0}, "AF": True, "SB": "0"}
    table = TableConfig(codes=["dx", "scp", "gone"], code_values={"norm": "426783006"})
    table.code_columns = {"AF": "164889003", "SB": "426177001", "VT": "1"}
    write(tmp_path / "a.tar", [("k.json", json.dumps(meta).encode()), ("k.npy", npy(X)), ("alone.npy", npy(X))])
    options = config(table=table, meta=".json")
    assert tars.head(tmp_path, "a.tar#k", options).words == {"sex": "1", "codes": "426783006;x;y;SR;PVC;164889003"}
    assert tars.head(tmp_path, "a.tar#alone", options).words == {}
    assert tars.head(tmp_path, "a.tar#k", config(table=table)).words == {}


def checked(config):
    """The module, after its options have been looked at as a build does."""
    tars.check(config)
    return tars


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rate": 0.0}, "source.array.rate"),
        ({"leads": []}, "source.array.leads"),
        ({"units": "mmHg"}, "source.array.units"),
        ({"signals": "ecg.npy"}, "they hold KEY with npy"),
    ],
)
def test_options_that_cannot_work_are_named(tmp_path, options, word):
    write(tmp_path / "a.tar", [("k.npy", npy(X))])
    with pytest.raises(UserError, match=word):
        checked(config(**options)).find(tmp_path, "", config(**options))


def test_a_changed_tar_is_walked_again(tmp_path):
    write(tmp_path / "a.tar", [("k.npy", npy(X))])
    assert reason_of(tmp_path, "a.tar#k", config()) == ""
    write(tmp_path / "a.tar", [("longer-name.npy", npy(X)), ("k.npy", npy(X + 1))])
    np.testing.assert_allclose(tars.read(tmp_path, "a.tar#k", TWO, config()).mv, (X + 1) / 1000, atol=1e-6)


def test_the_memory_for_indices_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "CACHED_KEYS", 5)
    for i in range(6):
        write(tmp_path / f"{i}.tar", [(f"{j}.npy", npy(X)) for j in range(2)])
        assert reason_of(tmp_path, f"{i}.tar#1", config()) == ""
    assert [key[0][-5] for key in tars._cache] == ["4", "5"]


# ---- hostile archives ----


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("k.npy", npy(X)[:-1], "truncated"),
        ("k.npy", b"", "header"),
        ("k.npy", b"\x93NUMPY\x01\x00v\x00" + b"__import__('os').system('touch /tmp/x')".ljust(118), "header"),
        ("k.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "header"),
        ("k.npy", npy(X, (3, 0)), "format"),
        ("k.npy", npy(np.array([["a", "b"]])), "format"),
        ("k.npy", npy(X.astype(complex)), "format"),
        ("k.npy", npy(X[0]), "shape"),
        ("k.npy", npy(X.T), "shape"),
        ("k.npy", npy(X[:, :0]), "empty"),
        ("k.npy", npy(X).replace(b"(2, 4)", b"(-2,4)"), "shape"),
        ("k.npy", npy(np.zeros((2, 2), bool)), "format"),
        ("k.json", b"{", "header"),
        ("k.json", b"[1]", "header"),
        ("k.json", b"[" * 100000, "header"),
        ("k.json", b" " * (1 << 20) + b"{}", "header"),
        ("k.json", b'{"age": ' + b"9" * 5000 + b"}", "header"),
        ("k.JSON", b"\xff\xfe", "header"),
    ],
)
def test_hostile_members_end_in_a_reason(tmp_path, name, data, reason):
    members = [("k.npy", npy(X))] if "npy" not in name else []
    write(tmp_path / "a.tar", [*members, (name, data)])
    assert tars.find(tmp_path, "", config(meta="json")) == ["a.tar#k"]
    assert reason_of(tmp_path, "a.tar#k", config(meta="json")) == reason


def test_pickles_are_never_loaded(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([[Rejected, 1]], object), allow_pickle=True)
    write(tmp_path / "a.tar", [("k.npy", stream.getvalue())])
    assert reason_of(tmp_path, "a.tar#k", config()) == "format"


def test_names_that_leave_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    write(tmp_path / "secret.tar", [("k.npy", npy(X))])
    write(tmp_path / "in" / "a.tar", [("/etc/k.npy", npy(X)), ("../k.npy", npy(X)), ("a/../../k.npy", npy(X))])
    for record in tars.find(tmp_path / "in", "", config()):
        assert reason_of(tmp_path / "in", record, config()) == "path"
    for record in ("../secret.tar#k", str(tmp_path / "secret.tar") + "#k", "a/../../secret.tar#k"):
        assert reason_of(tmp_path / "in", record, config()) == "path"


def test_links_devices_and_sparse_members_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "target.npy", npy(X))
        for kind, name in ((tarfile.SYMTYPE, "sym"), (tarfile.LNKTYPE, "hard"), (tarfile.CHRTYPE, "device")):
            add(tar, f"{name}.npy", type=kind, linkname="target.npy")
        add(tar, "sparse.npy", npy(X), type=tarfile.GNUTYPE_SPARSE)
        add(tar, "dir.npy", type=tarfile.DIRTYPE)
        add(tar, "last.npy", npy(X))
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "sparse.npy", npy(X), pax_headers={"GNU.sparse.major": "1"})
    names = ("sym", "hard", "device", "sparse")
    assert set(tars.find(tmp_path, "", config())) == {f"a.tar#{n}" for n in (*names, "target", "last")} | {
        "b.tar#sparse"
    }
    assert {reason_of(tmp_path, f"a.tar#{name}", config()) for name in names} == {"format"}
    assert reason_of(tmp_path, "b.tar#sparse", config()) == "format"
    assert reason_of(tmp_path, "a.tar#last", config()) == ""


def test_two_members_of_one_name_are_refused(tmp_path):
    write(
        tmp_path / "a.tar",
        [("k.npy", npy(X)), ("l.npy", npy(X)), ("k.NPY", npy(X)), ("l.json", b"{}"), ("l.json", b"")],
    )
    assert tars.find(tmp_path, "", config()) == ["a.tar#k", "a.tar#l"]
    assert reason_of(tmp_path, "a.tar#k", config()) == "duplicate_record"
    assert reason_of(tmp_path, "a.tar#l", config()) == ""
    assert reason_of(tmp_path, "a.tar#l", config(meta="json")) == "duplicate_record"


def test_a_cut_archive_keeps_its_whole_samples_and_says_so(tmp_path):
    write(tmp_path / "whole.tar", [(f"{i}.npy", npy(X)) for i in range(3)], tarfile.USTAR_FORMAT)
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "whole.tar").unlink()
    for name, end in (("in", 2 * 1024 + 600), ("between", 2 * 1024), ("empty", 0)):
        (tmp_path / f"{name}.tar").write_bytes(data[:end])
    records = tars.find(tmp_path, "", config())
    assert records == ["between.tar", "between.tar#0", "between.tar#1", "empty.tar", "in.tar", "in.tar#0", "in.tar#1"]
    assert [reason_of(tmp_path, record, config()) for record in records] == ["truncated", "", "", "truncated"] + [
        "truncated",
        "",
        "",
    ]
    (tmp_path / "in.tar").write_bytes(data[:1024] + b"x" * 512 + data[1536:])
    assert reason_of(tmp_path, "in.tar", config()) == "header"


def header(name, size, kind=b"0"):
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size.ljust(12, b"\0"), kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data):
    return data + bytes(-len(data) % 512)


def test_sizes_in_pax_headers_and_maps_of_sparse_members(tmp_path):
    """Both stand between a member's header and its data; the member that follows tells whether they were passed."""
    data = npy(X)
    size = b"size=%d\n" % len(data)
    size = b"%d %s" % (len(size) + 3, size)
    sparse = bytearray(header("sparse.npy", b"%o" % len(data), b"S"))
    sparse[482] = 1
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    archive = header("x", b"%o" % len(size), b"x") + padded(size) + header("k.npy", b"0") + padded(data)
    archive += bytes(sparse) + (bytes(504) + b"\1" + bytes(7)) + bytes(512) + padded(data)
    archive += header("last.npy", b"%o" % len(data)) + padded(data) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(archive)
    assert tars.find(tmp_path, "", config()) == ["a.tar#k", "a.tar#last", "a.tar#sparse"]
    assert [reason_of(tmp_path, f"a.tar#{key}", config()) for key in ("k", "last", "sparse")] == ["", "", "format"]


@pytest.mark.parametrize(
    "data",
    [
        header("k.npy", b"77777777777"),
        header("k.npy", b"\x80" + b"\xff" * 11),
        header("k.npy", b"\xff" * 12),
        header("k.npy", b"8"),
        header("k.npy", b"-1"),
        header("k", b"77777777777", b"L"),
        header("k", b"10000000", b"x") + b"9" * (1 << 21),
        header("k", b"20", b"x") + b"99999 path=x".ljust(512),
        header("k", b"20", b"x") + b"0 path=x".ljust(512),
        header("k", b"17", b"x") + b"15 size=-10000\n".ljust(512),
        header("k", b"20000", b"L") + b"n" * (1 << 13) + header("k.npy", b"0"),
        header("k.npy", b"1", b"S")[:482] + b"\1" * 30,
    ],
)
def test_hostile_headers_end_quickly(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    start = time.monotonic()
    assert tars.find(tmp_path, "", config()) == ["a.tar"]
    assert reason_of(tmp_path, "a.tar", config()) in ("truncated", "header")
    assert time.monotonic() - start < 1


def test_compressed_tars_and_odd_files_are_named_with_their_reason(tmp_path):
    (tmp_path / "folder.tar").mkdir()
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add(tar, "k.npy", npy(X))
    assert tars.find(tmp_path, "", config()) == ["a.tar.gz"]
    with pytest.raises(Rejected, match="decompress it") as error:
        tars.head(tmp_path, "a.tar.gz", config())
    assert error.value.reason == "format"
    assert reason_of(tmp_path, "folder.tar#k", config()) == "unreadable"
    assert reason_of(tmp_path, "gone.tar#k", config()) == "missing_file"
    write(tmp_path / "b.tar", [("k.npy", npy(X))])
    assert reason_of(tmp_path, "b.tar#other", config()) == "missing_file"
    assert reason_of(tmp_path, "b.tar", config()) == "header"


def test_mutated_tars_never_crash(tmp_path):
    dice = random.Random(0)
    meta = json.dumps({"patient": 1}).encode()
    write(tmp_path / "good.tar", [("a/k.npy", npy(X)), ("a/k.json", meta), ("l" * 120 + ".npy", npy(X))])
    data = (tmp_path / "good.tar").read_bytes().rstrip(b"\0") + bytes(1024)
    (tmp_path / "good.tar").unlink()
    reasons = set()
    for _ in range(600):
        mutant = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(mutant) or 1)
            kind = dice.randrange(4)
            if kind == 0:
                mutant[place : place + 1] = bytes([dice.randrange(256)])
            elif kind == 1:
                del mutant[place : place + dice.choice([1, 30, 512])]
            elif kind == 2:
                mutant[place:place] = dice.choice([b"7" * 11, b"\0" * 512, b"\xff", b"../", b"9" * 20])
            else:
                mutant = mutant[: place + 1]
        (tmp_path / "m.tar").write_bytes(bytes(mutant))
        try:
            records = tars.find(tmp_path, "", config(meta="json"))
        except UserError:
            continue
        reasons |= {reason_of(tmp_path, record, config(meta="json")) for record in records}
    assert {"", "truncated", "header"} <= reasons <= {"", *REASONS}


def test_a_json_member_that_is_called_otherwise_is_named(tmp_path):
    write(tmp_path / "a.tar", [("k.npy", npy(X)), ("k.meta.json", b"{}")])
    with pytest.raises(UserError, match=r"array\.meta=mta\.json: no tar holds a member KEY\.mta\.json; .* meta\.json"):
        tars.find(tmp_path, "", config(meta="mta.json"))
    for meta in ("meta.json", ""):
        assert tars.find(tmp_path, "", config(meta=meta)) == ["a.tar#k"]
    write(tmp_path / "a.tar", [("k.npy", npy(X)), ("k.cls", b"1")])
    assert tars.find(tmp_path, "", config(meta="json")) == ["a.tar#k"]
