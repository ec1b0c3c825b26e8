"""Threads: as many as the cores that a process has for itself, and asleep while they wait."""

import math
import os
import subprocess
import sys

import pytest

from trainer.threads import quota, share

SHOW = "import torch; from trainer import threads; threads.settle(); print(torch.get_num_threads())"


@pytest.mark.parametrize(
    ("own", "machine", "limit", "expected"),
    [
        ({0, 1, 2, 3}, [{0, 1, 2, 3}], math.inf, 4),
        ({0, 1, 2, 3}, [{0, 1, 2, 3}] * 2, math.inf, 2),
        ({0, 1}, [{0, 1}, {2, 3}], math.inf, 2),  # bound by the launcher: nothing to divide
        ({0, 1, 2}, [{0, 1, 2}] * 3, math.inf, 1),
        ({0}, [{0}] * 4, math.inf, 1),
        (set(range(64)), [set(range(64))], 4.0, 4),
        (set(range(64)), [set(range(64))] * 2, 5.0, 2),
        ({0, 1}, [{0, 1}], 0.5, 1),
    ],
)
def test_cores_are_divided_among_those_that_may_use_them(own, machine, limit, expected):
    assert share(own, machine, limit) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({}, math.inf),
        ({"cpu.max": "nonsense"}, math.inf),
    ],
)
def test_the_limit_of_a_container(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota(tmp_path) == expected


def output(code: str, **settings: str) -> str:
    env = {name: v for name, v in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))} | settings
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "PASSIVE\n"), ({"OMP_WAIT_POLICY": "active"}, "active\n"), ({"GOMP_SPINCOUNT": "9"}, "None\n")],
)
def test_threads_sleep_unless_the_user_chose_otherwise(settings, expected):
    assert output("import trainer, os; print(os.environ.get('OMP_WAIT_POLICY'))", **settings) == expected


@pytest.mark.parametrize(
    "module", ["pretrain", "transfer", "export", "figures", "study.__main__", "data.audit", "distributed"]
)
def test_the_choice_is_made_before_torch_is_loaded(module):
    """As `torch` would be found: an import hook sees the variable."""
    code = f"""
import os, sys
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Hook())
import trainer.{module}
"""
    assert output(code) in ("PASSIVE\n", "")


def test_omp_num_threads_and_affinity_are_respected():
    one = f"import os; os.sched_setaffinity(0, {{max(os.sched_getaffinity(0))}}); {SHOW}"
    assert output(SHOW, OMP_NUM_THREADS="1") == output(one) == "1\n"
    assert output(SHOW) == f"{max(1, int(min(len(os.sched_getaffinity(0)), quota())))}\n"
    joined = "import torch; from trainer import distributed as d; d.initialise(); print(torch.get_num_threads())"
    assert output(joined, OMP_NUM_THREADS="1").endswith("1\n")
