import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from tests.support.handmade import ARGS, ENCODER, SAMPLES, make_run, make_shards
from tests.support.ranges import ranged
from trainer import transfer
from trainer.evaluate import target
from trainer.evaluate.comparison import comparison
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.embed import device_of, embed, open_encoder
from trainer.evaluate.finetune import epochs, finetune, share, with_head
from trainer.evaluate.probe import features, probe
from trainer.evaluate.reading import read_task
from trainer.evaluate.result import run
from trainer.evaluate.scores import one_hot
from trainer.evaluate.store import Store
from trainer.evaluate.task import TaskConfig, fraction_of
from trainer.export import export
from umbra.config import load
from umbra.encoders.registry import build_encoder
from umbra.errors import UserError
from umbra.layers import keys

RHYTHM = "configs/transfer/rhythm.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    kinds = ["SR", "SR", "AFIB", "AFIB", "SR", "SR", "STACH", "STACH"]
    return make_shards(tmp_path_factory.mktemp("data") / "d", {"train": kinds * 8, "val": kinds * 3, "test": kinds * 4})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return export(make_run(tmp_path_factory.mktemp("run") / "run"))


def result(output):
    return json.loads((output / "result.json").read_text())


# --- labels ----------------------------------------------------------------------------------------------------------


def classes_of(values, classes, kind="classes"):
    """The names of the classes of each value; None for a record without a value."""
    names, read = target.read(TaskConfig("t", kind, classes=classes), {"train": pa.table({"codes": values})}, "task")
    return [None if np.isnan(row).any() else [n for n, k in zip(names, row) if k] for row in read["train"]]


def test_a_record_belongs_to_the_first_class_that_lists_one_of_its_codes_or_has_all_labels_that_do():
    listed, given = {"AFIB": ["1", "AFIB"], "SR": ["2"]}, [["2", "1"], ["2", "9"], ["9"], [], None]
    assert classes_of(given, listed) == [["AFIB"], ["SR"], [], [], None]
    assert classes_of(given, listed, "labels") == [["AFIB", "SR"], ["SR"], [], [], None]
    assert classes_of(["male", None, "female"], {}) == [["male"], None, ["female"]]
    assert classes_of([1.0, math.nan, 2.0], {"yes": ["1"]}) == [["yes"], None, []]
    assert classes_of([True, False], {}) == [["true"], ["false"]]


def test_one_rhythm_task_reads_snomed_and_scp_names():
    classes = load(TransferConfig, RHYTHM).classes
    for snomed, scp in [("164889003", "AFIB"), ("426177001", "SBRAD"), ("427084000", "STACH"), ("427393009", "SARRH")]:
        assert classes_of([[snomed, "426783006"], [scp, "SR"]], classes) == [[scp], [scp]]
    assert classes_of([["426783006"], ["NORM", "SR"]], classes) == [["SR"], ["SR"]]


@pytest.mark.parametrize("seed", [0, 1])
def test_fractions_are_stratified_nested_and_keyed(seed):
    label = np.array([0] * 200 + [1] * 40 + [2] * 5 + [3])
    patient = np.concatenate([np.arange(200) // 2, np.arange(46)])
    taken = {f: fraction_of(one_hot(label, 4), patient, f, seed) for f in (0.01, 0.1, 0.5, 1.0)}
    assert [np.bincount(label[taken[0.1]], minlength=4).tolist()] == [[20, 4, 2, 1]]
    assert [np.bincount(label[taken[0.01]], minlength=4).tolist()] == [[2, 2, 2, 1]]
    assert set(taken[0.01]) <= set(taken[0.1]) <= set(taken[0.5]) <= set(taken[1.0]) == set(range(246))
    assert np.array_equal(taken[0.1], fraction_of(one_hot(label, 4), patient, 0.1, seed))
    assert not np.array_equal(taken[0.1], fraction_of(one_hot(label, 4), patient, 0.1, seed + 2))
    again = {f: fraction_of(one_hot(label, 4), patient, f, seed, draw=1) for f in (0.01, 0.1)}
    assert set(again[0.01]) <= set(again[0.1]) != set(taken[0.1])
    zeros = taken[0.1][label[taken[0.1]] == 0]
    assert len(np.unique(patient[zeros])) == 10, "the 20 records of class 0 are both records of 10 patients"
    turn = np.random.default_rng([seed, 0x7A]).permutation(100)  # of draw 0, as before there were draws
    assert np.unique(patient[zeros]).tolist() == sorted(np.argsort(turn)[:10])


# --- whole way -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trained", "random"])
def test_probe_learns_what_can_be_learnt_and_writes_both_files(data, encoder, tmp_path, capsys, name):
    which = [f"encoder={encoder}"] if name == "trained" else ["encoder=random", f"like={encoder}"]
    transfer.main([RHYTHM, *which, f"data={data}", f"output={tmp_path}", "bootstrap=200"])
    found = result(tmp_path)
    assert found["auroc"] > 0.9
    assert found["low"] <= found["auroc"] <= found["high"]
    assert found["classes"] == ["AFIB", "STACH", "SR"]
    assert found["counts"]["train"] == {"AFIB": 16, "STACH": 16, "SR": 32}
    said = capsys.readouterr().out
    assert "class PVC has no train examples and is dropped" in said
    assert "macro" in said
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert table["row"].tolist() == list(range(88, 120))
    scores = table[["p_AFIB", "p_STACH", "p_SR"]].to_numpy()
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    values = [roc_auc_score(table["label"] == c, table[f"p_{c}"]) for c in found["classes"]]
    assert found["auroc"] == pytest.approx(np.mean(values), rel=1e-12)


def test_probe_on_labels_without_signal_is_near_chance(data, encoder, tmp_path):
    """Sex alternates by patient, whatever the signal: a test record's label must not leak into its score."""
    transfer.main(
        ["configs/transfer/sex.yaml", f"encoder={encoder}", f"data={data}", f"output={tmp_path}", "bootstrap=0"]
    )
    found = result(tmp_path)
    assert 0.2 < found["auroc"] < 0.8
    assert found["low"] is None
    assert any("test records have none of the classes" in note for note in found["notes"])


def test_test_labels_do_not_change_what_is_chosen(data, encoder, tmp_path, monkeypatch):
    config = load(TransferConfig, RHYTHM, [f"encoder={encoder}", f"data={data}", f"output={tmp_path}", "bootstrap=0"])
    task = read_task(config)
    given = features(task, Store(open_encoder(config, task.train), 64, None))
    chosen = np.arange(len(task.train))
    straight = probe(task, given, chosen, config.probe)
    task.test.target[:] = task.test.target[::-1].copy()
    assert np.array_equal(probe(task, given, chosen, config.probe).prediction, straight.prediction)


@pytest.mark.parametrize("mode", ["finetune", "scratch"])
def test_finetune_and_scratch_train_the_encoder(data, encoder, tmp_path, mode):
    words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path}", f"mode={mode}", "bootstrap=0"]
    transfer.main([RHYTHM, *words, "finetune.lr=[3e-3]", "finetune.epochs=10", "finetune.batch=16"])
    found = result(tmp_path)
    assert found["auroc"] > 0.9
    assert set(found["chosen"]) == {"lr", "epoch"}


def test_finetune_leaves_the_given_encoder_as_it_was(data, encoder, tmp_path):
    words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path}", "mode=finetune", "bootstrap=0", "fraction=0.1"]
    config = load(TransferConfig, RHYTHM, [*words, "finetune.epochs=1", "finetune.lr=[0.1]"])
    task = read_task(config)
    module = open_encoder(config, task.train)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    run(config, task, module)
    assert all((v == before[k]).all() for k, v in module.state_dict().items())


def batch_normed(folder):
    """A directory with a batch norm encoder whose running statistics are of no data."""
    args = ARGS | {"norm": "batch"}
    run = make_run(folder / "run", [3], encoder=ENCODER | {"args": args})
    weights = build_encoder("resnet18", 12, SAMPLES, args).state_dict()
    save_file({f"backbone.{k}": v for k, v in weights.items()}, run / "checkpoints" / "step-3" / "weights.safetensors")
    return export(run, statistics="running")


def test_a_frozen_encoder_keeps_its_statistics_and_takes_each_record_alone(data, tmp_path):
    config = load(TransferConfig, RHYTHM, [f"encoder={batch_normed(tmp_path)}", f"data={data}", "output=o"])
    task = read_task(config)
    model = open_encoder(config, task.train)
    before = {k: v.clone() for k, v in model.train().state_dict().items()}
    whole, split = (embed(model, task.test, batch) for batch in (256, 3))
    np.testing.assert_allclose(split, whole, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_random_encoder_gets_the_statistics_of_the_train_records(data, tmp_path):
    like = batch_normed(tmp_path)
    words = ["encoder=random", f"like={like}", f"data={data}", "output=o"]
    for batch in (8, 1000):
        config = load(TransferConfig, RHYTHM, [*words, f"batch={batch}"])
        task = read_task(config)
        model = open_encoder(config, task.train)
        ecgs = torch.from_numpy(task.train.shards.read_mv(task.train.index))
        first, norm = model.backbone.stem[0](model.scaling(ecgs)).detach(), model.backbone.stem[1]
        torch.testing.assert_close(norm.running_mean, first.mean((0, 2)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, first.var((0, 2), unbiased=False), rtol=1e-4, atol=1e-5)
    scratch = load(TransferConfig, RHYTHM, [*words, "mode=scratch"])
    assert (open_encoder(scratch, task.train).backbone.stem[1].running_mean == 0).all()


def test_fine_tuning_trains_with_the_statistics_of_its_batches_and_leaves_those_of_the_given_encoder(data, tmp_path):
    words = [f"encoder={batch_normed(tmp_path)}", f"data={data}", "output=o", "finetune.epochs=2", "finetune.batch=16"]
    config = load(TransferConfig, RHYTHM, words)
    task = read_task(config)
    given = open_encoder(config, task.train)
    before = {k: v.clone() for k, v in given.state_dict().items()}
    config.mode = "finetune"
    model, found = with_head(given, len(task.names), 0, config), []
    first = given.backbone.stem[0](given.scaling(torch.from_numpy(task.train.shards.read_mv(task.train.index))))
    for _ in epochs(share(task, np.arange(len(task.train)), config, torch.device("cpu")), model, 1e-9, seed=0):
        found.append(model.encoder.backbone.stem[1].running_mean.clone())
    for epoch, mean in enumerate(found, start=1):  # 4 steps an epoch, each a tenth of the way to its batch's mean
        torch.testing.assert_close(mean, (1 - 0.9 ** (4 * epoch)) * first.mean((0, 2)).detach(), rtol=0.1, atol=1e-3)
    finetune(task, given, np.arange(32), config)
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())


def test_the_same_call_gives_the_same_result(data, encoder, tmp_path):
    for name in "ab":
        words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path / name}", "fraction=0.2", "bootstrap=50"]
        transfer.main([RHYTHM, *words])
    one, two = (result(tmp_path / name) for name in "ab")
    one["config"]["output"] = two["config"]["output"]
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


MISTAKES = [
    (["column=codez"], "label column 'codez' is not in .*did you mean 'codes'"),
    (["column=codes", "fraction=0"], "fraction=0.0 must be > 0 and <= 1"),
    (["mode=prob"], "mode=prob is unknown; use probe, finetune, scratch"),
    (["encoder=random"], "needs like=DIR"),
    (["classes.X=[nothing]", "column=sex"], "has 0 of the classes"),
    (["frction=1"], "did you mean 'fraction'"),
    (["probe=3"], r"'probe' is a section: give probe.head=\.\.\. or probe.C="),
    (["seed=-1"], "seed=-1 must be >= 0"),
    (["batch=0"], "batch=0 must be >= 1"),
    (["bootstrap=1"], r"bootstrap=1 is too few for an interval: use 0 \(no intervals\), or 2 or more"),
    (["finetune.epochs=1000000000"], "finetune.epochs=1000000000 must be >= 1 and <= 100000"),
    (["classes=[a]"], r"key 'classes': this is a mapping: write classes=\{A: B\}, or \{\} for none"),
    (["classes={a:b}"], "key 'classes': write a: b, with a space after the colon, not a:b"),
    (["classes={SR: ['426783006']}"], "has 1 of the classes SR, two are needed"),
    (["--dryrun"], "unknown option --dryrun; known: --allow-leak, --help"),
    (["--allow_leak"], "unknown option --allow_leak; did you mean .--allow-leak.?"),
    (["bootstrap=-5"], "bootstrap=-5 must be >= 0"),
    (["probe.C=[1,0]"], r"probe.C=0.0 must be > 0"),
    (["finetune.lr=[nan]"], r"finetune.lr=nan must be a finite number"),
    (["finetune.epochs=0"], "finetune.epochs=0 must be >= 1"),
    (["finetune.batch=0"], "finetune.batch=0 must be >= 1"),
    (["device=gpu"], "device=gpu is not available; use auto or cpu"),
    (["device=cuda:99"], "device=cuda:99 is not available"),
]


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda v: v[-1] if isinstance(v, list) else "")
def test_mistakes_are_one_clear_line(data, encoder, tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        transfer.main([RHYTHM, f"encoder={encoder}", f"data={data}", f"output={tmp_path / 'o'}", *words])
    assert "\n" not in str(caught.value)


def test_a_class_can_be_left_out(data):
    words = ["classes={AFIB: ['164889003', AFIB], SR: ['426783006', SR]}", f"data={data}"]
    assert read_task(load(TransferConfig, RHYTHM, words)).names == ["AFIB", "SR"]


def test_every_number_of_the_config_has_a_range():
    numbers = {k for k, kind in keys(TransferConfig) if kind in (int, float, list[int], list[float])}
    assert numbers == ranged(TransferConfig)


@pytest.mark.parametrize("mode", ["probe", "finetune"])
def test_an_encoder_of_another_length_takes_the_datas_windows_whole(mode, data, tmp_path, capsys):
    short = export(make_run(tmp_path / "run", encoder=ENCODER | {"samples": 100}))
    fit = ["finetune.epochs=1", "finetune.lr=[1e-3]"] if mode == "finetune" else []
    words = [f"data={data}", f"mode={mode}", "bootstrap=0", *fit]
    transfer.main([RHYTHM, *words, f"encoder={short}", f"output={tmp_path / 'short'}"])
    assert f"# the encoder's windows are 1 s, those of {data} 2.56 s, which it takes whole" in capsys.readouterr().out
    whole = export(make_run(tmp_path / "whole"))
    transfer.main([RHYTHM, *words, f"encoder={whole}", f"output={tmp_path / 'whole-result'}"])
    assert "takes whole" not in capsys.readouterr().out
    assert result(tmp_path / "short")["auroc"] == result(tmp_path / "whole-result")["auroc"]


def test_an_encoder_of_one_length_refuses_other_windows(data, tmp_path, monkeypatch):
    short = export(make_run(tmp_path / "run", encoder=ENCODER | {"samples": 100}))
    monkeypatch.setattr("umbra.encoders.resnet.ResNet.any_length", False)
    with pytest.raises(UserError, match=r"has windows of 2.56 s: resnet18 takes only ECGs of the length .*, 1 s"):
        transfer.main([RHYTHM, f"encoder={short}", f"data={data}", f"output={tmp_path / 'o'}"])


def test_a_gpu_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="device=cuda is not available; use auto or cpu"):
        device_of("cuda")


@pytest.mark.parametrize("place", ["taken", "taken/below"])
def test_an_output_that_is_a_file_is_refused_before_the_work(data, encoder, tmp_path, monkeypatch, place):
    (tmp_path / "taken").write_text("mine")
    monkeypatch.setattr(transfer, "run_all", lambda *given: pytest.fail("the work began"))
    with pytest.raises(UserError, match=r"output=.*taken is not a folder"):
        transfer.main([RHYTHM, f"encoder={encoder}", f"data={data}", f"output={tmp_path / place}"])


def test_results_are_compared_also_without_an_interval(data, encoder, tmp_path):
    words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path}", "bootstrap=0", "fraction=0.5"]
    transfer.main([RHYTHM, *words])
    said = comparison([str(tmp_path / "result.json")])
    assert f"{result(tmp_path)['auroc']:.3f} (no interval)" in said
    assert "50%" in said


@pytest.mark.parametrize("text", ["", "[1, 2]", "{}", '{"auroc": null}', "\x00\x01"])
def test_what_is_no_result_cannot_be_compared(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=r"r\.json is damaged .*: give result\.json files"):
        transfer.main(["compare", str(tmp_path / "r.json")])


def test_comparing_nothing_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="name the results to compare"):
        transfer.main(["compare"])
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\): give result\.json files"):
        transfer.main(["compare", str(tmp_path)])


def test_data_of_another_rate_or_other_leads_are_refused(data, encoder, tmp_path):
    config = json.loads((encoder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"rate": 250.0}))
    words = [RHYTHM, "encoder=random", f"like={other}", f"data={data}", f"output={tmp_path / 'o'}"]
    with pytest.raises(UserError, match=r"the encoder needs rate 250.0, .* has 100.0"):
        transfer.main(words)
    scaling = {"mode": "fixed", "mean_mv": [0.0] * 2, "std_mv": [0.5] * 2}
    (other / "config.json").write_text(json.dumps(config | {"leads": ["I", "II"], "scaling": scaling}))
    with pytest.raises(UserError, match=r"the encoder needs leads \['I', 'II'\], .*: build the shards with the rate"):
        transfer.main(words)
