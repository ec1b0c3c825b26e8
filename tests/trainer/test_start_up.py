"""What `make` and `demo.sh` would call, with stand-ins for the programs: nothing is installed, trained or deleted."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENCODERS = ("run", "random-masks", "random")
MAKE = shutil.which("make")
STUB = """#!/bin/sh
[ "$1" = -c ] || echo "${0##*/} $*" >> "$CALLS"
case "$*" in "$FAILS"*) exit 2 ;; esac
case "$2" in *torch*) echo "${GPUS:-0}" ;; *socket*) echo 29500 ;; esac
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.fixture
def demo(tmp_path):
    """Runs demo.sh with stand-ins; returns the calls that it made."""

    def call(code: int = 0, **settings: str) -> list[str]:
        for name in ("python", "deepspeed"):
            program(tmp_path / "bin", name, STUB)
        (tmp_path / "calls").write_text("")
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "CALLS": str(tmp_path / "calls"), "FAILS": "none", **settings}
        done = subprocess.run(["bash", str(ROOT / "demo.sh")], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        call.said, call.error = done.stdout, done.stderr
        return (tmp_path / "calls").read_text().splitlines()

    return call


def test_the_demo_deletes_nothing_and_asks_for_its_recordings_each_time(demo, tmp_path):
    out = tmp_path / "my out"
    (out / "recordings").mkdir(parents=True)
    (out / "recordings" / "precious.hea").write_text("mine")
    for seed in "01":
        assert f"python -m sharding synth output={out}/recordings patients=1000 seed={seed}" in demo(
            OUT=str(out), SEED=seed
        )
    assert [p.name for p in (out / "recordings").iterdir()] == ["precious.hea"]


def test_the_readme_shows_the_steps_of_the_demo(demo, tmp_path):
    readme = (ROOT / "README.md").read_text().partition("## The same steps as plain commands")[2]
    block = re.search(r"(?:^    .*\n)+", readme, re.MULTILINE)[0].replace("\\\n", " ")
    shown = [set(shlex.split(line)) for line in block.splitlines()[1:]]
    out = tmp_path / "work"
    calls = [call.replace(f"{out}", "work").replace(" seed=0", "") for call in demo(OUT=str(out))]
    made = [set(re.sub(r" --master_port \d+", "", call).split()) for call in calls]
    assert shown[:4] == made[:4]
    for ours, theirs in zip(shown[4:6], (made[6], made[8])):
        assert {w for w in ours if not w.startswith("output=")} <= theirs


def products(out: Path) -> None:
    """What the programs would leave."""
    folders = ("recordings", "shards", "run/encoder", "random-masks/encoder", "index.html")
    probes = [f"transfer/{task}-{encoder}" for task in ("rhythm", "sex") for encoder in ENCODERS]
    for name in (*folders, *probes):
        (out / name).mkdir(parents=True, exist_ok=True)


def step_names(calls: list[str]) -> list[str]:
    return [next(w for w in call.split() if w not in ("python", "-m")) for call in calls]


ALL = ["sharding", "sharding", *["deepspeed", "trainer.export"] * 2, *["trainer.transfer"] * 6, "trainer.demo"]


def test_a_second_demo_repeats_nothing(demo, tmp_path):
    out = tmp_path / "my out"
    products(out)
    compare = [
        "trainer.transfer compare " + " ".join(f"{out}/transfer/{task}-{encoder}/result.json" for encoder in ENCODERS)
        for task in ("rhythm", "sex")
    ]
    assert step_names(demo(OUT=str(out)))[:13] == ALL
    assert [call.removeprefix("python -m ") for call in demo(OUT=str(out))] == compare
    assert step_names(demo(OUT=str(out), EPOCHS="90"))[:11] == ALL[2:]  # what follows from it is made again
    shutil.rmtree(out / "transfer" / "sex-random")
    assert step_names(demo(OUT=str(out), EPOCHS="90"))[:2] == ["trainer.transfer", "trainer.demo"]
    assert step_names(demo(OUT=str(out), EPOCHS="90", SEED="1"))[0] == "sharding"  # which refuses it


def test_a_demo_goes_on_where_its_pre_training_was_stopped(demo, tmp_path):
    products(tmp_path)
    (tmp_path / "run" / "run.json").write_text('{"status": "interrupted"}')
    assert step_names(demo(OUT=str(tmp_path), code=130)) == ALL[:3]
    assert step_names(demo(OUT=str(tmp_path), code=130)) == ALL[2:3]
    (tmp_path / "run" / "run.json").write_text('{"status": "finished"}')
    assert step_names(demo(OUT=str(tmp_path)))[:11] == ALL[2:]


def test_the_demo_ends_with_its_page_and_a_command_for_any_shell(demo, tmp_path):
    products(tmp_path)
    demo(OUT=str(tmp_path))
    *_, line, _, page = demo.said.splitlines()
    assert page == f"{tmp_path}/index.html"
    python, *words = shlex.split(line)
    assert (python, words[0]) == (f"{tmp_path}/bin/python", "-c")
    compile(words[1], "shown", "exec")


@pytest.mark.parametrize(
    ("settings", "processes", "batch"),
    [
        ({}, 2, 64),
        ({"PATIENTS": "60"}, 2, 30),  # 36 of them are for training
        ({"PATIENTS": "129"}, 2, 64),
        ({"GPUS": "6"}, 6, 60),
        ({"GPUS": "3", "PATIENTS": "40"}, 3, 18),
        ({"PATIENTS": "40", "DATA": "/data/ptbxl"}, 2, 64),
    ],
)
def test_the_batch_of_the_demo_fits_its_patients_and_processes(demo, tmp_path, settings, processes, batch):
    calls = [call for call in demo(OUT=str(tmp_path), **settings) if call.startswith("deepspeed")]
    assert len(calls) == 2
    assert all(f"--num_gpus {processes} " in words and f" batch.global={batch} " in words for words in calls)


@pytest.mark.parametrize("settings", [{"PATIENTS": "few"}, {"EPOCHS": "1e2"}, {"SEED": "-1"}, {"PATIENTS": "007"}])
def test_a_knob_of_the_demo_that_is_no_number_is_one_line_before_anything_is_made(demo, tmp_path, settings):
    ((knob, value),) = settings.items()
    assert demo(code=2, OUT=str(tmp_path / "o"), **settings) == []
    assert demo.error == f"error: {knob}={value} must be a whole number\n"
    assert not (tmp_path / "o").exists()


def test_a_demo_with_other_settings_that_is_refused_names_the_knob_to_turn(demo, tmp_path):
    out = tmp_path / "my out"
    products(out)
    demo(OUT=str(out))
    demo(code=2, OUT=str(out), SEED="1", FAILS="-m sharding synth")
    assert demo.error.splitlines()[-1] == (
        f"error: {out} holds a demo with other settings: set another OUT=DIR, or delete it yourself"
    )
    demo(code=2, OUT=str(tmp_path / "new"), FAILS="-m sharding synth")
    assert demo.error == ""


def test_the_commands_that_the_demo_shows_can_be_pasted(demo, tmp_path):
    calls = demo(OUT=str(tmp_path / "it's my out"))
    shown = [line[2:] for line in demo.said.splitlines() if line.startswith("$ ")]
    assert [" ".join(shlex.split(line)) for line in shown] == calls[: len(shown)]
    assert len(shown) == 13


def test_the_demo_on_data_takes_that_folder(demo, tmp_path):
    calls = demo(OUT=str(tmp_path / "o"), DATA="/data/ptbxl")
    assert not any("synth" in call for call in calls)
    assert calls[0].startswith("python -m sharding build configs/shard/ptbxl.yaml input=/data/ptbxl ")


def make(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "PYTHON", "VENV", "OUT", "DATA")}
    env |= {"PATH": path} if path else {}
    return subprocess.run([str(MAKE), *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not MAKE, reason="needs make")
@pytest.mark.parametrize(
    ("words", "out"), [([], "demo"), (["DATA=x"], "demo-data"), (["DATA=x", "OUT=q"], "q"), (["OUT=q"], "q")]
)
def test_the_demo_on_data_has_a_folder_of_its_own(words, out):
    assert f'OUT="{out}"' in make("-n", "demo", *words).stdout


@pytest.mark.skipif(not MAKE, reason="needs make")
def test_clean_removes_caches_only():
    said = make("-n", "clean", "OUT=/data/mine").stdout
    assert "mine" not in said
    assert "demo" not in said


@pytest.mark.skipif(not MAKE, reason="needs make")
def test_the_first_python_that_will_do_is_taken(tmp_path):
    found = tmp_path / "bin"
    program(found, "python3.11", "#!/bin/sh\nexit 127\n")
    program(found, "python3", "#!/bin/sh\nexit 0\n")
    assert "\npython3 -m venv" in make("-n", "setup", f"VENV={tmp_path}/v", path=str(found)).stdout
    program(found, "python3.12", "#!/bin/sh\nexit 0\n")
    assert "\npython3.12 -m venv" in make("-n", "setup", f"VENV={tmp_path}/v", path=str(found)).stdout


@pytest.mark.skipif(not MAKE, reason="needs make")
@pytest.mark.parametrize("words", [[], ["PYTHON=python3.9"]])
def test_no_python_that_will_do_is_one_line(tmp_path, words):
    program(tmp_path / "bin", "python3.9", "#!/bin/sh\nexit 1\n")
    done = make("-s", "setup", f"VENV={tmp_path}/v", *words, path=str(tmp_path / "bin"))
    name = words[0].removeprefix("PYTHON=") if words else "python3"
    assert done.returncode == 2
    said = f"error: {name} is not a Python 3.11, 3.12 or 3.13 with venv; install one"
    assert done.stderr.splitlines()[0].startswith(said)
    assert not (tmp_path / "v").exists()
