import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from tests.support.results import BAD, GOOD, LABEL, PATIENT, RNG, N, write
from trainer.evaluate.comparison import comparison
from trainer.evaluate.scores import bootstrap_auroc, interval, one_hot
from umbra.errors import UserError


def rows(words):
    return list(csv.DictReader(io.StringIO(comparison([*words, "format=csv"]))))


def test_differences_are_paired_by_patients(tmp_path):
    paths = [write(tmp_path / "good", GOOD), write(tmp_path / "bad", BAD)]
    *_, auroc, auprc = rows([*paths, "bootstrap=500"])
    assert (auroc["figure"], auprc["figure"]) == ("auroc", "auprc")
    expected = roc_auc_score(LABEL, BAD[:, 1]) - roc_auc_score(LABEL, GOOD[:, 1])
    assert float(auroc["value"]) == pytest.approx(expected, rel=1e-5)
    one, two = (bootstrap_auroc(one_hot(LABEL, 2), p, PATIENT, 500).mean(1) for p in (GOOD, BAD))
    assert [float(auroc["low"]), float(auroc["high"])] == pytest.approx(interval(two - one), rel=1e-5)
    assert (auroc["records"], auroc["patients"]) == ("200", "100")


def test_a_result_is_no_different_from_itself_and_the_reference_can_be_named(tmp_path):
    paths = [write(tmp_path / name, p) for name, p in (("a", BAD), ("b", GOOD), ("c", GOOD))]
    found = [
        r for r in rows([*paths, f"reference={paths[1]}", "bootstrap=50"]) if r["figure"] == "auroc" and r["minus"]
    ]
    assert [r["result"] for r in found] == [paths[0], paths[2]]
    assert [float(found[1][k]) for k in ("value", "low", "high")] == [0, 0, 0]
    assert float(found[0]["value"]) < 0


def test_order_of_the_records_does_not_matter_but_which_does(tmp_path):
    turned = np.arange(N)[::-1]
    paths = [write(tmp_path / "a", GOOD), write(tmp_path / "b", GOOD[turned], rows=turned)]
    assert float(rows([*paths, "bootstrap=20"])[2]["value"]) == 0
    paths.append(write(tmp_path / "c", GOOD[:150], rows=np.arange(150)))
    assert rows([*paths, "bootstrap=20"])[-1]["why"] == "tested on different records"


def test_results_of_one_encoder_are_told_apart(tmp_path):
    """By what differs: the share of the labels, the seed, else the path."""
    given = [(0.5, 0), (0.1, 0), (0.1, 1), (0.1, 1)]
    paths = [
        write(tmp_path / f"fraction={f}" / str(i), GOOD, encoder="e", fraction=f, seed=seed)
        for i, (f, seed) in enumerate(given)
    ]
    said = comparison([*paths, write(tmp_path / "o", GOOD, encoder="o"), "bootstrap=10"])
    first = "e, 0.5 of the labels"
    names = ["e, 0.1 of the labels, seed 0", *(f"e, 0.1 of the labels, seed 1, {p}" for p in paths[2:]), "o"]
    assert [line.partition(")  ")[2].strip() for line in said.splitlines()[1:6]] == [first, *names]
    assert all(f"{name} - {first}\n" in said + "\n" for name in names), said
    markdown = comparison([*paths, "--markdown", "bootstrap=10"])
    assert f"| t | {names[0]} | {first} | AUROC |" in markdown


def test_results_that_differ_in_their_draw_alone_are_told_apart(tmp_path):
    paths = [write(tmp_path / n / "e", GOOD, seed=1, **more) for n, more in (("a", {}), ("b", {"draw": 3}))]
    text = comparison([*paths, "bootstrap=20"])
    assert text.rstrip().endswith("e, seed 1, draw 3 - e, seed 1")
    assert "| 1, draw 3 |" in comparison([*paths, "--markdown", "bootstrap=20"])
    assert [row["draw"] for row in rows([*paths, "bootstrap=20"])][:2] == ["0", "3"]


def test_what_cannot_be_paired_says_why(tmp_path):
    first = write(tmp_path / "a", GOOD, data={"fingerprint": "1"})
    other = write(tmp_path / "b", GOOD, data={"fingerprint": "2"})
    assert "tested on another data set" in comparison([first, other])
    bare = write(tmp_path / "c", GOOD)
    (tmp_path / "c" / "predictions.parquet").unlink()
    assert "no predictions.parquet beside one of them" in comparison([first, bare])
    assert "difference" not in comparison([first, write(tmp_path / "d", GOOD, task="u")]), "two tasks do not pair"
    changed = write(tmp_path / "e", GOOD, predictions={"sha256": "0"})
    with pytest.raises(UserError, match=r"e/predictions\.parquet has been changed since"):
        comparison([first, changed])


def test_all_forms_are_written(tmp_path):
    paths = [write(tmp_path / "good", GOOD), write(tmp_path / "bad", BAD), write(tmp_path / "u", GOOD, task="u")]
    said = comparison([*paths, f"output={tmp_path / 'out'}", "bootstrap=50"])
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    assert markdown == comparison([*paths, "--markdown", "bootstrap=50"]) + "\n"
    assert "| t | bad | good | AUROC | -0." in markdown
    assert (tmp_path / "out" / "comparison.csv").read_text().count("\n") == 6
    assert (tmp_path / "out" / "forest.png").read_bytes().startswith(b"\x89PNG")
    assert "bad - good" in said


def test_numbers_are_compared_by_r2_and_errors(tmp_path):
    true = RNG.normal(50, 10, N)
    paths = []
    for name, spread in (("near", 3), ("far", 8)):
        (tmp_path / name).mkdir()
        told = true + RNG.normal(0, spread, N)
        table = {"row": np.arange(N), "patient": PATIENT, "y_age": true, "p_age": told}
        pq.write_table(pa.table(table), tmp_path / name / "predictions.parquet")
        result = {"task": "age", "kind": "number", "metric": "r2", "encoder": name, "fraction": 1, "r2": 0.5}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        paths.append(str(tmp_path / name / "result.json"))
    found = {r["figure"]: r for r in rows([*paths, "bootstrap=100"]) if r["minus"]}
    assert float(found["r2"]["high"]) < 0 < float(found["mae"]["low"])
    assert "R2 0.500 (no interval)" in comparison(paths)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reference=other.json"], "reference=other.json is not among the results"),
        (["format=html"], "format=html is unknown; use text, markdown, csv"),
        (["--html"], "unknown option --html; did you mean '--help'|unknown option --html"),
        (["frmat=csv"], "did you mean 'format'"),
        (["bootstrap=1"], "bootstrap=1 must be >= 2"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, words, said):
    with pytest.raises(UserError, match=said) as caught:
        comparison([write(tmp_path / "a", GOOD), *words])
    assert "\n" not in str(caught.value)
