"""A short soak, and that its audit sees what is wrong."""

import subprocess
from types import SimpleNamespace

import pytest

from benchmarks.soak import audit
from benchmarks.soak.run import MARK, Run, Use, left_over
from tests.support.handmade import make_run
from tests.support.launch import launch


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_a_run_comes_to_the_same_end_through_faults(tmp_path):
    report = tmp_path / "soak.md"
    words = ["minutes=2.5", "every=7", f"report={report}", f"logs={tmp_path / 'logs'}"]
    code, output = launch(["-m", "benchmarks.soak", *words], 0, 1400)
    assert code == 0, output[-3000:] + (report.read_text() if report.exists() else "")
    assert "**All is as it should be.**" in report.read_text()


def test_the_audit_sees_other_bytes_half_written_files_and_growth(tmp_path):
    alone, disturbed = (
        Run(make_run(tmp_path / name, steps=(3, 7), uncommitted=()), [], 2, {}, tmp_path) for name in ("one", "two")
    )
    assert audit.same_bytes(alone, disturbed, 7).right
    assert audit.files(disturbed).right
    weights = disturbed.folder / "checkpoints/step-7/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert not audit.same_bytes(alone, disturbed, 7).right
    assert not audit.same_bytes(alone, disturbed, 8).right
    for left in ("checkpoints/step-9/x", "figures/a.png.partial-host-1", "heartbeat/rank-0"):
        path = disturbed.folder / left
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert not audit.files(disturbed).right, left
        path.unlink()
        if path.parent.name != "figures":
            path.parent.rmdir()
    assert audit.files(disturbed).right


def verdicts(**changes: float) -> list[bool]:
    """Memory, files and threads of two minutes, whose second half has `changes`."""
    first = {"own": 100.0, "rss": 200.0, "files": 10, "threads": 5}
    uses = [Use(float(at), **{**first, **(changes if at > 60 else {})}) for at in range(120)]
    return [check.right for check in audit.steady(SimpleNamespace(uses=uses), 0.5)]


def test_the_audit_sees_what_grows():
    assert verdicts() == [True, True, True]
    assert verdicts(own=102.0, rss=900.0, files=12) == [True, True, True]
    assert verdicts(own=104.0, files=13, threads=8) == [False, False, False]


def test_a_process_of_a_soak_that_is_left_is_found(tmp_path):
    with subprocess.Popen(["sleep", "60"], env={"PATH": "/bin:/usr/bin", MARK: str(tmp_path)}) as process:
        assert left_over(str(tmp_path)) == ["sleep 60"]
        process.kill()
    assert left_over(str(tmp_path)) == []
