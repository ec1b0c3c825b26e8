"""Fine-tuning: what is selected, when it stops, what is kept, on small records whose class can be told."""

import dataclasses
import json
import math
import os
import resource
import signal
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.handmade import RATE, SAMPLES, SCALING, make_shards
from trainer import transfer
from trainer.evaluate import finetune as module
from trainer.evaluate import records, result
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import open_encoder
from trainer.evaluate.finetune import epochs, finetune, share, spread, with_head
from trainer.evaluate.rates import parameter_groups
from trainer.evaluate.reading import read_task
from umbra import load_encoder, load_predictor
from umbra.config import load
from umbra.directory import save_weights
from umbra.encoders.encoder import EncoderConfig
from umbra.errors import UserError
from umbra.files import TEMPORARY
from umbra.hub import initialise
from umbra.leads import CANONICAL

RHYTHM = "configs/transfer/rhythm.yaml"
CPU = torch.device("cpu")
QUICK = ["mode=finetune", "bootstrap=0", "finetune.epochs=3", "finetune.lr=[3e-3]", "finetune.batch=16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    kinds = ["SR", "SR", "AFIB", "AFIB", "SR", "SR", "STACH", "STACH"]
    root = tmp_path_factory.mktemp("data") / "d"
    return make_shards(root, {"train": kinds * 6, "val": kinds * 2, "test": kinds * 2}, shards_of_train=3)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A directory with a small encoder of random weights."""
    folder = tmp_path_factory.mktemp("encoder")
    architecture = {"name": "resnet18", "args": {"width": 4, "groups": 2, "embedding": 16}}
    config = EncoderConfig(architecture, 16, RATE, list(CANONICAL), SAMPLES, SCALING)
    save_weights(folder / "model.safetensors", initialise(config, 1).state_dict())
    (folder / "config.json").write_text(config.to_json())
    return folder


@pytest.fixture
def prepared(data, encoder):
    """words -> (config, task, encoder)"""

    def of(*words):
        config = load(TransferConfig, RHYTHM, [f"encoder={encoder}", f"data={data}", "output=o", *QUICK, *words])
        config.check()
        task = read_task(config)
        return config, task, open_encoder(config, task.train)

    return of


def fitted(prepared, *words, chosen=None):
    config, task, given = prepared(*words)
    return finetune(task, given, np.arange(len(task.train)) if chosen is None else chosen, config)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.state_dict().values()])


def same(one, two):
    return one.chosen == two.chosen and torch.equal(weights(one.model), weights(two.model))


# --- the whole command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["classes", "labels", "number"])
def test_the_kept_model_gives_the_predictions_again(data, encoder, tmp_path, kind):
    words = {"classes": [], "labels": ["kind=labels"], "number": ["kind=number", "column=patient", "classes={}"]}[kind]
    place = [f"encoder={encoder}", f"data={data}", f"output={tmp_path}"]
    transfer.main([RHYTHM, *place, *QUICK, *words, "finetune.seeds=[3,4]", "finetune.epochs=2"])
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    task = read_task(load(TransferConfig, RHYTHM, [*place, *words]))
    model = load_predictor(tmp_path / "model")
    ecgs = torch.from_numpy(task.test.shards.read_mv(task.test.index))
    with torch.inference_mode():
        given = torch.cat([model(part) for part in ecgs.split(5)])
    np.testing.assert_allclose(given, table[[f"p_{name}" for name in model.names]], rtol=1e-5, atol=1e-6)
    assert model.config.kind == kind
    features = load_encoder(tmp_path / "model")(ecgs)
    np.testing.assert_array_equal(model.encoder(ecgs).detach(), features.detach())
    said = json.loads((tmp_path / "result.json").read_text())["seeds"]
    best = max(said["each"], key=lambda one: one["val"])
    assert said["kept"] == best["seed"]
    assert [one["seed"] for one in said["each"]] == [3, 4]
    tests = [one["test"] for one in said["each"]]
    assert said["mean"] == pytest.approx(sum(tests) / 2)
    assert said["sd"] == pytest.approx(abs(tests[0] - tests[1]) / math.sqrt(2))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["training"]["labels"]["seed"] == best["seed"]


def test_a_model_cut_off_while_it_is_written_leaves_the_older_one(data, encoder, tmp_path, monkeypatch):
    words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path}", *QUICK, "finetune.epochs=1"]
    transfer.main([RHYTHM, *words])
    before = (tmp_path / "model" / "head.safetensors").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.evaluate.keep.save_head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer.main([RHYTHM, *words, "seed=1"])
    assert (tmp_path / "model" / "head.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "predictions.parquet", "result.json"]
    for name in ("result.json", "predictions.parquet"):
        (tmp_path / name).unlink()
    monkeypatch.undo()
    transfer.main([RHYTHM, *words, "seed=1"])
    assert (tmp_path / "result.json").exists(), "a folder that has only the model yet is one of this command"


def test_a_log_has_a_line_per_epoch(data, encoder, tmp_path, capsys):
    words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path}", *QUICK, "finetune.epochs=2"]
    transfer.main([RHYTHM, *words])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  ")[0] for line in lines] == ["lr 0.003: epoch 1/2", "lr 0.003: epoch 2/2"]
    assert all("val AUROC" in line and "ECG/s" in line for line in lines)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_alone_and_after_others(prepared):
    few = ["finetune.lr=[1e-3,3e-3]", "finetune.epochs=2"]
    both = fitted(prepared, *few, "finetune.seeds=[1,2]")
    [alone] = fitted(prepared, *few, "finetune.seeds=[2]")
    assert same(alone, both[1])
    np.testing.assert_array_equal(alone.prediction, both[1].prediction)
    assert not torch.equal(weights(both[0].model), weights(both[1].model))


def test_without_seeds_the_seed_of_the_call_is_the_only_one(prepared):
    [one] = fitted(prepared, "seed=5")
    assert one.seed == 5
    assert spread([one], prepared()[1].test.target)["sd"] is None


def test_what_is_not_pretrained_is_drawn_from_each_seed(prepared):
    config, task, given = prepared("mode=scratch")
    one, two = (weights(with_head(given, len(task.names), seed, config).encoder) for seed in (0, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one, weights(given)), "the seed of the call draws the encoder that it is given"


# --- selection and stopping ------------------------------------------------------------------------------------------


def trace(prepared, monkeypatch, values, *words):
    """(epochs that were trained, what was kept) where val says `values`, epoch by epoch."""
    said, seen = iter(values), []
    monkeypatch.setattr(module, "_value", lambda shared, model: seen.append(0) or next(said))
    [kept] = fitted(prepared, *words)
    return len(seen), kept


@pytest.mark.parametrize(
    ("values", "patience", "trained", "best"),
    [
        ([0.5, 0.6, 0.6, 0.5, 0.9, 0.9], 2, 4, 2),  # an equal value is no better one
        ([0.5, 0.6, 0.6, 0.7, 0.6, 0.9], 3, 6, 6),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.9], 0, 6, 6),  # never stops
        ([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 1, 6, 6),
        ([0.9, 0.8, 0.9, 0.8, 0.9, 0.8], 1, 2, 1),
    ],
)
def test_it_stops_after_epochs_without_a_better_value(prepared, monkeypatch, values, patience, trained, best):
    found, kept = trace(prepared, monkeypatch, values, f"finetune.patience={patience}", "finetune.epochs=6")
    assert (found, kept.chosen["epoch"], kept.val_value) == (trained, best, values[best - 1])


def test_stopping_early_changes_nothing_of_what_was_trained_until_then(prepared, monkeypatch):
    values = [0.5, 0.6, 0.5, 0.5, 0.5]
    _, early = trace(prepared, monkeypatch, values, "finetune.patience=1", "finetune.epochs=5")
    _, late = trace(prepared, monkeypatch, values, "finetune.patience=0", "finetune.epochs=5")
    assert same(early, late)


def test_what_is_kept_is_the_best_epoch_and_not_the_last(prepared):
    config, task, given = prepared("finetune.lr=[1e-3,3e-2]", "finetune.epochs=4", "finetune.patience=0")
    shared, found = share(task, np.arange(len(task.train)), config, CPU), {}
    for lr in config.finetune.lr:
        model = with_head(given, len(task.names), 0, config)
        for epoch in epochs(shared, model, lr, 0):
            found[lr, epoch.number] = epoch.value, weights(model)
    [kept] = finetune(task, given, np.arange(len(task.train)), config)
    value, state = found[kept.chosen["lr"], kept.chosen["epoch"]]
    assert value == max(value for value, _ in found.values()) == kept.val_value
    assert torch.equal(weights(kept.model), state)
    assert kept.kind.value(task.val.target, kept.val) == value


def test_test_records_do_not_change_what_is_kept(prepared):
    config, task, given = prepared("finetune.seeds=[0,1]", "finetune.epochs=2")
    chosen = np.arange(len(task.train))
    straight = finetune(task, given, chosen, config)
    turned = dataclasses.replace(task, test=task.test.take(np.arange(5)))
    turned.test.target[:] = 1 - turned.test.target
    for one, two in zip(straight, finetune(turned, given, chosen, config)):
        assert same(one, two)


def test_a_rate_that_diverges_is_left_out_and_said(prepared):
    [kept] = fitted(prepared, "finetune.lr=[1e30,1e-3]")
    assert kept.chosen["lr"] == 1e-3
    assert kept.notes == ["finetune.lr=1e+30 is left out: its loss was not finite (seed 0)"]


def test_rates_that_all_diverge_are_one_line(prepared):
    with pytest.raises(UserError, match=r"finetune.lr=\[1e\+30\]: the loss .*; give a smaller one, .*lr=\[1e\+29\]"):
        fitted(prepared, "finetune.lr=[1e30]")


# --- training --------------------------------------------------------------------------------------------------------


def test_warm_up_and_cosine_are_the_rates_of_every_group(prepared, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    fitted(prepared, "finetune.epochs=4", "finetune.warmup=0.25", "finetune.layer_decay=0.5", "finetune.lr=[0.008]")
    steps = 4 * 3  # 48 records in batches of 16
    wanted = [(s + 1) / 3 if s < 3 else 0.5 * (1 + math.cos(math.pi * (s - 3) / 9)) for s in range(steps)]
    peaks = sorted({0.008 * 0.5**height for height in range(11)})  # head, embed, 8 blocks, stem
    for given, factor in zip(rates, wanted, strict=True):
        np.testing.assert_allclose(sorted(set(given)), [peak * factor for peak in peaks], rtol=1e-9)


def test_from_scratch_all_layers_learn_at_one_rate(prepared, monkeypatch):
    decays = []

    def noted(backbone, head, lr, decay, weight_decay):
        decays.append(decay)
        return parameter_groups(backbone, head, lr, decay, weight_decay)

    monkeypatch.setattr(module, "parameter_groups", noted)
    for mode in ("scratch", "finetune"):
        fitted(prepared, f"mode={mode}", "finetune.epochs=1", "finetune.layer_decay=0.5")
    assert decays == [1.0, 0.5]


def test_views_change_what_is_trained_and_not_what_is_evaluated(prepared):
    config, task, given = prepared("finetune.views=[{name: gaussian, sd_mv: 5}, lead_dropout]", "finetune.lr=[1e-12]")
    chosen = np.arange(len(task.train))
    shared = share(task, chosen, config, CPU)
    plain = share(task, chosen, prepared("finetune.lr=[1e-12]")[0], CPU)
    model = with_head(given, len(task.names), 0, config)
    [noisy], [clean] = ([*zip(epochs(s, model, 1e-12, 0), range(1))] for s in (shared, plain))
    assert abs(noisy[0].loss - clean[0].loss) > 1e-3
    assert noisy[0].value == clean[0].value, "the weights hardly move, and val is seen as it is"


def test_views_differ_by_epoch_and_seed_and_repeat_for_the_same(prepared, monkeypatch):
    keys, build = [], module.build

    def noted(*given):
        views = build(*given)
        signal = views.signal_views
        object.__setattr__(views, "signal_views", lambda x, key, rate: keys.append(key) or signal(x, key, rate))
        return views

    monkeypatch.setattr(module, "build", noted)
    _, task, _ = prepared()
    fitted(prepared, "finetune.views=[gaussian]", "finetune.epochs=2", "finetune.seeds=[7]")
    assert [(key.seed, key.epoch) for key in keys] == [(7, 1)] * 3 + [(7, 2)] * 3
    assert set(torch.cat([key.index for key in keys]).tolist()) <= set(task.train.row.tolist())


def test_bf16_trains_in_bf16_and_evaluates_in_fp32(prepared, monkeypatch):
    seen = set()

    def noted(module, given, output):
        seen.add((module.training, output.dtype))

    config, task, given = prepared("finetune.precision=bf16", "finetune.epochs=1")
    given.backbone.embed.register_forward_hook(noted)
    finetune(task, given, np.arange(len(task.train)), config)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_records_that_do_not_fit_are_read_ahead_with_the_same_result(prepared, monkeypatch, mode):
    [held] = fitted(prepared, f"mode={mode}")
    monkeypatch.setattr(records.Records, "_held_batches", lambda *_: pytest.fail("they are held"))
    [read] = fitted(prepared, f"mode={mode}", "finetune.memory_gb=1e-9")
    assert same(held, read)
    np.testing.assert_array_equal(held.prediction, read.prediction)


# --- killed in the middle --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["predictions.parquet", "result.json"])
def test_no_result_stands_beside_the_model_or_predictions_of_another(data, encoder, tmp_path, monkeypatch, at):
    """The process dies (as by SIGKILL) where it has written the new model and would write the file `at`."""
    words = [RHYTHM, f"encoder={encoder}", f"data={data}", f"output={tmp_path}", *QUICK]
    transfer.main(words)

    class Killed(BaseException): ...

    def killed(path, *_):
        if Path(path).name == at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(result, "atomic" if at.endswith("parquet") else "write_text", killed)
        with pytest.raises(Killed):
            transfer.main([*words, "seed=1"])
    assert not (tmp_path / "result.json").exists()
    transfer.main([*words, "seed=1"])
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 1


def test_what_a_killed_one_left_is_removed_by_the_next(data, encoder, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / f"predictions.parquet{TEMPORARY}{os.uname().nodename}-{dead.pid}"
    left.write_bytes(b"half")
    words = [RHYTHM, f"encoder={encoder}", f"data={data}", f"output={tmp_path}", "bootstrap=0", "features=none"]
    transfer.main(words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions.parquet", "result.json"]


@pytest.mark.parametrize(("mode", "limit"), [("probe", 1), ("finetune", 50)])
def test_a_full_disk_is_one_line_and_leaves_no_half_a_file(data, encoder, tmp_path, mode, limit):
    """`limit`: KiB that a file may have; a fine-tuning writes its model first."""
    words = [RHYTHM, f"encoder={encoder}", f"data={data}", f"output={tmp_path / 'o'}", *QUICK, f"mode={mode}"]
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit * 1024, before[1]))
    try:
        with pytest.raises(
            UserError, match=r"output=.*: writing failed \(.*File too large\): free some space"
        ) as caught:
            transfer.main([*words, "features=none"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(caught.value)
    assert not [p.name for p in (tmp_path / "o").iterdir()]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_fewer_records_than_a_batch_are_one_batch(prepared):
    [kept] = fitted(prepared, "finetune.batch=1000", chosen=np.array([0, 2, 6]))
    assert kept.prediction.shape == (16, 3)


def test_records_of_one_class_are_one_line(prepared):
    with pytest.raises(
        UserError, match=r"the 4 train records in use all have the same label: raise fraction \(now 1\)"
    ):
        fitted(prepared, chosen=np.array([0, 1, 4, 5]))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("finetune.views=[gausian]", "unknown view 'gausian'; did you mean 'gaussian'"),
        ("finetune.seeds=[1,1]", r"finetune.seeds=\[1, 1\]: each seed once"),
        ("finetune.layer_decay=0", "finetune.layer_decay=0.0 must be > 0 and <= 1"),
        ("finetune.warmup=2", "finetune.warmup=2.0 must be >= 0 and <= 1"),
        ("finetune.patience=-1", "finetune.patience=-1 must be >= 0"),
        ("finetune.precision=fp16", "finetune.precision=fp16 is unknown; use auto, fp32, bf16"),
        ("device=cuda:99", "device=cuda:99 is not available"),
    ],
)
def test_mistakes_are_one_line(data, encoder, tmp_path, word, said):
    words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path / 'o'}", *QUICK, word]
    with pytest.raises(UserError, match=said) as caught:
        transfer.main([RHYTHM, *words])
    assert "\n" not in str(caught.value)
    assert not Path(tmp_path / "o" / "model").exists()
