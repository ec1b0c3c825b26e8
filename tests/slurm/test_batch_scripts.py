"""The batch scripts under a real Slurm of two nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.processes import command_of, process_ids, rank_processes
from tests.support.slurm_cluster import Cluster, why_not
from tests.support.slurm_jobs import ROOT, SMALL, committed, log_of, python, steps_of, submit, wait_until

PRETRAIN, SHARD = ROOT / "slurm" / "pretrain.sbatch", ROOT / "slurm" / "shard.sbatch"
STUB = """\
import json, os, pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:])
run = pathlib.Path(words["run"])
run.mkdir(parents=True, exist_ok=True)
ranks = {key: os.environ[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
(run / f"rank-{ranks['RANK']}.json").write_text(json.dumps({**ranks, "node": os.environ["SLURMD_NODENAME"]}))
(run / "run.json").write_text(json.dumps({"status": words["status"]}))
for step in words.get("save", "").split():
    (run / "checkpoints" / f"step-{step}").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / f"step-{step}" / "COMMITTED").touch()
if "hang" in words:
    (run / "hang.txt").write_text(f"error: {words['hang']}\\n")
time.sleep(float(words.get("sleep", 0)))
sys.exit(int(words.get("code", 0)))
"""

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.full,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings") / "wfdb"
    python("-m", "sharding", "synth", f"output={folder}", "patients=40", "rate=100")
    return folder


@pytest.fixture(scope="module")
def shards(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process builds from the recordings."""
    folder = tmp_path_factory.mktemp("shards") / "one"
    python("-m", "sharding", "build", *build_words(recordings, folder))
    return folder


@pytest.fixture
def stubbed(tmp_path: Path) -> Path:
    """A repository whose trainer only writes down how it was called, and does what it is told."""
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").touch()
    (tmp_path / "trainer" / "pretrain.py").write_text(STUB)
    world = "import sys; nodes = len(sys.argv[2].split(',')); print(int(sys.argv[1]) * nodes, nodes)"
    (tmp_path / "trainer" / "world.py").write_text(world)
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    return tmp_path


def build_words(source: Path, output: Path) -> list[str]:
    return [str(ROOT / "configs/shard/wfdb.yaml"), f"input={source}", f"output={output}", "samples_per_shard=4"]


def pretrain_words(shards: Path, run: Path, steps: int) -> list[str]:
    config = str(ROOT / "configs/pretrain/adversarial.yaml")
    return [config, f"data.path={shards}", f"run={run}", f"steps={steps}", *SMALL.split()]


def test_pretraining_on_two_nodes(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(slurm, tmp_path, "--nodes=2", str(PRETRAIN), *pretrain_words(shards, run, 3))
    (row,) = slurm.wait(job, 180)
    assert row["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert row["NodeList"] == "n[0-1]"
    written = json.loads((run / "run.json").read_text())
    assert (written["status"], written["world"]) == ("finished", 2)
    assert (run / "checkpoints/step-3/COMMITTED").is_file()
    assert steps_of(run) == [1, 2, 3]


def test_a_warned_run_saves_and_queues_itself_again(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    """Two lives: the first is queued again and gone on with, the second is told to save and end."""
    run = tmp_path / "run"
    job = submit(slurm, tmp_path, "--nodes=2", str(PRETRAIN), *pretrain_words(shards, run, 100_000))
    wait_until(lambda: steps_of(run) != [], 180, tmp_path, job)
    slurm.run("scancel", "--signal=USR1", job)
    wait_until(lambda: slurm.fields(job)[0]["Restarts"] == "1", 60, tmp_path, job)
    (saved,) = committed(run)
    assert steps_of(run) == list(range(1, saved + 1))
    wait_until(lambda: len(steps_of(run)) > saved, 180, tmp_path, job)
    slurm.run("scontrol", "update", f"JobId={job}", "Requeue=0")
    slurm.run("scancel", "--signal=USR1", job)
    (row,) = slurm.wait(job, 90)
    log = log_of(tmp_path, job)
    assert (row["JobState"], row["Restarts"]) == ("COMPLETED", "1"), log
    assert log.index("start 1") < log.index(f"newest checkpoint: {saved}\n") < log.index("start 2"), log
    assert f"step {saved} to 100000" in log
    assert committed(run) == [saved, len(steps_of(run))]
    assert steps_of(run) == list(range(1, len(steps_of(run)) + 1))
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"


def test_a_process_for_each_gpu(slurm: Cluster, stubbed: Path) -> None:
    gpus = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-gpu=1"]
    job = submit(slurm, stubbed, *gpus, str(PRETRAIN), "run=run", "status=finished", home=stubbed)
    (row,) = slurm.wait(job, 90)
    assert row["JobState"] == "COMPLETED", log_of(stubbed, job)
    ranks = [json.loads((stubbed / f"run/rank-{rank}.json").read_text()) for rank in range(4)]
    assert [(r["node"], r["LOCAL_RANK"]) for r in ranks] == [("n0", "0"), ("n0", "1"), ("n1", "0"), ("n1", "1")]
    assert {r["WORLD_SIZE"] for r in ranks} == {"4"}
    assert len({(r["MASTER_ADDR"], r["MASTER_PORT"]) for r in ranks}) == 1


def test_tasks_that_nodes_cannot_share_evenly_are_refused(slurm: Cluster, stubbed: Path) -> None:
    job = submit(slurm, stubbed, "--nodes=2", "--ntasks=3", str(PRETRAIN), "run=run", "status=finished", home=stubbed)
    (row,) = slurm.wait(job, 90)
    assert row["ExitCode"] == "2:0", log_of(stubbed, job)
    assert "error: 3 tasks cannot be shared evenly by 2 nodes: submit with --ntasks-per-node=N" in log_of(stubbed, job)


@pytest.mark.parametrize(
    ("words", "variables", "state", "code", "said"),
    [
        (["status=finished"], {}, "COMPLETED", "0:0", "run finished"),
        (["status=running", "code=3"], {}, "FAILED", "3:0", "exit code 3"),
        (["status=finished", "code=2"], {}, "FAILED", "2:0", "exit code 2"),
        (["status=interrupted"], {}, "FAILED", "2:0", "not requeued"),
        (["status=interrupted", "save=4"], {"UMBRA_MAX_REQUEUES": "0"}, "FAILED", "2:0", "UMBRA_MAX_REQUEUES"),
    ],
)
def test_what_is_not_queued_again(
    slurm: Cluster, stubbed: Path, words: list[str], variables: dict[str, str], state: str, code: str, said: str
) -> None:
    job = submit(slurm, stubbed, str(PRETRAIN), "run=run", *words, home=stubbed, **variables)
    (row,) = slurm.wait(job, 90)
    assert (row["JobState"], row["ExitCode"], row["Restarts"]) == (state, code, "0"), log_of(stubbed, job)
    assert said in log_of(stubbed, job)


def test_requeues_end_when_the_run_gets_no_further(slurm: Cluster, stubbed: Path) -> None:
    """The first life saves step 4, the second gets no further."""
    words = ["run=run", "status=interrupted", "save=4"]
    job = submit(slurm, stubbed, str(PRETRAIN), *words, home=stubbed)
    (row,) = slurm.wait(job, 120)
    assert (row["JobState"], row["Restarts"]) == ("FAILED", "1"), log_of(stubbed, job)


def test_a_run_that_hangs_is_queued_again_but_not_twice_without_progress(slurm: Cluster, stubbed: Path) -> None:
    """Lives: saves step 4 and hangs; hangs without progress after one that made some; hangs again. Any status."""
    words = ["run=run", "status=failed", "save=4", "code=75", "hang=rank-1-hangs"]
    job = submit(slurm, stubbed, str(PRETRAIN), *words, home=stubbed)
    (row,) = slurm.wait(job, 150)
    log = log_of(stubbed, job)
    assert (row["JobState"], row["ExitCode"], row["Restarts"]) == ("FAILED", "2:0", "1"), log
    assert log.count("error: rank-1-hangs") == 2, log
    assert "error: it hung twice without a newer checkpoint: not requeued" in log


def test_a_stopped_process_of_a_real_run_has_its_job_queued_again(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    """One of two tasks is stopped: both end, the job begins again from its checkpoint and is told to save and end."""
    run = tmp_path / "run"
    words = [*pretrain_words(shards, run, 100_000), "checkpoint.every=2", "hang.minutes=0.1", "hang.start_minutes=2"]
    job = submit(slurm, tmp_path, "--nodes=2", str(PRETRAIN), *words)
    wait_until(lambda: committed(run) != [], 180, tmp_path, job)
    pid = rank_processes(processes_of(run))[1]
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: slurm.fields(job)[0]["Restarts"] == "1", 120, tmp_path, job)
    log = log_of(tmp_path, job)
    assert "gives no sign of life" in log, log
    saved = committed(run)[-1]
    wait_until(lambda: f"step {saved} to 100000" in log_of(tmp_path, job), 180, tmp_path, job)
    slurm.run("scancel", job)
    slurm.wait(job, 90)
    try:
        wait_until(lambda: processes_of(run) == [], 60, tmp_path, job)
    finally:  # the cluster ends with the tests, and its processes would live on
        for pid in processes_of(run):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(run: Path) -> list[int]:
    return [pid for pid in process_ids() if f"run={run}" in command_of(pid).split()]


def test_a_run_goes_on_with_the_nodes_that_are_left(slurm: Cluster, shards: Path, tmp_path: Path) -> None:
    """Six lanes: three of four processes on two nodes, then one node goes down, and two run on the other."""
    run = tmp_path / "run"
    words = [*pretrain_words(shards, run, 100_000), "batch.global=6", "checkpoint.every=2", "wandb.mode=disabled"]
    job = submit(slurm, tmp_path, "--nodes=1-2", "--gpus-per-node=2", "--cpus-per-gpu=1", str(PRETRAIN), *words)
    try:
        wait_until(lambda: committed(run) != [], 180, tmp_path, job)
        for state in ("DRAIN", "DOWN"):  # a node that is only down would come back at once
            slurm.run("scontrol", "update", "NodeName=n1", f"State={state}", "Reason=gone")
        wait_until(lambda: "to 100000 on 2 x cpu" in log_of(tmp_path, job), 120, tmp_path, job)
        slurm.run("scancel", job)
        slurm.wait(job, 90)
    finally:
        slurm.run("scontrol", "update", "NodeName=n1", "State=RESUME")
    log = log_of(tmp_path, job)
    first, second = log.split(", start 2: ")
    assert "warning: 4 processes cannot share 6 lanes (data.lanes), 3 can: rank 3 is idle\n" in first
    assert "start 1: 3 processes x 1 CPUs on n0,n1, rank 0" in first
    assert "to 100000 on 3 x cpu" in first
    assert second.startswith("2 processes x 1 CPUs on n0, rank 0")
    assert "cannot share" not in second
    saved = int(second.split("newest checkpoint: ")[1].split()[0])
    assert f"step {saved} to 100000 on 2 x cpu" in second


def test_a_cancelled_job_stays_cancelled(slurm: Cluster, stubbed: Path) -> None:
    job = submit(slurm, stubbed, str(PRETRAIN), "run=run", "status=interrupted", "save=4", "sleep=60", home=stubbed)
    wait_until((stubbed / "run" / "checkpoints" / "step-4" / "COMMITTED").exists, 60, stubbed, job)
    slurm.run("scancel", job)
    (row,) = slurm.wait(job, 90)
    time.sleep(2)
    (row,) = slurm.fields(job)
    assert (row["JobState"], row["Restarts"]) == ("CANCELLED", "0")


def test_the_run_directory_must_be_named(slurm: Cluster, stubbed: Path) -> None:
    job = submit(slurm, stubbed, str(PRETRAIN), "status=finished", home=stubbed)
    (row,) = slurm.wait(job, 90)
    assert (row["JobState"], row["ExitCode"]) == ("FAILED", "2:0")
    assert log_of(stubbed, job).startswith("error: set the run directory, run=DIR")


def test_an_array_builds_what_one_process_builds(
    slurm: Cluster, recordings: Path, shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    options = ["--array=0-2", "--cpus-per-task=1"]
    job = submit(slurm, tmp_path, *options, str(SHARD), *build_words(recordings, output))
    rows = slurm.wait(job, 120)
    assert [row["JobState"] for row in rows] == ["COMPLETED"] * 3, log_of(tmp_path, job)
    names = sorted(path.name for path in shards.iterdir() if path.is_file())
    assert "manifest.json" in names
    assert sorted(path.name for path in output.iterdir() if path.is_file()) == names
    assert all((output / name).read_bytes() == (shards / name).read_bytes() for name in names)
    logs = [path.read_text() for path in tmp_path.glob("umbra-shard-*.log")]
    assert len(logs) == 3
    assert sum("windows of 40 patients" in log for log in logs) >= 1


def test_an_array_that_would_leave_out_shards_is_refused(slurm: Cluster, recordings: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    options = ["--array=1-2", "--cpus-per-task=1"]
    job = submit(slurm, tmp_path, *options, str(SHARD), *build_words(recordings, output))
    assert {row["ExitCode"] for row in slurm.wait(job, 90)} == {"2:0"}
    assert "error: the array must be 0 to n-1" in log_of(tmp_path, job)
    assert not os.path.exists(output)
