"""The real launcher on small shards: train, stop, go on, export, load, probe; and what a user gets wrong."""

import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from tests.support.compiler import compiler_or_skip
from tests.support.devices import on_each
from tests.support.handmade import make_shards
from tests.support.launch import ROOT, finish, launch, start
from tests.support.metrics_page import documented
from tests.support.pretrain_words import losses, run_words
from trainer.data.audit import judge
from trainer.observe.metrics import read_metrics

KINDS = ["SR", "AFIB", "STACH"]
# A smooth game at a small rate: in a steep one rounding parts the runs of different numbers of processes.
SMOOTH = ["game.slope=5", "encoder.args.activation=gelu", "optim.encoder.lr=2e-4", "optim.masker.lr=2e-5"]


def pretrain(data, run, *more, method="adversarial"):
    return run_words(data, run, "steps=12", *more, method=method)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shards"
    return make_shards(root, {"train": KINDS * 16, "val": KINDS * 6, "test": KINDS * 6})


def test_a_checkout_runs_its_own_code_where_another_one_is_installed(tmp_path, monkeypatch):
    """Two branches side by side share an environment, and a run's record names the commit of the code that ran."""
    for name in ("trainer", "umbra"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("trainer", "umbra"):
        with open(tmp_path / name / "__init__.py", "a") as file:
            file.write(f"\nprint('{name} of the copy')\n")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
    code, output = launch([str(tmp_path / "trainer" / "pretrain.py")])
    assert code == 2, output
    assert {"trainer of the copy", "umbra of the copy"} <= set(output.splitlines()), output


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """An undisturbed run on two processes, with W&B offline and figures."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    words = pretrain(shards, run, "wandb.mode=offline", "log.figure_every=12", "checkpoint.every=5")
    code, output = launch(words, 2)
    assert code == 0, output[-4000:]
    return run, output


def test_a_run_leaves_what_it_promises(whole):
    run, output = whole
    rows = read_metrics(run / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 13))
    for name in ("loss", "coverage", "lr/encoder", "lr/masker", "grad_norm/encoder", "grad_norm/masker", "accuracy"):
        assert np.isfinite([r[name] for r in rows]).all(), name
    assert all(r["grad_norm/masker"] > 0 for r in rows)
    assert any("heldout/loss" in r for r in rows)
    assert any("data_wait" in r and "samples_per_s" in r for r in rows)
    assert {r["mfu"] for r in rows if "samples_per_s" in r} == {None}  # the peak of a CPU is not known
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-10", "step-12"]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert list((run / "figures").glob("*.png"))
    assert list((run / "wandb").glob("**/*.wandb"))
    assert f"python -m trainer.export run={run}" in output
    assert f"wandb sync {run / 'wandb'}" in output
    assert all(name == "step" or name in documented() for row in rows for name in row)
    assert max(len(line) for line in output.splitlines() if line.startswith("step ")) <= 100


def test_a_second_call_does_nothing_and_says_so(whole, shards):
    run, _ = whole
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"status": "running"}))  # killed after its last checkpoint
    code, output = launch(pretrain(shards, run), 2)
    assert code == 0, output[-3000:]
    assert "already has its 12 steps" in output
    assert json.loads((run / "run.json").read_text()) == record


def test_a_stopped_run_goes_on_to_the_same_end(whole, shards, tmp_path):
    run = tmp_path / "run"
    process = start(pretrain(shards, run, "checkpoint.every=5", "steps=12"), 2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (run / "checkpoints" / "step-5" / "COMMITTED").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    finish(process)
    code, output = launch(pretrain(shards, run, "checkpoint.every=5"), 2)
    assert code == 0, output[-3000:]
    assert [r["step"] for r in read_metrics(run / "metrics.jsonl")] == list(range(1, 13))
    assert losses(run) == losses(whole[0])
    ours, theirs = (load_file(r / "checkpoints" / "step-12" / "weights.safetensors") for r in (run, whole[0]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_process_plays_the_same_game_as_two(whole, shards, tmp_path):
    code, output = launch(pretrain(shards, tmp_path / "run"), 1)
    assert code == 0, output[-3000:]
    # rounding grows through masks and AdamW: equal at first, near at the end
    assert losses(tmp_path / "run")[:3] == pytest.approx(losses(whole[0])[:3], rel=1e-5)
    assert losses(tmp_path / "run") == pytest.approx(losses(whole[0]), rel=2e-2)


@pytest.mark.full
@pytest.mark.parametrize("zero", [0, 3])
def test_a_learned_temperature_goes_on_where_it_was_and_the_device_batch_may_change(zero, shards, tmp_path):
    words = ["learn_temperature=true", "optim.encoder.lr=0.02", f"zero={zero}", "checkpoint.every=6", "batch.device=2"]
    code, output = launch(pretrain(shards, tmp_path / "run", *words), 2)
    assert code == 0, output[-3000:]
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first[0]["temperature"] == pytest.approx(0.1)
    assert len({row["temperature"] for row in first}) == 12
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-12")
    code, output = launch(pretrain(shards, tmp_path / "run", *words[:-1], "batch.device=3"), 2)
    assert code == 0, output[-3000:]
    again = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in again] == list(range(1, 13))
    for name in ("temperature", "loss"):
        assert [r[name] for r in again] == pytest.approx([r[name] for r in first], rel=1e-3)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("device", on_each(pytest.mark.full))
@pytest.mark.parametrize("zero", [0, 2])
def test_a_compiled_run_is_the_same_and_goes_on_not_compiled(zero, device, shards, tmp_path):
    compiler_or_skip(device)
    small = ["encoder.name=vit_s", "encoder.args={width: 16, depth: 1, heads: 2, patch: 32}", "masker.depth=1"]
    words = [w for w in pretrain(shards, tmp_path / "run", *small) if not w.startswith("encoder.args.")]
    words += [f"zero={zero}", "steps=4", "checkpoint.every=2", "batch.device=8", "log.heldout_every=0"]
    words += ["precision=fp32"]  # on a GPU too
    code, output = launch([*words, "compile=true"], 1, 500, device)
    assert code == 0, output[-3000:]
    assert "# compiled ContrastiveEncoder for [16, 12, " in output
    assert list((tmp_path / "run" / "compiler").rglob("*.so" if device == "cpu" else "*.*"))
    compiled, kept = losses(tmp_path / "run"), load_file(tmp_path / "run/checkpoints/step-4/weights.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    code, output = launch([*words, "compile=false"], 1, device=device)
    assert code == 0, output[-3000:]
    assert "step 2 to 4" in output
    assert losses(tmp_path / "run") == pytest.approx(compiled, rel=1e-3 if device == "cpu" else 1e-2)  # TF32
    plain = load_file(tmp_path / "run/checkpoints/step-4/weights.safetensors")
    assert {name: w.shape for name, w in kept.items()} == {name: w.shape for name, w in plain.items()}
    assert launch(["-m", "trainer.export", f"run={tmp_path / 'run'}"])[0] == 0


def test_export_and_probe(whole, shards, tmp_path):
    run, _ = whole
    assert launch(["-m", "trainer.export", f"run={run}"])[0] == 0
    code, output = launch(["-m", "trainer.export", f"run={run}", f"output={run}"])
    assert (code, output.count("\n")) == (2, 1), output
    assert (run / "checkpoints").is_dir()
    assert "12" in (run / "encoder" / "README.md").read_text()
    code = (
        "import sys, umbra, torch; e = umbra.load_encoder(sys.argv[1]);"
        "print(tuple(e(torch.zeros(2, 12, 256)).shape), sorted({'deepspeed','wandb','webdataset'} & set(sys.modules)))"
    )
    assert "(2, 16) []" in launch(["-c", code, str(run / "encoder")])[1]
    words = ["-m", "trainer.transfer", "configs/transfer/rhythm.yaml", f"encoder={run / 'encoder'}", f"data={shards}"]
    status, output = launch([*words, f"output={tmp_path / 'out'}", "bootstrap=50"])
    assert status == 0, output
    said = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pandas()
    assert len(said) == 18
    kinds = [c.removeprefix("p_") for c in said.columns if c.startswith("p_")]
    right = np.mean([roc_auc_score(said["label"] == kind, said[f"p_{kind}"]) for kind in kinds])
    assert json.loads((tmp_path / "out" / "result.json").read_text())["auroc"] == pytest.approx(right)


def test_batch_norm_is_trained_over_two_processes_and_estimated_anew_for_the_encoder(shards, tmp_path):
    run = tmp_path / "run"
    code, output = launch(pretrain(shards, run, "encoder.args.norm=batch", "batch.contrast=8"), 2)
    assert code == 0, output[-3000:]
    heldout = [row["heldout/loss"] for row in read_metrics(run / "metrics.jsonl") if "heldout/loss" in row]
    assert heldout
    assert np.isfinite(heldout).all()
    trained = load_file(run / "checkpoints" / "step-12" / "weights.safetensors")
    assert int(trained["backbone.stem.1.num_batches_tracked"]) == 24
    code, output = launch(["-m", "trainer.export", f"run={run}"])
    assert code == 0, output[-3000:]
    assert "of 48 training ECGs, none masked" in (run / "encoder" / "README.md").read_text()
    exported = load_file(run / "encoder" / "model.safetensors")
    changed = {name for name, value in exported.items() if name in trained and not torch.equal(value, trained[name])}
    changed = {name for name in changed if not name.endswith("tracked")}
    assert changed == {name for name in trained if name.startswith("backbone.") and "running_" in name}


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero", [0, 3])
def test_batch_norm_goes_on_bit_equal(zero, shards, tmp_path):
    words, whole, cut = ["encoder.args.norm=batch", f"zero={zero}", "steps=6"], tmp_path / "whole", tmp_path / "cut"
    for run, *more in ((whole,), (cut, "max_minutes=1e-9"), (cut,)):
        code, output = launch(pretrain(shards, run, *words, *more), 2)
        assert code == 0, output[-3000:]
    assert losses(cut) == losses(whole)
    ours, theirs = (load_file(run / "checkpoints" / "step-6" / "weights.safetensors") for run in (cut, whole))
    assert sum("running_" in name for name in theirs) == 40
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_batch_norm_is_the_same_game_on_one_process_and_on_two(shards, tmp_path):
    words = ["encoder.args.norm=batch", "game.schedule=alternating", "log.heldout_every=0", *SMOOTH]
    for processes in (1, 2):
        code, output = launch(pretrain(shards, tmp_path / str(processes), *words), processes)
        assert code == 0, output[-3000:]
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-4)


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero", [0, 3])
def test_a_run_is_the_same_with_a_probe_that_looks_on(zero, shards, tmp_path):
    words = ["encoder.args.norm=batch", f"zero={zero}", "steps=8"]
    for name, more in (("without", []), ("with", ["log.probe=[rhythm]"])):
        code, output = launch(pretrain(shards, tmp_path / name, *words, *more), 2)
        assert code == 0, output[-3000:]
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    with_, without = (
        load_file(tmp_path / n / "checkpoints" / "step-8" / "weights.safetensors") for n in ("with", "without")
    )
    assert all(torch.equal(with_[name], without[name]) for name in without)
    rows = [row for row in read_metrics(tmp_path / "with" / "metrics.jsonl") if "heldout/loss" in row]
    assert len(rows) == 2
    assert all(0 <= row["probe/rhythm"] <= 1 <= row["heldout/effective_rank"] <= 16 for row in rows)


@pytest.mark.full
@pytest.mark.parametrize("method", ["block_mask", "3kg", "gaussian", "none"])
def test_the_rivals_run(method, shards, tmp_path):
    code, output = launch(pretrain(shards, tmp_path / "run", "steps=4", method=method), 2)
    assert code == 0, output[-3000:]
    assert len(losses(tmp_path / "run")) == 4
    assert not (tmp_path / "run" / "checkpoints" / "step-4" / "masker").exists()


@pytest.mark.full
@pytest.mark.parametrize(
    "dials",
    [
        ["game.family=lead", "game.warmup=0.3", "game.slope_start=5", "game.slope_rise=0.5"],
        ["game.family=spectral", "game.masks=3", "game.threshold=half", "game.entropy=0.1", "game.strength_rise=0.5"],
        ["game.masks=2", "game.use=all", "game.share=0.5", "views.first=[lead_dropout]", "game.masker_interval=2"],
    ],
)
def test_the_families_and_dials_run_and_are_drawn(dials, shards, tmp_path):
    code, output = launch(pretrain(shards, tmp_path / "run", "steps=6", "log.figure_every=6", *dials), 2)
    assert code == 0, output[-3000:]
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite([[r["loss"], r["penalty"], r["uniformity"], r["mask_sameness"]] for r in rows]).all()
    assert list((tmp_path / "run" / "figures").glob("masks-*.png"))


@pytest.mark.full
def test_the_published_setting_runs_with_a_smaller_masker(shards, tmp_path):
    words = pretrain(shards, tmp_path / "run", "steps=2", "masker.width=16", method="paper")
    code, output = launch(words, 2)
    assert code == 0, output[-3000:]
    assert [r["penalty"] > 0 for r in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [True, True]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_loss_curves_of_200_steps_of_a_smooth_game_are_the_same_on_one_two_and_four_processes(tmp_path):
    """Smooth networks and masks and a small rate: a steep game at full rate is chaotic, rounding parts its runs."""
    shards = make_shards(tmp_path / "shards", {"train": KINDS * 64, "val": KINDS * 6, "test": KINDS * 6})
    more = ["steps=200", "log.every=10", "log.heldout_every=0", "batch.global=32", *SMOOTH]
    curves = []
    for processes in (1, 2, 4):
        run = tmp_path / f"of-{processes}"
        code, output = launch(pretrain(shards, run, *more), processes, seconds=500)
        assert code == 0, output[-3000:]
        curves.append(losses(run))
    assert len(curves[0]) == 20
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=2e-2)
    assert curves[2] == pytest.approx(curves[0], rel=2e-2)


def test_a_run_goes_on_under_its_own_config_only(whole, shards):
    run, _ = whole
    before = (run / "config.yaml").read_bytes()
    for words, method, said in (
        (["steps=14"], "none", "game.enabled: true, now false"),
        (["steps=14", "encoder.args.width=16"], "adversarial", "encoder.args.width: 8, now 16"),
    ):
        code, output = launch(pretrain(shards, run, *words, method=method), 2)
        assert code == 2, output[-3000:]
        assert said in output
        assert "Traceback" not in output
    assert (run / "config.yaml").read_bytes() == before


@pytest.mark.full
@pytest.mark.parametrize("pair", [["pair=patient"], ["pair=crops", "pair.seconds=1.5"]], ids=lambda words: words[0])
def test_pairs_are_the_same_game_at_any_world_size_and_go_on_bit_equal(pair, shards, tmp_path):
    words = [*pair, "data.audit=true", "batch.contrast=8", "checkpoint.every=6", *SMOOTH]
    runs = {"1": (1, []), "2": (2, []), "same": (2, ["pair.kind=same", "pair.seconds=0"])}
    for name, (processes, more) in runs.items():
        assert launch(pretrain(shards, tmp_path / name, *words, *more), processes)[0] == 0
    one, two, same = (losses(tmp_path / name)[:5] for name in runs)
    assert one == pytest.approx(two, rel=1e-5)
    assert one != pytest.approx(same, rel=1e-3)
    assert judge(tmp_path / "2").problems == []
    shutil.copytree(tmp_path / "2", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-12")
    code, output = launch(pretrain(shards, tmp_path / "cut", *words), 2)
    assert code == 0, output[-3000:]
    assert losses(tmp_path / "cut") == losses(tmp_path / "2")


@pytest.mark.full
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_stages_resume_bit_equal_and_go_on_with_another_world(zero, shards, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch(pretrain(shards, whole, f"zero={zero}", "batch.contrast=8"), 2)[0] == 0
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints")
    words = pretrain(shards, cut, f"zero={zero}", "batch.contrast=8", "checkpoint.every=6", "max_minutes=1e-9")
    assert launch(words, 2)[0] == 0
    assert json.loads((cut / "run.json").read_text())["status"] == "interrupted"
    other = tmp_path / "other"
    shutil.copytree(cut, other)
    assert launch(pretrain(shards, cut, f"zero={zero}", "batch.contrast=8"), 2)[0] == 0
    assert losses(cut) == losses(whole)
    code, output = launch(pretrain(shards, other, f"zero={zero}", "batch.contrast=8"), 1)
    assert code == 0, output[-3000:]
    assert "the optimiser state is cut anew for 1" in output
    assert losses(other)[:3] == pytest.approx(losses(whole)[:3], rel=1e-5)
    assert losses(other) == pytest.approx(losses(whole), rel=2e-2)


@pytest.mark.full
def test_another_world_size_goes_on_without_zero(whole, shards, tmp_path):
    run = tmp_path / "run"
    assert launch(pretrain(shards, run, "max_minutes=1e-9"), 2)[0] == 0
    assert launch(pretrain(shards, run), 4)[0] == 0
    assert losses(run) == pytest.approx(losses(whole[0]), rel=2e-2)


@pytest.mark.full
def test_killed_at_any_moment_it_ends_the_same(whole, shards, tmp_path):
    run, rng = tmp_path / "run", np.random.default_rng(0)
    for _ in range(4):
        process = start(pretrain(shards, run, "checkpoint.every=1"), 2)
        time.sleep(float(rng.uniform(6, 20)))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert launch(pretrain(shards, run, "checkpoint.every=1"), 2)[0] == 0
    assert losses(run) == losses(whole[0])


def test_dry_run_tells_and_leaves_nothing(shards, tmp_path):
    code, output = launch(pretrain(shards, tmp_path / "run", "--dry-run"))
    assert code == 0, output
    assert "3 steps an epoch, 12 steps of 16" in output
    assert re.search(r"encoder with projector [\d,]+, masker [\d,]+", output)
    assert not (tmp_path / "run").exists()


def test_a_mistake_under_the_launcher_has_exit_code_2(shards, tmp_path):
    code, output = launch(pretrain(shards, tmp_path / "run"), 3)
    assert code == 2, output[-3000:]
    said = "error: batch.global=16 cannot be shared by 3 processes; use batch.global=15 or 18, or 2 processes"
    assert output.count(said) == 1
    assert "Traceback" not in output
