"""The sinks of a run: what is written, what W&B gets, what it never gets, and that its failures stop nothing."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.support.wandb_offline import entries, offline_files, read_offline
from trainer.observe.metrics import METRICS, Metrics, duration, read_metrics, terminal_line
from trainer.observe.throughput import Throughput
from trainer.observe.wandb_mirror import WandbConfig, grouped, new_wandb_id, public_config
from umbra.errors import UserError

DISABLED = WandbConfig(mode="disabled")
REPOSITORY = Path(__file__).parents[3]
PLANTS = ("zebrahost", "okapiuser", "quaggahome", "tapirfolder", "gnudata", "kuduremote", "dikdiknote", "nyalascript")
SECOND_START = 4

PLANTED_RUN = """
import socket, sys
socket.gethostname = lambda: "zebrahost.example"
socket.getfqdn = lambda *_: "zebrahost.example"
import matplotlib.image, numpy
from trainer.observe.metrics import Metrics, WandbConfig

matplotlib.image.imsave("picture.png", numpy.zeros((8, 8, 3)))
info = {
    "wandb_id": "abc123", "steps": 2000, "versions": {"torch": "2.13.0+cpu"},
    "config": {
        "data": {"path": "/mnt/gnudata", "labels": ["rhythm", "sex"], "input_dir": "gnudata"}, "run": "gnudata",
        "lr": 0.001, "leads": ["I", "V1"], "note": "kept by OKAPIUSER", "where": "zebrahost gpu 0",
    },
}
start, stop = int(sys.argv[1]), int(sys.argv[2])
metrics = Metrics("tapirfolder_run", WandbConfig(), info, start_step=start)
for step in range(start + 1, stop + 1):
    values = {"loss": 1 / step, "coverage": 0.25, "penalty": float(step == 8), "lr/encoder": 1e-3 * step}
    metrics.log(step, values)
    if step == start + 1:
        metrics.figure(step, "ecg", "picture.png")
        metrics.figure(step, "patient", "picture.png", recording=True)
metrics.close({"val_loss": 0.5, "best_path": "/mnt/gnudata"})
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two starts of one offline run, in a place where every name that wandb could find is a planted one."""
    here = tmp_path_factory.mktemp("planted") / "tapirfolder"
    home = here / "quaggahome"
    home.mkdir(parents=True)
    (here / "nyalascript.py").write_text(PLANTED_RUN)
    for words in (["init", "-q"], ["remote", "add", "origin", "https://example.org/kuduremote.git"]):
        subprocess.run(["git", *words], cwd=here, check=True, timeout=30)
    names = {"HOME": str(home), "USER": "okapiuser", "LOGNAME": "okapiuser", "WANDB_USERNAME": "okapiuser"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    outputs = [
        subprocess.run(
            [sys.executable, "nyalascript.py", str(start), str(stop)],
            cwd=here,
            env=clean | names | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for start, stop in ((0, 1200), (SECOND_START, 10))
    ]
    return here / "tapirfolder_run", outputs


def _rows(run):
    """The numbers of each row of W&B, in the form of a line of metrics.jsonl with grouped names."""
    for row in run.rows:
        values = {key: value for key, value in row.items() if not key.startswith("_") and not isinstance(value, dict)}
        yield {"step": row["_step"], **values}


def test_offline_run_holds_every_row_of_the_jsonl(planted):
    run_dir, _ = planted
    first, second = [read_offline(path) for path in offline_files(run_dir)]
    assert len(first.rows) == 1200
    assert list(_rows(first))[:SECOND_START] + list(_rows(second)) == [
        {"step": row["step"], **{grouped(name): value for name, value in row.items() if name != "step"}}
        for row in read_metrics(run_dir / METRICS)
    ]
    assert set(second.rows[0]) >= {"train/loss", "masks/coverage", "masks/penalty", "lr/encoder"}
    assert [row["step"] for row in read_metrics(run_dir / METRICS)] == list(range(1, 11))


def test_offline_run_goes_on_under_the_same_id_and_shows_config_figure_and_summary(planted):
    run_dir, _ = planted
    for run in [read_offline(path) for path in offline_files(run_dir)]:
        ids = {record.run.run_id for record in run.records if record.WhichOneof("record_type") == "run"}
        assert ids == {"abc123"}
        assert run.config["config"] == {"data": {"labels": ["rhythm", "sex"]}, "lr": 0.001, "leads": ["I", "V1"]}
        assert run.config["versions"] == {"torch": "2.13.0+cpu"}
        assert run.summary["val_loss"] == 0.5
        assert "best_path" not in run.summary
        assert run.rows[0]["figures/ecg"]["_type"] == "image-file"
        assert not any("figures/patient" in row for row in run.rows)


def test_offline_run_hides_the_charts_of_metrics_until_they_say_something(planted):
    """The chart of a metric that is always the same stays hidden; a restart knows what was said before it."""
    run_dir, _ = planted
    first, second = [_hidden(read_offline(path)) for path in offline_files(run_dir)]
    assert first == {
        "train/loss": [True, False],
        "lr/encoder": [True, False],
        "masks/penalty": [True, False],
        "masks/coverage": [True],
    }
    assert second == {
        "train/loss": [False],
        "lr/encoder": [False],
        "masks/penalty": [True, False],  # it is 1 at step 8, after the restart
        "masks/coverage": [True],
    }


def _hidden(run):
    found = {}
    for record in run.records:
        if record.WhichOneof("record_type") == "metric" and record.metric.name:
            assert record.metric._control.overwrite
            found.setdefault(record.metric.name, []).append(record.metric.options.hidden)
    return found


def test_the_printed_line_uploads_all_starts_of_a_run(planted):
    """W&B's own command finds the files of both starts where the line says."""
    run_dir, outputs = planted
    for output in outputs:
        assert output.splitlines()[-1] == "# W&B is offline; to upload this run: wandb sync tapirfolder_run/wandb"
    words = ["-m", "wandb", "sync", "--dry-run", "tapirfolder_run/wandb"]
    environment = {"WANDB_MODE": "offline", "HOME": str(run_dir.parent / "quaggahome")}
    said = subprocess.run(
        [sys.executable, *words],
        cwd=run_dir.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Would sync 2 run(s)" in said.stdout + said.stderr


def test_nothing_that_wandb_writes_holds_a_planted_name(planted):
    run_dir, _ = planted
    found = list((run_dir / "wandb").rglob("*"))
    assert any(path.suffix == ".png" for path in found)
    for path in found:
        assert not path.is_symlink()
        content = (
            path.relative_to(run_dir).as_posix().encode() + (path.read_bytes() if path.is_file() else b"")
        ).lower()
        for plant in (*PLANTS, str(REPOSITORY), sys.executable, str(run_dir)):
            assert plant.lower().encode() not in content, f"{plant} in {path}"


def test_offline_run_has_only_records_that_are_known_to_be_clean(planted):
    run_dir, _ = planted
    known = {"header", "run", "history", "config", "summary", "telemetry", "footer", "exit", "final", "files", "metric"}
    for run in [read_offline(path) for path in offline_files(run_dir)]:
        assert {record.WhichOneof("record_type") for record in run.records} <= known
        sent = [record.run for record in run.records if record.WhichOneof("record_type") == "run"]
        assert {record.host for record in sent} == {"umbra"}
        assert not any(record.git.remote_url or record.git.commit for record in sent)


def test_terminal_shows_one_line_per_step(planted):
    _, outputs = planted
    assert len(outputs[1].splitlines()) == 7
    assert outputs[1].splitlines()[0].startswith("step    5/2000  ETA ")


@pytest.mark.parametrize("length", [100, 32768 - 7 - 7, 32768 - 7 - 7 - 3, 32768, 100_000])
def test_reader_joins_entries_over_blocks(length):
    wanted = [bytes([65 + i]) * length for i in range(3)]
    assert list(entries(_leveldb(wanted))) == wanted
    assert list(entries(_leveldb(wanted)[:-1])) == wanted[:-1]


def _leveldb(contents):
    log = bytearray(b":W&B" + b"\0" * 3)
    for content in contents:
        begin = True
        while content or begin:
            room = 32768 - len(log) % 32768
            if room < 7:
                log += b"\0" * room
                continue
            part, content = content[: room - 7], content[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[begin, not content]
            log += b"\0" * 4 + len(part).to_bytes(2, "little") + bytes([kind]) + part
            begin = False
    return bytes(log)


# ---- failures of W&B ----


class FakeRun:
    def __init__(self, fail):
        self.fail, self.calls, self.summary = fail, [], {}

    def define_metric(self, name, **words):
        pass

    def log(self, values, step):
        self.calls.append(("log", step))
        if self.fail == "log":
            raise ConnectionResetError("the service is gone")

    def finish(self):
        self.calls.append(("finish",))
        if self.fail == "finish":
            raise RuntimeError("no network")


@pytest.mark.parametrize("fail", ["init", "log", "finish", "image", "login"])
def test_failing_wandb_stops_nothing(fail, tmp_path, monkeypatch, capsys):
    run = FakeRun(fail)

    def init(**_):
        if fail == "init":
            raise OSError("disk\nfull")
        return run

    def image(path):
        raise ValueError("no picture")

    fake = types.SimpleNamespace(init=init, Settings=dict, Image=image, login=lambda prompt: fail != "login")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    metrics = Metrics(tmp_path, WandbConfig(mode="online"), {"steps": 3})
    for step in (1, 2, 3):
        metrics.log(step, {"loss": 1.0 / step})
        if fail == "image":
            metrics.figure(step, "ecg", tmp_path / "no.png")
    metrics.close({"val": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / METRICS)] == [1, 2, 3]
    output = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("warning: W&B is switched off") for line in output) == 1
    assert len(output) == 4
    assert run.calls.count(("log", 2)) == (fail == "finish")


def test_wandb_folder_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    (tmp_path / "wandb").write_text("a file where the folder should be")
    metrics = Metrics(tmp_path, WandbConfig(), {})
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    assert read_metrics(tmp_path / METRICS) == [{"step": 1, "loss": 1.0}]
    assert "W&B is switched off" in capsys.readouterr().out


def test_missing_wandb_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    metrics = Metrics(tmp_path, WandbConfig(), {})
    metrics.log(1, {"loss": 1.0})
    metrics.close()
    assert "W&B is switched off" in capsys.readouterr().out


def test_disabled_imports_no_wandb(tmp_path):
    code = (
        "import sys; from trainer.observe.metrics import *; m = Metrics(sys.argv[1], WandbConfig(mode='disabled'), {});"
        "m.log(1, {'loss': 1}); m.figure(1, 'a', 'b'); m.close({'x': 1}); assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=True, timeout=60)
    assert not (tmp_path / "wandb").exists()


def test_unknown_mode_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"wandb\.mode=of.*offline, online, disabled"):
        Metrics(tmp_path, WandbConfig(mode="of"), {}, enabled=False)


@pytest.mark.parametrize("upload", [False, True])
def test_recordings_go_to_wandb_only_when_allowed(upload, tmp_path, monkeypatch):
    sent = []
    run = types.SimpleNamespace(log=lambda values, step: sent.append(values), finish=lambda: None, summary={})
    fake = types.SimpleNamespace(init=lambda **_: run, Settings=dict, Image=lambda path: "image")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    metrics = Metrics(tmp_path, WandbConfig(upload_ecgs=upload), {})
    metrics.figure(1, "patient", "a.png", recording=True)
    metrics.figure(1, "synthetic", "a.png")
    metrics.close()
    assert sent == [{"figures/patient": "image"}, {"figures/synthetic": "image"}][not upload :]


SEND_ENCODER = """
from pathlib import Path
from trainer.observe.wandb_mirror import Mirror, WandbConfig

mirror = Mirror(Path("run"), WandbConfig(upload_encoder=True), {"wandb_id": "abc123"})
mirror.encoder(Path("encoder"), "encoder-abc123", "step-40", {"dim": 8, "path": "/mnt/gnudata"})
mirror.close({})
"""


def test_an_encoder_is_an_artifact_of_the_run(tmp_path):
    """As W&B wrote it: name, aliases, files by their hashes. Only the record for the later upload knows a path."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(name.encode() * 10)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path / "home")}
    words = [sys.executable, "-c", SEND_ENCODER]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90, check=True)
    assert done.stdout == "# W&B is offline; to upload this run: wandb sync run/wandb\n"
    (run,) = [read_offline(path) for path in offline_files(tmp_path / "run")]
    (sent,) = [r.artifact for r in run.records if r.WhichOneof("record_type") == "artifact"]
    assert (sent.run_id, sent.name, sent.type) == ("abc123", "encoder-abc123", "model")
    assert set(sent.aliases) == {"latest", "step-40"}
    assert json.loads(sent.metadata) == {"dim": 8}
    for entry in sent.manifest.contents:
        content = (folder / entry.path).read_bytes()
        assert entry.digest == base64.b64encode(hashlib.md5(content).digest()).decode()
    assert [entry.path for entry in sent.manifest.contents] == ["config.json", "model.safetensors"]
    assert not list(tmp_path.glob("home/**/artifacts/**/*.safetensors"))
    sent.ClearField("manifest")
    assert str(tmp_path) not in str(run.records)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        *(("loss", "train/loss"), ("alarms", "train/alarms"), ("coverage", "masks/coverage")),
        *(("mask_sameness", "masks/mask_sameness"), ("uniformity", "embeddings/uniformity")),
        *(("samples_per_s", "speed/samples_per_s"), ("heldout/loss", "heldout/loss"), ("lr/masker", "lr/masker")),
    ],
)
def test_groups_at_wandb(name, there):
    assert grouped(name) == there


def test_public_config_keeps_words_and_numbers_and_drops_places():
    config = {
        "lr": 1e-3,
        "on": True,
        "none": None,
        "leads": ["I", "aVR"],
        "views": [{"name": "gaussian", "std": 0.1}, "a/b"],
        "data": {"path": "shards", "cache_dir": "cache", "shards": "s3://bucket/a", "block_shards": 8},
        "run": "x",
        "encoder": {"name": "resnet18", "weights": "C:\\models"},
        "home": "here",
        "where": "~me",
        "file_/mnt": 1,
        "object": object(),
    }
    assert public_config(config) == {
        "lr": 1e-3,
        "on": True,
        "none": None,
        "leads": ["I", "aVR"],
        "views": [{"name": "gaussian", "std": 0.1}],
        "data": {"block_shards": 8},
        "encoder": {"name": "resnet18"},
    }


def test_public_config_drops_this_host_and_user_as_whole_words(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node7.cluster.example")
    monkeypatch.setenv("USER", "ecg")
    monkeypatch.setattr("getpass.getuser", lambda: "ecg")
    config = {"a": "on node7", "b": "node71", "c": "NODE7.cluster.example", "d": "by-ecg_2", "e": "ecgs", "node7": 1}
    assert public_config(config) == {"b": "node71", "e": "ecgs"}


def test_wandb_ids_are_short_and_differ():
    assert len({new_wandb_id() for _ in range(100)}) == 100
    assert new_wandb_id().isalnum()


# ---- metrics.jsonl ----


def test_resume_drops_later_lines_and_a_cut_one(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 10, "loss": 0.1}\n{"step": 20, "loss": 3e-05}\n{"step": 30}\n{"step": 4')
    metrics = Metrics(tmp_path, DISABLED, {}, start_step=20)
    metrics.log(25, {"loss": 1.0})
    metrics.close()
    assert (tmp_path / METRICS).read_text() == (
        '{"step": 10, "loss": 0.1}\n{"step": 20, "loss": 3e-05}\n{"step": 25, "loss": 1.0}\n'
    )
    assert os.listdir(tmp_path) == [METRICS]


def test_start_from_nothing_drops_all_lines(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 0, "loss": 1}\n{"step": 5, "loss": 1}\n')
    Metrics(tmp_path, DISABLED, {}).close()
    assert read_metrics(tmp_path / METRICS) == []


def test_lines_are_on_disk_at_once_and_are_strict_json(tmp_path):
    metrics = Metrics(tmp_path, DISABLED, {})
    metrics.log(1, {"loss": float("nan"), "penalty": float("inf"), "count": 3})

    def refuse(word):
        raise AssertionError(word)

    row = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "penalty": None, "count": 3}
    metrics.close()
    metrics.close()


def test_a_step_is_logged_once(tmp_path):
    metrics = Metrics(tmp_path, DISABLED, {})
    metrics.log(2, {"loss": 1.0})
    with pytest.raises(ValueError, match="step 2 was logged after step 2"):
        metrics.log(2, {"loss": 1.0})
    metrics.close()


def test_other_ranks_write_nothing(tmp_path, capsys):
    metrics = Metrics(tmp_path / "run", WandbConfig(), {}, enabled=False)
    metrics.log(1, {"loss": 1.0})
    metrics.figure(1, "ecg", "no.png")
    metrics.close({"x": 1})
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


VALUES = {
    "loss": 4.21345,
    "penalty": 0.012,
    "coverage": 0.25,
    "lr/encoder": 1e-3,
    "grad_norm/encoder": 1.234,
    "samples_per_s": 1512.3,
    "data_wait": 0.0123,
    "val/loss": 3.5,
    "alarms": 2,
}


def test_terminal_line():
    assert terminal_line(120, 20000, VALUES, eta=5025.7) == (
        "step   120/20000  ETA 1:23:45  loss 4.213  masked 25 %  1,512 ECG/s  waiting 1 %  2 alarms"
    )
    assert terminal_line(120, 20000, VALUES | {"alarms": 1}).endswith("waiting 1 %  1 alarm")
    assert terminal_line(120, 20000, VALUES | {"alarms": 0}).endswith("waiting 1 %")
    assert terminal_line(1, 0, {}) == "step 1"


@pytest.mark.parametrize("loss", [1e-9, 12.3456, 99.9994, 99.9996, 999.99, 1.2e5, float("nan")])
@pytest.mark.parametrize("eta", [0.0, 359_999.0, 360_000.0, 8.6e7])
def test_terminal_line_fits_100_columns(loss, eta):
    most = {"loss": loss, "coverage": 1.0, "data_wait": 1.0, "alarms": 5}
    for speed in (99_999.4, 99_999.9, 9_999_000.0):
        line = terminal_line(999_999, 1_000_000, VALUES | most | {"samples_per_s": speed}, eta)
        assert len(line) <= 100, line
        assert re.search("ETA .* loss .* masked .* ECG/s .*waiting .* alarms$", line)


def test_duration():
    assert [duration(s) for s in (0.9, 130, 359_999, 360_000, 8.6e7)] == [
        *("0:00:00", "0:02:10", "99:59:59", "4d 4h", "995d 8h")
    ]


# ---- meters ----


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_throughput_skips_the_first_steps_and_pauses():
    clock = Clock()
    meter = Throughput(skip=2, clock=clock)
    for seconds in (50, 10):
        with meter.waiting():
            clock.now += seconds
        meter.step(64)
        assert meter.take() == {}
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.step(64)
    with meter.paused():
        clock.now += 1000
    assert meter.take() == {"samples_per_s": 4 * 64 / 8, "data_wait": 0.25}
    assert meter.take() == {}
    clock.now += 2
    meter.step(64)
    assert meter.take() == {"samples_per_s": 32, "data_wait": 0}
