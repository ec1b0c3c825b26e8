"""The commands of the README as they stand there, on a smaller scale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.launch import ROOT, free_port
from trainer.observe.metrics import read_metrics
from trainer.run import checkpoint

README = (ROOT / "README.md").read_text()
SMALLER = {"patients=1000": "patients=60", "epochs=80": "epochs=2", "batch.global=64": "batch.global=16"}
TINY = (
    "steps=2 batch.global=8 encoder.args.width=8 encoder.args.embedding=16 projector.hidden=16 projector.out=8 "
    "masker.width=8 log.every=1 log.figure_every=0 wandb.mode=disabled"
)
TESTED = {  # the sections with commands: each has a test below
    "Two commands", "The same steps as plain commands", "Your own recordings", "Pre-training",
}  # fmt: skip


def shell(script: str, seconds: float = 280.0, **variables: str) -> str:
    """Runs a script as typed into a shell at the repository, with this interpreter's commands first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def blocks(title: str) -> list[str]:
    """The blocks of indented lines in the section of that title."""
    section = README.partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^    .*\n)+", section, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in found]


def replaced(text: str, changes: dict[str, object]) -> str:
    for old, new in changes.items():
        assert old in text, f"{old} is not in {text}"
        text = text.replace(old, str(new))
    return text


def python_block(title: str) -> str:
    section = README.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_each_section_with_commands_has_a_test():
    titles = re.findall(r"^## (.*)$", README, re.M)
    assert {title for title in titles if blocks(title)} == TESTED


def test_make_knows_the_two_commands_and_the_knobs():
    (block,) = blocks("Two commands")
    for line in block.splitlines():
        subprocess.run(["make", "-n", *line.partition("#")[0].split()[1:]], cwd=ROOT, check=True, capture_output=True)
    makefile = (ROOT / "Makefile").read_text()
    section = README.partition("## Two commands\n")[2].partition("\n## ")[0]
    knobs = re.findall(r"`([A-Z]+)`", section)
    assert len(knobs) > 6
    assert [knob for knob in knobs if not re.search(rf"^{knob} \?=", makefile, re.M)] == []
    assert re.search(r"^PATIENTS \?= 1000$", makefile, re.M)
    assert re.search(r"^EPOCHS \?= 80$", makefile, re.M)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_plain_commands_and_the_encoder_in_a_notebook(tmp_path):
    (script,) = blocks("The same steps as plain commands")
    script = replaced(script, {"work/": f"{tmp_path}/", "source .venv/bin/activate\n": "", **SMALLER})
    table = shell(script)
    assert len(re.findall(r"^rhythm +100% +0\.\d{3} \(", table, re.MULTILINE)) == 2
    assert len(re.findall(r"^rhythm +AUROC [+-]0\.\d{3} \(", table, re.MULTILINE)) == 1
    python = python_block("Use an encoder").replace("demo/run/encoder", f"{tmp_path}/run/encoder")
    subprocess.run([sys.executable, "-c", f"{python}\nassert features.shape == (3, 128)"], check=True, timeout=120)


@pytest.mark.full
@pytest.mark.timeout(300)
def test_own_recordings_are_built_and_joined(tmp_path):
    synth = "python -m sharding synth rate=100 patients=20"
    shell(f"{synth} output={tmp_path}/a seed=1 && {synth} output={tmp_path}/b seed=2")
    build, join = blocks("Your own recordings")
    told = shell(replaced(build, {"RECORDINGS": tmp_path / "a", "SHARDS": tmp_path}))
    assert "would write" in told
    assert "20 windows of 20 patients" in told
    assert "as in the manifest" in told
    assert "index.html" in told
    rival = f"python -m sharding build configs/shard/wfdb.yaml input={tmp_path}/b output={tmp_path}/ptbxl"
    shell(f"{rival} rate=100 seconds=10 source.name=other")
    assert "40 windows of 40 patients" in shell(replaced(join, {"SHARDS": tmp_path}))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    shell(
        f"python -m sharding synth rate=100 patients=30 output={folder}/r && python -m sharding build "
        f"configs/shard/wfdb.yaml input={folder}/r output={folder}/mine rate=100 seconds=10"
    )
    return folder


def pretraining(word: str, shards: Path, runs: Path) -> str:
    """The block of the section that has this word, with a small run."""
    (block,) = (block for block in blocks("Pre-training") if word in block)
    block = replaced(block, {"data.path=SHARDS": f"data.path={shards}", "runs/": f"{runs}/"})
    return f"{block.strip()} {TINY}"


def finished(run: Path) -> bool:
    return len(read_metrics(run / "metrics.jsonl")) == 2 and 2 in checkpoint.committed(run)


@pytest.mark.full
def test_one_machine(shards, tmp_path):
    command = replaced(pretraining("--num_gpus 8", shards, tmp_path), {"--num_gpus 8": "--num_gpus 2"})
    shell(command.replace("deepspeed ", f"deepspeed --master_port {free_port()} "))
    assert finished(tmp_path / "one")


@pytest.mark.full
def test_torchrun_on_two_nodes(shards, tmp_path):
    """Both nodes are this machine, with a process each."""
    port = free_port()
    node = {"nproc_per_node=8": "nproc_per_node=1", "NODE0": "127.0.0.1", "29500": port}
    first = replaced(pretraining("torchrun", shards, tmp_path), node)
    second = replaced(first, {"--node_rank=0": "--node_rank=1"})
    shell(f"{second} > {tmp_path}/second.log 2>&1 &\n{first}\nwait $!")
    assert finished(tmp_path / "torchrun")
    assert "on 2 x" not in (tmp_path / "second.log").read_text()  # only the main process says so


PDSH = r"""#!/bin/bash
# What pdsh does, on this machine: the last word once for each host of -w, with the host's number for %n.
while [ "$1" != -w ]; do shift; done
hosts=${2//,/ } command=${*:3} n=0
for host in $hosts; do bash -c "${command//%n/$n}" & n=$((n + 1)); done
wait
"""


@pytest.mark.full
def test_a_hostfile_of_two_nodes(shards, tmp_path):
    """pdsh and ssh are stand-ins, which run on this machine; the launcher is the real one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("pdsh", PDSH), ("ssh", "#!/bin/sh\necho 127.0.0.1\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    script = replaced(
        pretraining("--hostfile", shards, tmp_path),
        {"slots=8": "slots=1", "> hosts": f"> {tmp_path}/hosts", "--hostfile hosts": f"--hostfile {tmp_path}/hosts"},
    )
    script = script.replace("--hostfile", f"--master_port {free_port()} --hostfile")
    told = shell(f"PATH={tools}:$PATH\n{script}")
    assert "step 0 to 2 on 2 x" in told
    assert finished(tmp_path / "hostfile")


@pytest.mark.full
def test_a_hostfile_without_ssh(shards, tmp_path):
    """The command of docs/clusters.md, for both nodes on this machine."""
    (line,) = re.findall(r"^    (deepspeed .*--no_ssh .*)$", (ROOT / "docs" / "clusters.md").read_text(), re.M)
    (tmp_path / "nodes").write_text("NODE0 slots=1\nNODE1 slots=1\n")
    changes = {"--hostfile hosts": f"--hostfile {tmp_path}/nodes", "SHARDS": shards, "runs/": f"{tmp_path}/"}
    first = replaced(line, {**changes, "=NODE0": "=127.0.0.1", "29500": free_port()}) + f" {TINY}"
    second = replaced(first, {"--node_rank=0": "--node_rank=1"})
    assert "step 0 to 2 on 2 x" in shell(f"{second} > /dev/null 2>&1 &\n{first}\nwait $!")
    assert finished(tmp_path / "hostfile")


@pytest.mark.full
def test_every_part_says_how_it_is_called():
    docs = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    parts = set(re.findall(r"python -m ((?:sharding|trainer)[\w.]*)", " ".join(docs)))
    assert {"sharding", "trainer.export", "trainer.transfer", "trainer.study", "trainer.data.audit"} <= parts
    for part in sorted(parts - {"trainer.data.audit", "trainer.figures"}):
        told = shell(f"python -m {part} --help", 60)
        assert f"python -m {part}" in told
        assert re.search(r"\w=\w", told), part
    assert "trainer/pretrain.py CONFIG.yaml data.path=DIR" in shell("python trainer/pretrain.py --help", 60)
    names = shell("python -m benchmarks", 60)
    assert all(f"benchmarks.{path.stem}" in names for path in (ROOT / "benchmarks").glob("[a-z]*.py"))


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "shard").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_set_is_in_the_readme(config):
    assert f"`{config.stem}`" in README
