"""Exports for other runtimes: what they compute, and what is said where one cannot be had."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.handmade import SAMPLES, SMALL, make_run, small_encoder
from trainer import runtimes
from trainer.export import export, main
from umbra.errors import UserError
from umbra.hub import load_encoder


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("samples", [1000, 517, 64])
def test_the_network_that_is_exported_computes_the_same(name, samples):
    encoder, x = small_encoder(name), torch.randn(3, 12, samples)
    with torch.no_grad():
        expected = encoder.backbone(encoder.scaling(x))
        torch.testing.assert_close(runtimes.Portable(encoder)(x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(encoder.backbone(encoder.scaling(x)), expected, rtol=0, atol=0)


def test_pooling_layers_are_replaced_by_equal_ones():
    pools = [nn.AvgPool1d(2, ceil_mode=True, count_include_pad=False)]
    pools += [nn.AvgPool2d((1, 2), ceil_mode=True, count_include_pad=False)]
    free = runtimes._free(nn.Sequential(nn.MaxPool1d(3, 2, 1), nn.Sequential(*pools)))
    replaced = nn.MaxPool1d | nn.AvgPool1d | nn.AvgPool2d
    assert not any(isinstance(module, replaced) for module in free.modules())
    for samples in (64, 63, 2, 1):
        x = torch.randn(2, 5, samples)
        expected = nn.MaxPool1d(3, 2, 1)(x)
        assert torch.equal(free[0](x), expected)
        for given in (free[1][0](x), free[1][1](x), free[1][1](x[:, :, None])[:, :, 0]):
            torch.testing.assert_close(given, pools[0](x))


def test_features_of_other_runtimes_carry_no_gradients():
    encoder = small_encoder("resnet18").requires_grad_()
    assert not runtimes.Portable(encoder)(torch.zeros(1, 12, 1000)).requires_grad
    assert all(weight.requires_grad for weight in encoder.parameters())


@pytest.mark.full
@pytest.mark.parametrize("name", ["resnet18", "vit_s"])
def test_a_graph_takes_any_batch_and_any_length(name):
    encoder = small_encoder(name, seconds=2)
    graph = runtimes.exported(encoder).module()
    for shape in [(1, 12, 200), (5, 12, 99), (2, 12, 431)]:
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(graph(x), encoder.backbone(encoder.scaling(x)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("formats", "said"),
    [
        ("[onx]", "formats: 'onx' is unknown; did you mean 'onnx'?"),
        ("[pt2,torchscript]", "formats: 'torchscript' is unknown; known: onnx, pt2"),
        ("[onnx]", "formats=\\[onnx\\] needs onnxruntime: pip install 'umbra\\[onnx\\]'"),
    ],
)
def test_formats_that_cannot_be_had_are_one_line_before_anything_is_written(formats, said, tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "PACKAGES", ("torch", "onnxruntime"))
    found = runtimes.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else found(name))
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        main([f"run={run}", f"formats={formats}"])
    assert not (run / "encoder").exists()


def test_a_file_that_differs_or_does_not_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(runtimes.RUN, "pt2", "run = lambda x: x.mean((1, 2), keepdims=True)[0]")
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    runtimes.check("pt2", tmp_path / "any", {"x0": x, "y0": np.array([5.5], np.float32)})
    with pytest.raises(UserError, match=r"^encoder.pt2 differs from the encoder by 0.018: leave pt2 out of formats="):
        runtimes.check("pt2", tmp_path / "any", {"x0": x, "y0": np.array([5.6], np.float32)})
    with pytest.raises(UserError, match=r"differs from the encoder by nan"):
        runtimes.check("pt2", tmp_path / "any", {"x0": x, "y0": np.array([np.nan], np.float32)})
    later = {"x1": x, "y1": np.array([np.nan], np.float32)}
    with pytest.raises(UserError, match=r"differs from the encoder by nan"):
        runtimes.check("pt2", tmp_path / "any", {"x0": x, "y0": np.array([5.5], np.float32), **later})
    monkeypatch.setitem(runtimes.RUN, "pt2", "raise SystemError('no\\nluck')")
    with pytest.raises(UserError, match=r"does not run: luck; leave pt2 out"):
        runtimes.check("pt2", tmp_path / "any", {"x0": x, "y0": x})


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SMALL)
def test_every_encoder_runs_in_every_runtime(name, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install umbra[onnx]")
    pytest.importorskip("onnxscript", reason="pip install umbra[onnx]")
    encoder = small_encoder(name)
    runtimes.write(encoder, tmp_path, ["onnx", "pt2"])
    x = torch.randn(7, 12, 1000)
    np.save(tmp_path / "x.npy", x.numpy())
    script = "import numpy, onnxruntime as o; s = o.InferenceSession('encoder.onnx'); "
    script += "numpy.save('y.npy', s.run(['features'], {'ecg': numpy.load('x.npy')})[0]); "
    script += "print(s.get_modelmeta().custom_metadata_map)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'rate': '100'" in done.stdout
    assert "'leads': 'I,II,III,aVR" in done.stdout
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), encoder(x).numpy(), atol=1e-4)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_an_export_holds_the_formats_and_the_next_one_replaces_them(tmp_path):
    run = make_run(tmp_path / "run")
    main([f"run={run}", "formats=[pt2]"])
    extra = {"config.json": ""}
    graph = torch.export.load(run / "encoder" / "encoder.pt2", extra_files=extra).module()
    encoder, x = load_encoder(run / "encoder", check=True), torch.randn(3, 12, SAMPLES)
    torch.testing.assert_close(graph(x), encoder(x), rtol=0, atol=1e-4)
    assert json.loads(extra["config.json"])["dim"] == encoder.dim
    export(run, step="3")
    assert not Path(run / "encoder" / "encoder.pt2").exists()
