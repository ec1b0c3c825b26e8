"""Tasks of each kind from a data set to a result: several labels, numbers, own columns, many tasks in one call."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import r2_score, roc_auc_score

from tests.support.handmade import make_run, make_shards, with_columns
from trainer import transfer
from trainer.evaluate import probe, store
from trainer.export import export
from umbra.errors import UserError

KINDS = ["SR", "SR", "AFIB", "AFIB", "SR", "SR", "STACH", "STACH"]
RHYTHM = "configs/transfer/rhythm.yaml"
AGE = {"SR": 30.0, "AFIB": 70.0, "STACH": 50.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The ECG tells age, `fast` and `wild`; `blank`, `same` and `text` are columns to stumble over."""
    place = tmp_path_factory.mktemp("data")
    parts = {"train": KINDS * 8, "val": KINDS * 3, "test": KINDS * 4}
    kinds = [kind for part in parts.values() for kind in part]
    rng, n = np.random.default_rng(0), len(kinds)
    age = [AGE[k] + float(rng.integers(-5, 6)) for k in kinds]
    age[3] = age[70] = None
    fast = [k == "STACH" for k in kinds]
    return with_columns(
        make_shards(place / "d", parts),
        place / "own",
        age=pa.array(age, pa.float32()),
        fast=fast,
        wild=pa.array([None if i == 5 else float(k == "AFIB") for i, k in enumerate(kinds)], pa.float64()),
        late=[int(i >= 88 and f) for i, f in enumerate(fast)],
        same=[1] * n,
        nested=[{"a": i} for i in range(n)],
        blank=pa.array([None] * n, pa.float64()),
        text=[f"report {i}" for i in range(n)],
        only_train=[("a", "b", "c")[i % 3] if i < 64 else "ab"[i % 2] for i in range(n)],
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return export(make_run(tmp_path_factory.mktemp("run") / "run"))


def run(data, encoder, output, *words):
    words = [f"encoder={encoder}", f"data={data}", f"output={output}", "bootstrap=50", "features=none", *words]
    transfer.main(words)
    return json.loads((output / "result.json").read_text())


def test_several_labels_a_record(data, encoder, tmp_path):
    found = run(data, encoder, tmp_path, "name=own", "kind=labels", "columns=[fast,wild]", "figure=true")
    assert found["classes"] == ["fast", "wild"]
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    aurocs = [roc_auc_score(table[f"y_{c}"], table[f"p_{c}"]) for c in found["classes"]]
    assert found["auroc"] == pytest.approx(np.mean(aurocs))
    assert found["auroc"] > 0.9
    assert found["counts"]["train"] == {"fast": 16, "wild": 16}
    assert "1 of 64 train records have no label and are left out" in found["notes"]
    assert 0 < found["per_class"]["fast"]["threshold"] < 1
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [[], ["mode=finetune", "finetune.lr=[3e-3]", "finetune.epochs=12"]], ids=str)
def test_a_number(data, encoder, tmp_path, words):
    words = [*words, "finetune.batch=16", "figure=true"]
    found = run(data, encoder, tmp_path, "configs/transfer/age.yaml", *words)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    assert found["metric"] == "r2"
    assert found["r2"] == pytest.approx(r2_score(table["y_age"], table["p_age"]), rel=1e-5)
    assert found["low"] < found["r2"] < found["high"]
    assert found["r2"] > (0.2 if words[0].startswith("mode") else 0.6)
    assert found["metrics"]["mae"]["value"] < 10
    assert "1 of 64 train records have no number" in found["notes"]
    assert set(found["by"]) == {"sex", "age"}, "all records are of one source"
    assert {"r2", "mae", "low"} <= set(found["by"]["sex"]["unknown"])
    assert (tmp_path / "figure.png").is_file()


@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_the_ridge_head_tells_probabilities(data, encoder, tmp_path, kind):
    found = run(data, encoder, tmp_path, RHYTHM, f"kind={kind}", "probe.head=ridge")
    assert found["auroc"] > 0.9
    assert set(found["chosen"]) == {"penalty"}
    table = pq.read_table(tmp_path / "predictions.parquet").to_pandas()
    told = table[[c for c in table if c.startswith("p_")]].to_numpy()
    assert ((told >= 0) & (told <= 1)).all()
    assert found["metrics"]["brier"]["value"] < 0.15


def test_few_labels_of_labels_and_numbers(data, encoder, tmp_path):
    found = run(data, encoder, tmp_path / "a", RHYTHM, "kind=labels", "fraction=0.001")
    assert found["counts"]["train"] == {"AFIB": 2, "STACH": 2, "SR": 4}, "2 of each; in AFIB records stands SR too"
    assert run(data, encoder, tmp_path / "b", "configs/transfer/age.yaml", "fraction=0.001")["train_rows"]["count"] == 2


def test_many_tasks_compute_the_features_once(data, encoder, tmp_path, monkeypatch, capsys):
    embedded, embed = [], store.embed
    monkeypatch.setattr(store, "embed", lambda e, part, batch: embedded.extend(part.row) or embed(e, part, batch))
    tasks = [RHYTHM, "configs/transfer/sex.yaml", "configs/transfer/age.yaml"]
    words = [f"encoder={encoder}", f"data={data}", "bootstrap=0", f"features={tmp_path / 'kept'}"]
    transfer.main([*tasks, *words, f"output={tmp_path / 'many'}"])
    assert sorted(embedded) == list(range(120)), "each record once, for all tasks"
    assert "note: rhythm: class PVC has no train examples" in capsys.readouterr().out
    for task in ("rhythm", "sex", "age"):
        transfer.main([f"configs/transfer/{task}.yaml", *words, f"output={tmp_path / task}"])
        one, many = (pq.read_table(p / "predictions.parquet") for p in (tmp_path / task, tmp_path / "many" / task))
        assert one.equals(many)
    assert len(embedded) == 120


def test_a_result_holds_what_recomputes_it(data, encoder, tmp_path):
    first = run(data, encoder, tmp_path / "a", RHYTHM, "fraction=0.3", "seed=4")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(first["config"], sort_keys=False))
    transfer.main([str(tmp_path / "again.yaml"), f"output={tmp_path / 'b'}"])
    second = json.loads((tmp_path / "b" / "result.json").read_text())
    first["config"]["output"] = second["config"]["output"]
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    assert first["train_rows"]["count"] == sum(first["counts"]["train"].values())
    assert {"umbra", "torch", "scikit-learn"} <= set(first["versions"])
    assert len(first["encoder_sha256"]) == 64


def test_a_class_without_test_examples_is_said_and_not_scored(data, encoder, tmp_path, capsys):
    found = run(data, encoder, tmp_path, "name=own", "column=only_train")
    assert found["classes"] == ["a", "b", "c"]
    assert set(found["per_class"]) == {"a", "b"}
    said = capsys.readouterr().out
    assert "class c has no test examples" in said
    assert "not scored" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["column=age"], "column 'age' holds [0-9]+ different numbers: use kind=number"),
        (["column=same"], "has 1 of the classes 1, two are needed"),
        (["column=same", "kind=labels"], "one that some records have and others have not is needed"),
        (["column=same", "kind=number"], "in the train split column 'same' is 1 in all records"),
        (["column=blank", "kind=number"], "in the train split column 'blank' has no number"),
        (["column=blank"], r"has 0 of the classes \(none\)"),
        (["columns=[fast,late]", "kind=labels", "by=[codes]"], "by: column 'codes' has several values a record"),
        (["column=fast", "by=[text]"], "by: column 'text' has [0-9]+ different values"),
        (["column=sex", "by=[sx]"], "by: column 'sx' is not in samples.parquet; did you mean 'sex'"),
        (["column=text", "kind=number"], "column 'text' holds 'report 0"),
        (["columns=[fast,fats]", "kind=labels"], "column 'fats' is not in .*did you mean 'fast'"),
        (["column=[fast,wild]", "kind=labels"], r"is not in .*; several columns are columns=\[fast,wild\]"),
        (["column=late", "kind=labels"], "has 0 of the classes late, one that some records have"),
        (["columns=[fast,fast]", "kind=labels"], "columns has 'fast' twice"),
        (["column=nested", "kind=labels"], "column 'nested' holds neither words nor numbers"),
        (["column=text", "kind=labls"], "kind=labls is unknown; use classes, labels, number"),
    ],
)
def test_a_column_that_makes_no_task_is_one_clear_line(data, encoder, tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        run(data, encoder, tmp_path / "o", "name=own", *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


def test_rows_that_a_merge_has_put_in_another_order_are_refused(data, encoder, tmp_path):
    table = pq.read_table(data / "samples.parquet")
    other = with_columns(data, tmp_path / "other")
    pq.write_table(table.sort_by("age"), other / "samples.parquet")
    with pytest.raises(UserError, match=r"rows are not in the order of the shards.*sort them by the columns shard and"):
        run(other, encoder, tmp_path / "o", "name=own", "column=only_train")
    again = pq.read_table(other / "samples.parquet").sort_by([("shard", "ascending"), ("index", "ascending")])
    pq.write_table(again, other / "samples.parquet")
    assert run(other, encoder, tmp_path / "o", "name=own", "column=only_train")["classes"] == ["a", "b", "c"]


def test_two_tasks_of_one_name_are_refused(data, encoder, tmp_path):
    with pytest.raises(UserError, match="two tasks are named 'rhythm'"):
        run(data, encoder, tmp_path, RHYTHM, RHYTHM)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("leads: [I]", r"task 'rhythm' has leads=\[\], task 'own' \['I'\]: .* share it; set leads on the line"),
        ("seconds: 2.5", "seconds=0.0, task 'own' 2.5"),
        ("mode: finetune", "mode='probe', task 'own' 'finetune'"),
        ("allow_leak: true", "allow_leak=False, task 'own' True"),
    ],
)
def test_tasks_that_need_another_encoder_are_not_evaluated_with_that_of_the_first(line, said, data, encoder, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(f"name: own\ncolumn: sex\n{line}\n")
    with pytest.raises(UserError, match=said):
        run(data, encoder, tmp_path / "o", RHYTHM, str(own))
    assert not (tmp_path / "o").exists()


def test_an_output_holds_what_belongs_to_its_result_and_the_last_line_names_it(data, encoder, tmp_path, capsys):
    tune = [RHYTHM, "mode=finetune", "finetune.lr=[3e-3]", "finetune.epochs=1", "figure=true"]
    run(data, encoder, tmp_path, *tune)
    names = ("result.json", "predictions.parquet", "figure.png", "model")
    assert capsys.readouterr().out.splitlines()[-1] == "written: " + ", ".join(f"{tmp_path / n}" for n in names)
    with pytest.raises(UserError, match=r"holds .*model of an earlier training.*choose another output=DIR"):
        run(data, encoder, tmp_path, RHYTHM)
    assert json.loads((tmp_path / "result.json").read_text())["mode"] == "finetune"
    run(data, encoder, tmp_path, *tune[:-1])
    assert not (tmp_path / "figure.png").exists()
    assert (tmp_path / "model").is_dir()


def test_ridge_heads_of_tasks_on_the_same_records_share_one_decomposition(data, encoder, tmp_path, monkeypatch):
    seen, decompose = [], probe.decompose
    monkeypatch.setattr(probe, "decompose", lambda x: seen.append(x.shape) or decompose(x))
    tasks = []
    for name in ("fast", "only_train"):
        tasks.append(tmp_path / f"{name}.yaml")
        tasks[-1].write_text(f"{{name: {name}, kind: labels, column: {name}}}")
    words = [f"encoder={encoder}", f"data={data}", "bootstrap=0", "features=none", "probe.head=ridge"]
    transfer.main([*map(str, tasks), *words, f"output={tmp_path / 'many'}"])
    assert len(seen) == 1
    transfer.main([str(tasks[1]), *words, f"output={tmp_path / 'one'}"])
    one, many = (pq.read_table(tmp_path / p / "predictions.parquet") for p in ("one", "many/only_train"))
    assert one.equals(many)
