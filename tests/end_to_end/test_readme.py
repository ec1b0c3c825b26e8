"""The commands of the README as they stand there, on a smaller scale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SMALLER = {"patients=1000": "patients=60", "epochs=80": "epochs=2", "batch.global=64": "batch.global=16"}


def shell(script: str, seconds: float = 280.0) -> str:
    """Runs a script as typed into a shell at the repository, with this interpreter's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def indented_block(after: str) -> str:
    """The first block of indented lines after a heading."""
    lines = README.partition(after)[2].split("\n")
    first = next(i for i, line in enumerate(lines) if line.startswith("    "))
    block = []
    for line in lines[first:]:
        if not line.startswith("    "):
            break
        block.append(line[4:])
    return "\n".join(block)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_plain_commands_and_the_encoder_in_a_notebook(tmp_path):
    script = indented_block("## The same steps as plain commands").replace("work/", f"{tmp_path}/")
    script = script.replace("source .venv/bin/activate\n", "")
    for large, small in SMALLER.items():
        assert large in script, large
        script = script.replace(large, small)
    table = shell(script)
    assert len(re.findall(r"^rhythm .*0\.\d{3} \(", table, re.MULTILINE)) == 2
    python = re.search(r"## Use an encoder\s+.*?```python\n(.*?)```", README, re.DOTALL)[1]
    python = python.replace("demo/run/encoder", f"{tmp_path}/run/encoder")
    python = f"import torch\necg_mv = torch.zeros(3, 12, 1000)\n{python}\nassert features.shape == (3, 128)"
    subprocess.run([sys.executable, "-c", python], check=True, timeout=120)
    report = shell(f"python -m sharding verify {tmp_path}/shards && python -m sharding report {tmp_path}/shards")
    assert "index.html" in report


@pytest.mark.full
def test_every_part_says_how_it_is_called():
    parts = set(re.findall(r"python -m ((?:sharding|trainer)[\w.]*)", README))
    assert {"sharding", "trainer.export", "trainer.transfer", "trainer.study"} <= parts
    for part in sorted(parts):
        told = shell(f"python -m {part} --help", 60)
        assert f"python -m {part}" in told
        assert re.search(r"\w=\w", told), part
    assert "trainer/pretrain.py CONFIG.yaml data.path=DIR" in shell("python trainer/pretrain.py --help", 60)
    names = shell("python -m benchmarks", 60)
    assert all(f"benchmarks.{path.stem}" in names for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "shard").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_set_is_in_the_readme(config):
    assert f"`{config.stem}`" in README
