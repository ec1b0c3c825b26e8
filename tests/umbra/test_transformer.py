"""`umbra.EncoderTransformer`: scikit-learn's own checks, and that its features are those of the encoder."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from tests.support.handmade import SAMPLES, ecg, make_run
from trainer.export import export
from umbra import Encoder, EncoderTransformer, load_encoder
from umbra.encoders.config import EncoderConfig
from umbra.errors import UserError
from umbra.hub import initialise

# One lead and windows of one sample: any columns of scikit-learn's checks are an ECG.
TINY = EncoderConfig(
    architecture={"name": "resnet18", "args": {"width": 8, "groups": 2, "embedding": 4}},
    dim=4,
    rate=50.0,
    leads=["I"],
    samples=1,
    scaling={"mode": "fixed", "mean_mv": [0.0], "std_mv": [1.0]},
)


@pytest.mark.filterwarnings("ignore:.*(implausible|padded|do not fill)")
def test_scikit_learns_own_checks(tmp_path):
    initialise(TINY, seed=0).save_pretrained(tmp_path)
    results = check_estimator(EncoderTransformer(str(tmp_path), rate=50.0), on_skip=None, on_fail=None)
    assert {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")} == {}
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= {"check_array_api_input"}  # needs array_api_compat
    assert len(results) > 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return export(make_run(tmp_path_factory.mktemp("made") / "run"))


@pytest.fixture(scope="module")
def ecgs():
    """mV [24, 12, SAMPLES] of two classes in turn, and the classes."""
    rng = np.random.default_rng(0)
    kinds = ["SR", "AFIB"] * 12
    return np.stack([ecg(kind, rng) for kind in kinds]) / 1000, np.array(kinds)


def test_its_features_are_the_encoders_from_three_axes_or_two(directory, ecgs):
    x, _ = ecgs
    with torch.no_grad():
        expected = load_encoder(directory)(torch.from_numpy(x).float()).numpy()
    found = EncoderTransformer(directory).fit_transform(x)
    assert (found.shape, found.dtype) == ((24, 64), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    flat = EncoderTransformer(str(directory), batch=5).fit(x.reshape(24, -1))
    np.testing.assert_allclose(flat.transform(x), expected, rtol=1e-4, atol=1e-5)


def test_rate_leads_and_units_of_the_ecgs_are_passed_on(directory, ecgs):
    x, _ = ecgs
    names = ["i", "II", "III", "AVR", "aVL", "avf", "v1", "V2", "V3", "V4", "V5", "V6"]
    order = np.random.default_rng(1).permutation(12)
    there = EncoderTransformer(directory, rate=200, leads=[names[k] for k in order], units="uV")
    given = np.repeat(x, 2, axis=2)[:, order] * 1000
    expected = load_encoder(directory).embed(given, rate=200, leads=[names[k] for k in order], units="uV")
    np.testing.assert_array_equal(there.fit(given).transform(given), expected)
    assert not np.allclose(expected, EncoderTransformer(directory).fit_transform(x), atol=1e-3)


def test_it_is_a_step_of_pipelines_searches_and_tables(directory, ecgs):
    x, y = ecgs
    pipeline = make_pipeline(EncoderTransformer(directory), StandardScaler(), LogisticRegression())
    assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.9
    search = GridSearchCV(pipeline, {"encodertransformer__batch": [3, 64]}, cv=2).fit(x.reshape(24, -1), y)
    assert search.best_score_ > 0.9
    table = EncoderTransformer(directory).set_output(transform="pandas").fit_transform(x)
    assert list(table.columns) == [f"encodertransformer{k}" for k in range(64)]


def test_cloned_pickled_and_away_from_its_directory(directory, ecgs, tmp_path):
    x, _ = ecgs
    load_encoder(directory).save_pretrained(tmp_path / "moved")
    fitted = EncoderTransformer(tmp_path / "moved", batch=7).fit(x)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "encoder_")
    text = pickle.dumps(fitted)
    for path in (tmp_path / "moved").iterdir():
        path.unlink()
    np.testing.assert_array_equal(pickle.loads(text).transform(x), fitted.transform(x))


@pytest.mark.parametrize(
    ("change", "shape", "said"),
    [
        ({}, (3, 8, SAMPLES), r"X has shape \[3, 8, 256\], but there are 12 leads: give \[n, leads, samples\]"),
        ({}, (3, SAMPLES), "X has 256 columns, which are no whole number of samples of 12 leads"),
        ({"leads": ["I"]}, (3, 12, SAMPLES), "but there are 1 leads"),
        ({"leads": ["I", "i"]}, (3, 2, SAMPLES), "leads"),
        ({"rate": -1}, (3, 12, SAMPLES), "rate"),
        ({"units": "furlongs"}, (3, 12, SAMPLES), "units"),
        ({"batch": 0}, (3, 12, SAMPLES), "batch"),
        ({"device": "gpu"}, (3, 12, SAMPLES), "device"),
        ({"encoder": ""}, (3, 12, SAMPLES), "encoder='': give an encoder directory, a hub id or an umbra.Encoder"),
        ({"encoder": None}, (3, 12, SAMPLES), "encoder=None: give an encoder directory"),
        ({"leads": "II"}, (3, 12, SAMPLES), "leads='II' is no list of names"),
        ({}, (1, 3, 12, SAMPLES), r"X has shape \[1, 3, 12, 256\], but there are 12 leads"),
        ({}, (0, 12, SAMPLES), r"Found array with 0 sample\(s\)"),
        ({}, (3, 12, 500), r"rate is not set: the ECGs have 500 samples, the encoder takes 256 at 100 Hz; give rate="),
    ],
)
def test_wrong_use_is_a_value_error_that_names_it(change, shape, said, directory):
    x = np.random.default_rng(0).normal(size=shape)
    with pytest.raises(ValueError, match=said):
        EncoderTransformer(**({"encoder": directory} | change)).fit(x)


def test_lists_of_ecgs_are_one_array_or_refused(directory, ecgs):
    x, _ = ecgs
    fitted = EncoderTransformer(directory).fit(x.tolist())
    np.testing.assert_array_equal(fitted.transform(list(x)), fitted.transform(x))
    with pytest.raises(UserError, match=r"X is a list of ECGs of different sizes: give .*, or call encoder.embed"):
        fitted.transform([x[0], x[1][:, :100]])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_tensors_are_taken_whatever_they_carry(kind, directory, ecgs):
    x = torch.from_numpy(ecgs[0][:3]).to(kind)
    there = EncoderTransformer(directory)
    expected = there.fit_transform(x.float().numpy())
    for given in (x.requires_grad_(), list(x), x.flatten(1)):
        np.testing.assert_allclose(there.fit_transform(given), expected, atol=1e-5)


@pytest.mark.parametrize("leads", [3, [], "II"])
def test_leads_that_are_no_list_of_names_are_said(leads, directory, ecgs):
    with pytest.raises(UserError, match=r"leads=.* is no list of names"):
        EncoderTransformer(directory, leads=leads).fit(ecgs[0].reshape(24, -1))


def test_ecgs_of_another_size_than_fitted_are_refused(directory, ecgs):
    x, _ = ecgs
    fitted = EncoderTransformer(directory).fit(x)
    with pytest.raises(ValueError, match="expecting 3072 features"):
        fitted.transform(x[:, :, :128])


def test_scikit_learn_is_loaded_for_it_alone_and_named_where_it_is_missing():
    code = """
import sys
from umbra import *
from umbra import Encoder
import umbra
assert "EncoderTransformer" in dir(umbra)
assert "sklearn" not in sys.modules
sys.modules["sklearn"] = None
try:
    umbra.EncoderTransformer
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "EncoderTransformer needs scikit-learn: pip install 'umbra[sklearn]'\n"


def test_an_encoder_object_is_copied(directory, ecgs):
    """What is done to the encoder later does not change a fitted step, and `fit` does not move the user's encoder."""
    x, _ = ecgs
    encoder = load_encoder(directory)
    fitted = EncoderTransformer(encoder).fit(x)
    before = fitted.transform(x)
    with torch.no_grad():
        next(encoder.parameters()).zero_()
    np.testing.assert_array_equal(fitted.transform(x), before)
    assert isinstance(EncoderTransformer(directory).fit(x).encoder_, Encoder)
    with pytest.raises(UserError):
        EncoderTransformer("no/where/at/all").fit(x)
