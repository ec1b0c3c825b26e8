"""`python -m benchmarks.gpu`: in small on the CPU, and what it says where it cannot measure."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu
from tests.support.launch import ROOT, environment
from umbra.errors import UserError


def bench(tmp_path, seconds=60.0):
    return gpu.Bench(gpu.GpuConfig(device="cpu"), gpu.CPU, dict(os.environ), tmp_path, time.monotonic() + seconds)


def test_a_part_that_does_not_end_is_ended_and_said(tmp_path):
    code = "import time; print('begun', flush=True); time.sleep(60)"
    output, wrong = bench(tmp_path, 4).run(["-c", code], 0.5)
    assert (output, wrong) == ("begun\n", "no end within 2 s")
    assert bench(tmp_path).run(["-c", "raise SystemExit(3)"]) == ("", "exit code 3")
    assert bench(tmp_path).run(["-c", "print('{\"a\": 1}'); print('more')"])[1] == ""


def test_figures_are_of_the_last_line_that_has_some():
    assert gpu._last_json('x\n{"a": 1}\n{"a": 2}\nTraceback {no}\n{broken}\n') == {"a": 2}
    assert gpu._last_json("nothing") == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_what_to_do():
    with pytest.raises(UserError, match="no GPU here; device=cpu does the same in small"):
        gpu.GpuConfig().check()
    with pytest.raises(UserError, match="parts: speed is unknown; use tests, pretrain, step, paper"):
        gpu.GpuConfig(device="cpu", parts=["speed"]).check()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_it_works_in_small_on_a_cpu():
    known = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", "42d8aac"], capture_output=True).returncode == 0
    parts = "[pretrain,step]" if known else "[pretrain]"
    words = ["-m", "benchmarks.gpu", "device=cpu", "minutes=8", f"parts={parts}"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["device"] == "cpu"
    assert found["pretrain"]["samples_per_s"] > 0
    assert 0 <= found["pretrain"]["data_wait"] <= 1
    if known:
        assert found["step"]["resnet18 4 x 250 speedup"] > 0
        assert {"resnet18 2 x 250 ms", "resnet18 4 x 250 memory"} <= set(found["step"])
