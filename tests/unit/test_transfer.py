import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from sharding.config import UserError, load
from tests.unit.handmade import make_run, make_shards
from trainer import transfer
from trainer.export import export
from trainer.transfer import TransferConfig, bootstrap_auroc, class_of, fraction_of, weighted_auroc

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


# --- AUROC -----------------------------------------------------------------------------------------------------------


def test_weighted_auroc_is_that_of_the_repeated_records_ties_included():
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.3
    score = np.round(rng.normal(size=60) + positive, 1)
    weight = rng.integers(0, 4, (20, 60))
    expected = [roc_auc_score(np.repeat(positive, w), np.repeat(score, w)) for w in weight]
    np.testing.assert_allclose(weighted_auroc(positive, score, weight), expected, rtol=1e-12)


def test_weighted_auroc_without_positives_is_nan():
    value = weighted_auroc(np.array([True, False]), np.array([0.1, 0.2]), np.array([[0, 2], [1, 1]]))
    assert np.isnan(value[0])
    assert value[1] == 0.0


def test_bootstrap_draws_patients_not_records():
    """With one record a patient the spread is that of the records; with copies of each it must not shrink."""
    rng = np.random.default_rng(1)
    label, score = rng.integers(0, 2, 80), rng.random((80, 2))
    score[:, 1] += 0.3 * label
    once = bootstrap_auroc(label, score, np.arange(80), 400).mean(1)
    copied = bootstrap_auroc(np.tile(label, 3), np.tile(score, (3, 1)), np.tile(np.arange(80), 3), 400).mean(1)
    np.testing.assert_allclose(once, copied, rtol=1e-12)
    as_records = bootstrap_auroc(np.tile(label, 3), np.tile(score, (3, 1)), np.arange(240), 400).mean(1)
    assert as_records.std() < 0.75 * once.std()


# --- labels ----------------------------------------------------------------------------------------------------------


def test_a_record_belongs_to_the_first_class_that_lists_one_of_its_codes():
    classes = {"AFIB": ["1", "AFIB"], "SR": ["2"]}
    assert class_of(["2", "1"], classes) == "AFIB"
    assert class_of(["2", "9"], classes) == "SR"
    assert class_of(["9"], classes) is None
    assert class_of(None, classes) is None
    assert class_of("male", {}) == "male"
    assert class_of(1.0, {"yes": ["1"]}) == "yes"
    assert class_of(float("nan"), {}) is None


def test_one_rhythm_task_reads_snomed_and_scp_names():
    classes = load(TransferConfig, RHYTHM).classes
    for snomed, scp in [("164889003", "AFIB"), ("426177001", "SBRAD"), ("427084000", "STACH"), ("427393009", "SARRH")]:
        assert class_of([snomed, "426783006"], classes) == class_of([scp, "SR"], classes) == scp
    assert class_of(["426783006"], classes) == class_of(["NORM", "SR"], classes) == "SR"


@pytest.mark.parametrize("seed", [0, 1])
def test_fractions_are_stratified_nested_and_keyed(seed):
    label = np.array([0] * 200 + [1] * 40 + [2] * 5 + [3])
    patient = np.concatenate([np.arange(200) // 2, np.arange(46)])
    taken = {f: fraction_of(label, patient, f, seed) for f in (0.01, 0.1, 0.5, 1.0)}
    assert [np.bincount(label[taken[0.1]], minlength=4).tolist()] == [[20, 4, 2, 1]]
    assert [np.bincount(label[taken[0.01]], minlength=4).tolist()] == [[2, 2, 2, 1]]
    assert set(taken[0.01]) <= set(taken[0.1]) <= set(taken[0.5]) <= set(taken[1.0]) == set(range(246))
    assert np.array_equal(taken[0.1], fraction_of(label, patient, 0.1, seed))
    assert not np.array_equal(taken[0.1], fraction_of(label, patient, 0.1, seed + 2))
    zeros = taken[0.1][label[taken[0.1]] == 0]
    assert len(np.unique(patient[zeros])) == 10, "the 20 records of class 0 are both records of 10 patients"


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
    task = transfer.read_task(config)
    given = transfer.features(transfer.open_encoder(config), task, 64)
    chosen = np.arange(len(task.train))
    straight = transfer.probe(task, given, chosen, config.probe)
    task.test.label[:] = task.test.label[::-1].copy()
    assert np.array_equal(transfer.probe(task, given, chosen, config.probe).probability, straight.probability)


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
    module = transfer.open_encoder(config)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    transfer.run(config, transfer.read_task(config), module)
    assert all((v == before[k]).all() for k, v in module.state_dict().items())


def test_the_same_call_gives_the_same_result(data, encoder, tmp_path):
    for name in "ab":
        words = [f"encoder={encoder}", f"data={data}", f"output={tmp_path / name}", "fraction=0.2", "bootstrap=50"]
        transfer.main([RHYTHM, *words])
    one, two = (result(tmp_path / name) for name in "ab")
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["column=codez"], "label column 'codez' is not in .*nearest columns: codes"),
        (["column=codes", "fraction=0"], r"fraction=0.0: must lie in \(0, 1\]"),
        (["mode=prob"], "known modes are probe, finetune, scratch"),
        (["encoder=random"], "needs like=DIR"),
        (["classes.X=[nothing]", "column=sex"], "has 0 of the classes"),
        (["frction=1"], "did you mean 'fraction'"),
    ],
)
def test_mistakes_are_one_clear_line(data, encoder, tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        transfer.main([RHYTHM, f"encoder={encoder}", f"data={data}", f"output={tmp_path / 'o'}", *words])
    assert "\n" not in str(caught.value)


def test_data_of_another_length_is_refused(data, encoder, tmp_path):
    config = json.loads((encoder / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps(config | {"rate": 250.0}))
    with pytest.raises(UserError, match=r"the encoder takes rate 250.0, .* has 100.0"):
        transfer.main([RHYTHM, "encoder=random", f"like={other}", f"data={data}", f"output={tmp_path / 'o'}"])
