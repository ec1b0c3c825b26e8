"""`Encoder.embed`: features are those of shards, whatever the form in which an ECG comes."""

import os
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sharding import build
from sharding.options import BuildConfig
from tests.support.handmade import SMALL, small_encoder
from tests.support.recordings import LEADS, arrays, beats, write_record
from umbra.config import load
from umbra.encoders.encoder import Encoder
from umbra.errors import UserError

CONFIG = Path(__file__).parents[2] / "configs" / "shard" / "wfdb.yaml"
REAL = Path(os.environ.get("UMBRA_REAL_DATA", "/nowhere"))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return small_encoder("resnet18")


def ecg(seconds: float = 10, rate: float = 100, leads: int = 12, seed: int = 0) -> np.ndarray:
    """An ECG in mV, float32 [leads, samples]."""
    return (beats(seed, round(seconds * rate), rate, leads).T / 1000).astype(np.float32)


def quiet(encoder, *args, **keys):
    """Without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return encoder.embed(*args, **keys)


def apart(a, b) -> float:
    """The distance of two arrays of features, relative to their size."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    assert a.shape == b.shape
    return float((a - b).norm() / b.norm())


def shards_of(folder: Path, output: Path, *words: str) -> torch.Tensor:
    """The windows of a build of all records in `folder`, mV [n, 12, samples]."""
    fixed = [f"input={folder}", f"output={output}", "source.public=true"]
    fixed += ["split.train=1", "split.val=0", "split.test=0", "seconds=10"]
    build.build(load(BuildConfig, CONFIG, [*fixed, *words]))
    return torch.from_numpy(arrays(output)).float() / 1000


@pytest.mark.parametrize(("source", "target"), [(500, 100), (400, 100), (1000, 100), (100, 500), (257, 100)])
def test_features_are_those_of_shards_at_any_rate(source, target, tmp_path):
    digital = beats(1, 25 * source, source) + np.int16(40)
    write_record(tmp_path / "in", "a", digital, source)
    encoder = small_encoder("resnet18", rate=target)
    windows = shards_of(tmp_path / "in", tmp_path / "out", f"rate={target}")
    assert len(windows) == 2
    expected = encoder(windows)
    with pytest.warns(UserWarning, match="the last 5 s do not fill a window"):
        found = encoder.embed(digital.T, rate=source, units="uV", pool=None)
    assert apart(found, expected) < 1e-3
    with pytest.warns(UserWarning, match="the last 5 s"):
        assert apart(encoder.embed(tmp_path / "in" / "a", pool=None), expected) < 1e-3


@pytest.mark.skipif(not REAL.is_dir(), reason="no real ECGs")
@pytest.mark.parametrize(
    ("folder", "names", "words"),
    [("cinc2021_raw", ["HR03961", "A0689", "E00271"], []), ("code15_subset/training_data", 3, ["min_seconds=5"])],
)
def test_features_are_those_of_shards_on_real_ecgs(folder, names, words, tmp_path, encoder):
    found = sorted((REAL / folder).rglob("*.hea"))
    chosen = [path for path in found if path.stem in names] if isinstance(names, list) else found[:names]
    for path in chosen:
        (tmp_path / "in").mkdir(exist_ok=True)
        for file in path.parent.glob(f"{path.stem}.*"):
            shutil.copy(file, tmp_path / "in")
        output = tmp_path / path.stem
        expected = encoder(shards_of(tmp_path / "in", output, "rate=100", *words))
        assert len(expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert apart(encoder.embed(path, pool=None), expected) < 1e-3
        shutil.rmtree(tmp_path / "in")


def test_the_form_of_an_ecg_does_not_matter(encoder):
    x = ecg()
    order = np.random.default_rng(0).permutation(12)
    shuffled = [("lead {}", "{}", "ECG {}")[i % 3].format(LEADS[i].swapcase()) for i in order]
    forms = {
        "numpy": (x, {}),
        "float64": (x.astype(float), {}),
        "big endian": (x.astype(">f4"), {}),
        "read-only": (np.frombuffer(x.tobytes(), np.float32).reshape(12, -1), {}),
        "fortran": (np.asfortranarray(x), {}),
        "reversed": (x[::-1], {"leads": LEADS[::-1]}),
        "torch": (torch.from_numpy(x), {}),
        "with gradients": (torch.from_numpy(x).requires_grad_(), {}),
        "nested lists": (x.tolist(), {}),
        "a list of leads": (list(x), {}),
        "microvolt": (np.rint(x * 1000).astype(np.int16), {"units": "uV"}),
        "unsigned": ((np.rint(x * 1000) + 3000).astype(np.uint16), {"units": "µV"}),
        "units": (x / 0.005, {"units": 0.005}),
        "other order": (x[order], {"leads": shuffled}),
        "more signals": (np.concatenate([x, x[:1]]), {"leads": [*LEADS, "RESP"]}),
    }
    for form, (given, keys) in forms.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = encoder.embed(given, rate=100, **keys)
        assert [str(w.message) for w in said] == (
            ["signals that are no known lead are ignored: RESP"] if form == "more signals" else []
        ), form
        assert isinstance(found, torch.Tensor if isinstance(given, torch.Tensor) else np.ndarray), form
        offset = 3 if form == "unsigned" else 0
        assert apart(found, encoder(torch.from_numpy(x + offset))) < 1e-3, form


def test_limb_leads_are_derived_and_missing_leads_are_zeros(encoder):
    x = np.round(ecg() * 500) / np.float32(500)  # even, so that the derived leads are whole microvolts
    x[2], x[3], x[4], x[5] = x[1] - x[0], -(x[0] + x[1]) / 2, x[0] - x[1] / 2, x[1] - x[0] / 2
    eight = [0, 1, 6, 7, 8, 9, 10, 11]
    names = [LEADS[i] for i in eight]
    found, info = quiet(encoder, x[eight], rate=100, leads=names, return_info=True)
    assert info.derived == ("III", "aVR", "aVL", "aVF")
    assert info.missing == ()
    assert apart(found, encoder(torch.from_numpy(x))) < 1e-3
    x[7:] = 0
    with pytest.warns(UserWarning, match="^missing leads are filled with zeros: V2, V3, V4, V5, V6$"):
        found, info = encoder.embed(x[[6, 1, 0]], rate=100, leads=["V1", "ii", "DI"], return_info=True)
    assert info.missing == ("V2", "V3", "V4", "V5", "V6")
    assert apart(found, encoder(torch.from_numpy(x))) < 1e-3
    x[:6], x[7:] = 0, 0
    with pytest.warns(UserWarning, match="I, II, III, aVR"):
        assert apart(encoder.embed(x[6], rate=100, leads=["V1"]), encoder(torch.from_numpy(x))) < 1e-6


@pytest.mark.parametrize("name", SMALL)
def test_windows_are_pooled(name):
    encoder, x = small_encoder(name), ecg(35, seed=3)
    windows = torch.from_numpy(x[:, :3000]).unflatten(1, (3, 1000)).transpose(0, 1)
    with torch.no_grad():
        each = encoder(windows).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in (1, 2, 64):
            keys = {"rate": 100, "batch": batch}
            np.testing.assert_allclose(encoder.embed(x, pool=None, **keys), each, atol=1e-5)
            np.testing.assert_allclose(encoder.embed(x, **keys), each.mean(0), atol=1e-5)
            both = encoder.embed(np.stack([x, x[::-1]]), pool=None, **keys)
            assert both.shape == (2, 3, encoder.dim)
            np.testing.assert_allclose(both[0], each, atol=1e-5)
            listed = encoder.embed([x, x[:, :2000], x[:, :1500]], pool=None, **keys)
            assert [len(one) for one in listed] == [3, 2, 1]
            np.testing.assert_allclose(listed[1], each[:2], atol=1e-5)
            mean = encoder.embed([x, x[:, :2000]], **keys)
            np.testing.assert_allclose(mean, [each.mean(0), each[:2].mean(0)], atol=1e-5)
        tokens = encoder.embed(x, rate=100, pool="tokens")
    assert tokens.ndim == 2
    assert len(tokens) % 3 == 0
    np.testing.assert_allclose(tokens.reshape(3, -1, encoder.dim).mean(1), each, atol=1e-5)


def test_a_long_record_is_cut_as_a_whole(encoder, monkeypatch):
    """In pieces of two windows, with the filter's margins, at another rate."""
    x = ecg(60.5, 250)
    whole = quiet(encoder, x, rate=250, pool=None)
    assert whole.shape == (6, encoder.dim)
    np.testing.assert_allclose(quiet(encoder, x, rate=250, pool=None, batch=2), whole, atol=1e-6)
    monkeypatch.setattr("umbra.encoders.embed.MOST_VALUES", 12 * 2500 * 2)
    np.testing.assert_allclose(quiet(encoder, np.stack([x, x]), rate=250, pool=None)[1], whole, atol=1e-6)


def test_a_short_ecg_is_padded_with_zeros_and_one_below_a_second_refused(encoder):
    x = ecg(3)
    padded = np.pad(x, ((0, 0), (0, 700)))
    with pytest.warns(UserWarning, match="padded with 7 s of zeros"):
        found, info = encoder.embed(x, rate=100, return_info=True)
    np.testing.assert_allclose(found, encoder(torch.from_numpy(padded)).numpy(), atol=1e-6)
    assert info.padded == pytest.approx(7)
    assert not info.implausible
    with pytest.raises(UserError, match=r"^ecg has 99 samples, 0.99 s at rate=100: too short"):
        encoder.embed(x[:, :99], rate=100)
    with pytest.raises(UserError, match=r"^ecg\[1\] has 99 samples"):
        encoder.embed([x, x[:, :99]], rate=100)


def test_values_that_are_not_finite_are_refused_with_their_place_or_interpolated(encoder):
    x = ecg()
    x[7, 250:350], x[0, 0] = np.nan, np.inf
    with pytest.raises(UserError, match=r"1 values that are not finite in lead I, from 0.000 to 0.000 s, and 101"):
        encoder.embed(x, rate=100)
    batch = np.stack([ecg(), x])
    batch[1, 0, 0] = 0
    with pytest.raises(UserError, match=r"^ecg\[1\] has 100 values .* in lead V2, from 2.500 to 3.490 s"):
        encoder.embed(batch, rate=100)
    filled = x.copy()
    filled[0, 0] = x[0, 1]
    filled[7, 250:350] = x[7, 249] + (x[7, 350] - x[7, 249]) * np.arange(1, 101) / 101
    with pytest.warns(UserWarning, match="^101 values that were not finite are interpolated$"):
        found = encoder.embed(x, rate=100, nan="fill")
    assert apart(found, encoder(torch.from_numpy(filled))) < 1e-3
    x[:] = ecg()
    x[8] = np.nan
    with pytest.warns(UserWarning, match=r"filled with zeros: V3 \(in 1 of 2 ECGs\)$"):
        found, infos = encoder.embed(np.stack([ecg(), x]), rate=100, nan="fill", return_info=True)
    assert [info.missing for info in infos] == [(), ("V3",)]
    x[8] = 0
    np.testing.assert_allclose(found[1], encoder(torch.from_numpy(x)).numpy(), atol=1e-5)
    with pytest.raises(UserError, match=r"^ecg has no finite value at all"):
        encoder.embed(np.full((12, 1000), np.nan), rate=100, nan="fill")


def test_implausible_amplitudes_are_warned_of(encoder):
    x = ecg()
    for given, said in [
        (x * 1000, "microvolt taken for millivolt, or a wrong gain.*; is units= right"),
        (x / 1000, "volt taken for millivolt"),
        (x * 18, "mV, more than 20"),
        (x * (np.arange(12)[:, None] != 4), "1 of 12 leads never change$"),
    ]:
        with pytest.warns(UserWarning, match=said):
            _, info = encoder.embed(given.astype(np.float32), rate=100, return_info=True)
        assert info.implausible
    with pytest.warns(UserWarning, match=r"more than 20; is units= right\? \(in 2 of 3 ECGs\)"):
        encoder.embed(np.stack([x, x * 18, x * 19]), rate=100)


def test_a_warning_names_the_line_of_the_user(encoder):
    with pytest.warns(UserWarning, match="padded") as said:
        encoder.embed(ecg(3), rate=100)
    assert [w.filename for w in said] == [__file__]


WRONG = {
    "a number": (3.0, {}, "^ecg has shape "),
    "text": (np.array([["a"] * 1000] * 12), {}, "^ecg is an array of <U1: give real numbers"),
    "none": (None, {}, "^ecg is of type NoneType"),
    "a mapping": ({"a": 1}, {}, "^ecg is of type dict"),
    "complex": (np.ones((12, 1000), complex), {}, "^ecg is an array of complex128"),
    "booleans": (torch.ones(12, 1000, dtype=torch.bool), {}, "^ecg is a tensor of torch.bool"),
    "ragged": ([[1.0, 2.0], [1.0]], {}, r"^ecg\[0\] has shape|^ecg is no array"),
    "four axes": (np.ones((1, 1, 12, 1000)), {}, r"^ecg has shape \[1, 1, 12, 1000\]: give \[leads, samples\]"),
    "no ecg": (np.ones((0, 12, 1000)), {}, r"^ecg has shape \[0, 12, 1000\]"),
    "an empty list": ([], {}, r"^ecg has shape \[0\]"),
    "turned": (ecg().T, {}, r"^ecg \[1000, 12\] is \[samples, leads\]: give \[leads, samples\], ecg.T$"),
    "turned batch": (np.stack([ecg().T] * 2), {}, r"give \[leads, samples\], ecg.transpose\(0, 2, 1\)$"),
    "turned in a list": ([ecg(), ecg().T], {}, r"^ecg\[1\] \[1000, 12\] is \[samples, leads\]"),
    "fewer leads": (ecg()[:8], {}, r"^leads: ecg \[8, 1000\] has 8 leads for the 12 leads of the encoder: leads="),
    "fewer names": (ecg(), {"leads": ["I", "II"]}, r"^leads: ecg \[12, 1000\] has 12 leads for 2 names"),
    "a text of leads": (ecg(), {"leads": "I,II"}, "^leads='I,II' must be a list of names"),
    "a set of leads": (ecg(), {"leads": set(LEADS)}, "^leads=.* must be a list of names"),
    "leads as a generator": (ecg(), {"leads": (lead for lead in LEADS)}, "^leads=.* must be a list of names"),
    "a number of leads": (ecg(), {"leads": 12}, "^leads=12 must be a list of names"),
    "a meta tensor": (torch.empty(12, 1000, device="meta"), {}, "^ecg is a tensor of torch.float32, .* on meta"),
    "a sparse tensor": (torch.ones(12, 1000).to_sparse(), {}, "^ecg is a tensor of .*sparse_coo"),
    "masked": (np.ma.masked_array(ecg(), ecg() > 0.3), {}, "values that are not finite in lead I"),
    "no device": (ecg(), {"device": "meta"}, "^device='meta' cannot be used here"),
    "an empty path": ("", {"rate": None}, "^ecg='' is not the path of a recording"),
    "a path with a zero": ("a\0b", {"rate": None}, "is not the path of a recording"),
    "a long path": ("x" * 5000, {"rate": None}, "is not the path of a recording"),
    "a folder": (".", {"rate": None}, "^ecg='.' is not the path of a recording"),
    "twice": (ecg()[:2], {"leads": ["II", "lead ii"]}, "^leads=.*: II occurs twice"),
    "unknown leads": (ecg()[:2], {"leads": ["A", "B"]}, "^leads=.*none of them is a lead of the encoder"),
    "no rate": (ecg(), {"rate": None}, "^rate is not given"),
    "a rate of text": (ecg(), {"rate": "500"}, "^rate='500' must be"),
    "a low rate": (ecg(), {"rate": 0}, "^rate=0 must be a sampling rate of 50 to 20000 Hz"),
    "nan as rate": (ecg(), {"rate": float("nan")}, "^rate=nan must be"),
    "units": (ecg(), {"units": "mmHg"}, "^units='mmHg' must be mV, uV, nV, V"),
    "negative units": (ecg(), {"units": -1}, "^units=-1 must be"),
    "pool": (ecg(), {"pool": "max"}, "^pool='max' is unknown"),
    "batch": (ecg(), {"batch": 0}, "^batch=0 must be"),
    "nan": (ecg(), {"nan": "zero"}, "^nan='zero' is unknown"),
    "device": (ecg(), {"device": "gpu"}, "^device='gpu' cannot be used here"),
    "source": (ecg(), {"source": {"trim": True}}, "^source= is for files"),
    "source of text": ("a.npy", {"source": "trim"}, "^source='trim' must be a mapping"),
    "source with the rate": ("a.npy", {"source": {"rate": 500}}, "^source: 'rate' is an argument of embed: give rate="),
    "a path": ("no/such/record", {"rate": None}, "^ecg=no/such/record is neither a WFDB record"),
    "a file": ("no/such/file.csv", {}, "^ecg=no/such/file.csv does not exist"),
}


@pytest.mark.parametrize(("given", "keys", "said"), WRONG.values(), ids=WRONG)
def test_wrong_use_is_a_value_error_that_names_the_argument(encoder, given, keys, said):
    with pytest.raises(ValueError, match=said) as caught:
        encoder.embed(given, **{"rate": 100, **keys})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [np.int32(2), 10**30])
def test_any_whole_number_is_a_batch(encoder, batch):
    x = np.stack([ecg(seed=seed) for seed in range(3)])
    assert np.allclose(quiet(encoder, x, rate=100, batch=batch), quiet(encoder, x, rate=100), atol=1e-6)


def test_it_leaves_the_modes_as_they_were_and_no_gradients(encoder):
    network = small_encoder("xresnet1d101").train()
    network.backbone.stem.eval()
    before = [module.training for module in network.modules()]
    x = torch.from_numpy(ecg())
    found = network.embed(x, rate=100)
    assert not found.requires_grad
    assert [module.training for module in network.modules()] == before
    torch.nn.Linear(network.dim, 1)(found).sum().backward()


def test_progress_is_a_line_on_the_terminal(encoder, capsys):
    quiet(encoder, ecg(30), rate=100, batch=2, progress=True)
    assert capsys.readouterr().err == "\rembedded 2 of 3 windows\rembedded 3 of 3 windows\n"


# ---- files ----


def test_files_are_read_as_a_build_reads_them(encoder, tmp_path):
    digital = beats(0)
    write_record(tmp_path, "a", digital)
    np.savetxt(tmp_path / "b.csv", digital, "%d", ",", header=",".join(LEADS))
    np.save(tmp_path / "c.npy", np.stack([digital.T, digital.T[::-1]]))
    expected = quiet(encoder, digital.T, rate=100, units="uV")
    for path in (tmp_path / "a", str(tmp_path / "a.hea"), tmp_path / "a.dat"):
        np.testing.assert_allclose(quiet(encoder, path), expected, atol=1e-6)
    array = {"rate": 100, "units": "uV"}
    np.testing.assert_allclose(quiet(encoder, tmp_path / "b.csv", **array), expected, atol=1e-6)
    found = quiet(encoder, f"{tmp_path}/c.npy#1", leads=LEADS[::-1], **array)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.save(tmp_path / "d.npy", digital)
    with pytest.raises(UserError, match=r"d.npy: an array whose shape .*source.array.leads_last"):
        encoder.embed(tmp_path / "d.npy", **array)
    found = quiet(encoder, [tmp_path / "d.npy", tmp_path / "b.csv"], source={"leads_last": True}, **array)
    np.testing.assert_allclose(found, [expected, expected], atol=1e-6)
    with pytest.raises(UserError, match=r"^source: 'lead_last' is unknown; did you mean 'leads_last'"):
        encoder.embed(tmp_path / "d.npy", source={"lead_last": True}, **array)
    with pytest.raises(UserError, match=r"^source: .*'leads_last' must be true or false, not 'yes'"):
        encoder.embed(tmp_path / "d.npy", source={"leads_last": "yes"}, **array)
    with pytest.raises(UserError, match=r"^units='mmHg' must be"):
        encoder.embed(tmp_path / "d.npy", rate=100, units="mmHg")
    with pytest.raises(UserError, match=r"^rate is not given: .* of the array in .*b.csv"):
        encoder.embed(tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"^rate= has no effect: .*a states rate"):
        encoder.embed(tmp_path / "a", rate=100)
    (tmp_path / "a.dat").write_bytes(b"")
    with pytest.raises(UserError, match=r"^ecg=.*a: the signal file is damaged"):
        encoder.embed(tmp_path / "a")


def test_a_lead_that_a_file_has_twice_is_said_and_another_signal_may_be(encoder, tmp_path):
    write_record(tmp_path, "a", beats(0))
    header = tmp_path / "a.hea"
    text = header.read_text()
    header.write_text(text.replace(" V6\n", " lead v5\n"))
    with pytest.raises(UserError, match=r"^ecg=.*a: lead V5 occurs twice, in .*, lead v5"):
        encoder.embed(tmp_path / "a")
    header.write_text(text.replace(" V6\n", " ABP\n").replace(" V5\n", " ABP\n"))
    with pytest.warns(UserWarning, match="^missing leads are filled with zeros: V5, V6$"):
        found = encoder.embed(tmp_path / "a")
    names = ["ABP" if lead in ("V5", "V6") else lead for lead in LEADS]
    with pytest.warns(UserWarning, match=r"missing leads .*: V5, V6; signals that are no known lead are ignored: ABP$"):
        given = encoder.embed(beats(0).T, rate=100, units="uV", leads=names)
    np.testing.assert_allclose(given, found, atol=1e-6)


def test_a_gap_in_a_record_is_a_value_that_is_not_finite(encoder, tmp_path):
    digital = beats(0)
    digital[300:320, 4] = -32768
    write_record(tmp_path, "a", digital)
    with pytest.raises(UserError, match=r"^ecg has 20 values that are not finite in lead I, from 3.000 to 3.190 s"):
        encoder.embed(tmp_path / "a")
    with pytest.warns(UserWarning, match="interpolated"):
        encoder.embed(tmp_path / "a", nan="fill")


def test_a_long_record_is_read_in_pieces(encoder, tmp_path, monkeypatch):
    write_record(tmp_path, "a", beats(0, 3000))
    whole = quiet(encoder, tmp_path / "a", pool=None)
    monkeypatch.setattr("sharding.sources.wfdb.MAX_READ", 12 * 700)
    np.testing.assert_array_equal(quiet(encoder, tmp_path / "a", pool=None), whole)


def test_reading_files_without_the_extra_is_one_line(encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "sharding.recording", None)
    with pytest.raises(ValueError, match=r"ecg='a' is a path, and reading files needs: pip install 'umbra\[shard\]'"):
        encoder.embed("a")
