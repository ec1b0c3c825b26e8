"""W&B's real client with a server that is down, does not answer, or stops answering: the log of the run is complete."""

import os
import subprocess
import sys

import pytest

from benchmarks.soak.wandb_server import KEY, WandbServer
from tests.support.launch import ROOT
from trainer.observe.metrics import METRICS, read_metrics

pytestmark = [pytest.mark.full, pytest.mark.timeout(200)]
LOG = """
import sys
from trainer.observe import wandb_mirror
from trainer.observe.metrics import Metrics
settings = wandb_mirror.wandb_settings()
wandb_mirror.wandb_settings = lambda: {**settings, "init_timeout": 5.0, "finish_timeout": 5.0}  # not 60 and 120
metrics = Metrics(sys.argv[1], wandb_mirror.WandbConfig(mode="online"), {"steps": 3, "wandb_id": "abc"})
print("# begins", flush=True)
sys.stdin.readline()
for step in (1, 2, 3):
    metrics.log(step, {"loss": 1.0 / step})
metrics.close({})
print("# ends", flush=True)
"""


def logged(folder, variables, change=lambda: None):
    """The output of a process that logs three steps; `change` is done when W&B has begun."""
    with subprocess.Popen(
        [sys.executable, "-c", LOG, str(folder)], env={**os.environ, **variables}, cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            said = ""
            while not said.endswith("# begins\n"):
                line = process.stdout.readline()
                assert line, said
                said += line
            change()
            said += process.communicate("\n", timeout=100)[0]
        finally:
            process.kill()
    assert said.endswith("# ends\n"), said
    assert "Traceback" not in said
    assert [row["step"] for row in read_metrics(folder / METRICS)] == [1, 2, 3]
    return said


def test_a_server_that_answers_has_all_rows(tmp_path):
    with WandbServer().serving() as server:
        said = logged(tmp_path, server.variables)
    assert [row["_step"] for row in server.rows] == [1, 2, 3]
    assert "W&B is switched off" not in said


def test_a_server_that_is_down_is_one_warning(tmp_path):
    said = logged(tmp_path, {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY, "no_proxy": "*"})
    assert said.count("warning: W&B is switched off, the run continues and metrics.jsonl is complete") == 1


def test_a_server_that_does_not_answer_is_one_warning(tmp_path):
    with WandbServer(delay=1000).serving() as server:
        said = logged(tmp_path, server.variables)
    assert said.count("warning: W&B is switched off, the run continues and metrics.jsonl is complete") == 1


def test_a_server_that_stops_answering_in_the_midst_of_a_run_delays_its_end_at_most(tmp_path):
    with WandbServer().serving() as server:
        logged(tmp_path, server.variables, lambda: setattr(server, "delay", 1000))
        assert len(server.rows) < 3
