"""The pipeline and the study's array under a real Slurm of two nodes on this machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.slurm_cluster import Cluster, why_not
from tests.support.slurm_jobs import ROOT, SMALL, committed, log_of, python, steps_of, submit, variables_of, wait_until

PIPELINE, STUDY = ROOT / "slurm" / "pipeline.sh", ROOT / "slurm" / "study.sbatch"
STUDY_YAML = """\
name: tiny
shard: {config: ptbxl, overrides: [rate=100, seconds=10]}
folds: 3
rotations: [0]
methods: [none, random]
reference: none
tasks: [sex]
fractions: [1.0]
processes: 1
bootstrap: 20
transfer: [bootstrap=10, probe.head=ridge]
"""
# Python of an environment in which one command of the first life of array task 1 fails.
FAILS_ONCE = """\
#!/bin/bash
if [[ $* == *"sharding build"* && ${{SLURM_ARRAY_TASK_ID:-}} == 1 && ${{SLURM_RESTART_COUNT:-0}} == 0 ]]; then
    echo "no disk here"
    exit 1
fi
exec {python} "$@"
"""
# A study that saves when it is told to end, in its first life.
STUB = """\
import os, pathlib, signal, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
place = pathlib.Path(words["output"]) / f"life-{life}"
place.mkdir(parents=True)
def stop(*_):
    if life == 0:
        (place / "COMMITTED").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", words["part"], words["parts"], flush=True)
time.sleep(60 if words["stub"] == "wait" else 0)
sys.exit(int(words["stub"]))
"""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.full,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Synthetic records in folds, with a table as PTB-XL's."""
    folder = tmp_path / "recordings"
    python("-m", "sharding", "synth", f"output={folder}", "patients=36", "rate=100")
    rows = ["record,patient_id,age,sex,scp_codes,strat_fold"]
    for path in sorted(folder.rglob("*.hea")):
        patient = int(path.stem[1:6])
        rows.append(
            f"{path.relative_to(folder).with_suffix('')},{patient},50,{patient // 3 % 2},NORM,{patient % 3 + 1}"
        )
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The Python environment, with a fault."""
    script = tmp_path / "environment" / "bin" / "python"
    script.parent.mkdir(parents=True)
    script.write_text(FAILS_ONCE.format(python=sys.executable))
    script.chmod(0o755)
    return script.parent.parent


def test_a_pipeline_of_which_a_task_fails_once_and_the_run_is_queued_again(
    slurm: Cluster, recordings: Path, environment: Path, tmp_path: Path
) -> None:
    out, study = tmp_path / "out", tmp_path / "study.yaml"
    narrow = SMALL.split()
    study.write_text(STUDY_YAML + f"pretrain: [steps=2, {', '.join(narrow)}]\n")
    shard = [str(ROOT / "configs/shard/ptbxl.yaml"), f"input={recordings}", "rate=100", "seconds=10"]
    pretrain = [str(ROOT / "configs/pretrain/adversarial.yaml"), "steps=70", *narrow]
    flags = ["--time=10", "--cpus-per-task=1"]
    words = ["shard", "--array=0-1", *flags, *shard, "samples_per_shard=8"]
    words += ["pretrain", "--time=10", "--nodes=1", *pretrain, "export", *flags]
    words += ["study", "--array=0-1", *flags, str(study), f"data={recordings}"]
    variables = variables_of() | {"UMBRA_VENV": str(environment)}
    said = slurm.run(str(PIPELINE), str(out), *words, cwd=tmp_path, **variables)
    jobs = dict(re.findall(r"(\w+): job (\d+)", said))
    assert list(jobs) == ["shard", "pretrain", "export", "study"]
    run = out / "run"
    wait_until(lambda: steps_of(run) != [], 240, tmp_path, jobs["pretrain"])
    assert sorted(row["Restarts"] for row in slurm.fields(jobs["shard"])) == ["0", "1"]
    assert "no disk here" in log_of(tmp_path, jobs["shard"])
    slurm.run("scancel", "--signal=USR1", jobs["pretrain"])
    for stage in ("pretrain", "export", "study"):
        rows = slurm.wait(jobs[stage], 240)
        assert {row["JobState"] for row in rows} == {"COMPLETED"}, log_of(tmp_path, jobs[stage])
        assert all(row["Restarts"] == str(int(stage == "pretrain")) for row in rows)
    assert steps_of(run) == list(range(1, 71))
    assert len(committed(run)) == 2, "the step at which it was told to save, and the last"
    assert (run / "encoder" / "config.json").is_file()
    results = json.loads((out / "study" / "results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["none", "random"]
    logs = log_of(tmp_path, jobs["study"])
    assert "part 0 of 2" in logs
    assert "part 1 of 2" in logs
    steps = [json.loads(line)["step"] for line in (out / "study" / "steps.jsonl").read_text().splitlines()]
    assert sorted(steps) == sorted(set(steps)), "no step was done twice"


def test_stages_after_one_that_fails_are_cancelled(slurm: Cluster, tmp_path: Path) -> None:
    """There is no run: the export fails, and the study does not begin."""
    words = ["export", "--time=10", "study", "--time=10", "configs/study/none.yaml", "data=none"]
    said = slurm.run(str(PIPELINE), str(tmp_path / "out"), *words, cwd=tmp_path, **variables_of())
    export, study = re.findall(r"job (\d+)", said)[:2]
    assert {row["ExitCode"] for row in slurm.wait(export, 90)} == {"2:0"}
    assert "has not finished (its status is none)" in log_of(tmp_path, export)
    assert {row["JobState"] for row in slurm.wait(study, 90)} == {"CANCELLED"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shard", "x.yaml"], "usage: "),
        (["OUT"], "name a stage"),
        (["OUT", "x.yaml", "shard"], "x.yaml stands before the first stage"),
        (["OUT", "study", "x.yaml", "shard"], "the stages come in this order"),
        (["OUT", "pretrain", "x.yaml", "run=mine"], "pretrain: the pipeline sets run itself"),
        (
            ["OUT", "shard", "--begin=now+99", "x.yaml", "pretrain", "x.yaml", "data.path.other=DIR"],
            "pretrain: the pipeline sets data.path itself: leave data.path.other out",
        ),
        (
            ["OUT", "shard", "--begin=now+99", "x.yaml", "export", "--partition=none"],
            "the stage export cannot be submitted",
        ),
    ],
)
def test_a_pipeline_that_cannot_be_leaves_no_job(slurm: Cluster, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(subprocess.CalledProcessError, match=re.escape(said)):
        slurm.run(str(PIPELINE), *words, cwd=tmp_path, **variables_of())
    assert slurm.run("squeue", "-h") == ""


@pytest.fixture
def stubbed(tmp_path: Path) -> Path:
    """A repository whose study does what it is told."""
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").touch()
    (tmp_path / "trainer" / "study.py").write_text(STUB)
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    return tmp_path


def test_a_warned_task_of_a_study_is_queued_again_as_long_as_it_gets_further(slurm: Cluster, stubbed: Path) -> None:
    """The first life saves when it is told to end, the second gets no further."""
    job = submit(slurm, stubbed, "--array=3", str(STUDY), "output=out", "stub=wait", home=stubbed)
    for life in range(2):
        wait_until(lambda life=life: log_of(stubbed, job).count("ready 0 1") > life, 60, stubbed, job)
        slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_3")
    (row,) = slurm.wait(job, 90)
    assert (row["JobState"], row["ExitCode"], row["Restarts"]) == ("FAILED", "2:0", "1"), log_of(stubbed, job)
    assert "is no further than before: not requeued" in log_of(stubbed, job)


def test_a_task_of_a_study_that_fails_is_queued_once_more(slurm: Cluster, stubbed: Path) -> None:
    job = submit(slurm, stubbed, str(STUDY), "output=out", "stub=7", home=stubbed)
    (row,) = slurm.wait(job, 120)
    assert (row["JobState"], row["ExitCode"], row["Restarts"]) == ("FAILED", "7:0", "1"), log_of(stubbed, job)
    assert log_of(stubbed, job).count("ready 0 1") == 2
