import math

import numpy as np
import pyarrow as pa
import pytest

from trainer.evaluate import target
from trainer.evaluate.task import TaskConfig
from umbra.errors import UserError


def read(cells, **keys):
    """Names and target of one split with these columns; the task takes the first unless it says otherwise."""
    table = pa.table(cells)
    config = TaskConfig("t", **({"column": table.column_names[0]} | keys))
    names, found = target.read(config, {"train": table}, "task 't'")
    return config, names, found["train"]


def test_labels_are_all_that_apply_and_without_classes_each_value():
    cells = {"codes": [["A", "B"], ["B"], [], None]}
    _, names, found = read(cells, kind="labels")
    assert names == ["A", "B"]
    np.testing.assert_array_equal(found, [[1, 1], [0, 1], [0, 0], [math.nan] * 2])
    _, names, found = read(cells, kind="labels", classes={"any": ["A", "B"], "only b": ["B"]})
    np.testing.assert_array_equal(found[:3], [[1, 1], [1, 1], [0, 0]])


def test_columns_of_truths_are_a_label_each_whatever_their_type():
    cells = {"a": [True, False, None], "b": [1.0, 0.0, 1.0], "c": ["yes", "No", "1"], "d": [0, 1, 1]}
    config, names, found = read(cells, kind="labels", columns=list("abcd"))
    assert names == list("abcd")
    np.testing.assert_array_equal(found, [[1, 1, 1, 0], [0, 0, 0, 1], [math.nan, 1, 1, 1]])
    assert target.kept(config, found).tolist() == [True, True, False]
    for cells in ([True, False], ["True", "False"], ["YES", "no"], [1.0, 0.0]):
        _, names, found = read({"a": cells}, kind="labels")
        assert (names, found.tolist()) == (["a"], [[1.0], [0.0]]), cells


def test_numbers_leave_out_what_is_missing_or_infinite():
    config, names, found = read(
        {"x": [1.5, None, math.nan, math.inf, 3.0], "y": [1, 2, 3, 4, 5]}, kind="number", columns=["x", "y"]
    )
    assert names == ["x", "y"]
    assert target.kept(config, found).tolist() == [True, False, False, False, True]


def test_an_empty_text_and_a_missing_item_are_no_values():
    config, names, found = read({"grade": ["x", "", "y"]})
    assert (names, target.kept(config, found).tolist()) == (["x", "y"], [True, False, True])
    _, names, found = read({"codes": [["A", None], [""]]}, kind="labels")
    assert (names, found.tolist()) == (["A"], [[1.0], [0.0]])


def test_a_label_that_never_varies_is_dropped_and_one_that_nobody_has():
    config, names, found = read({"codes": [["A", "B"], ["A"]]}, kind="labels", classes={k: [k] for k in "ABC"})
    used, notes = target.usable(config, names, found, "task")
    assert [names[k] for k in used] == ["B"]
    assert notes == ["class C has no train examples and is dropped", "all train records have A: it is dropped"]


def test_records_without_any_label_are_kept_or_dropped():
    for unlabelled, kept in (("keep", [True, True, False]), ("drop", [True, False, False])):
        config, _, found = read({"codes": [["A"], [], None]}, kind="labels", unlabelled=unlabelled)
        assert target.kept(config, found).tolist() == kept


AGES = {"age": [float(n) for n in range(30, 50)]}
WORDS = {"report": [f"word {n}" for n in range(300)]}


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        (AGES, {}, "column 'age' holds 20 different numbers: use kind=number, or list the values"),
        ({"age": [30.0, 40.0]}, {}, "column 'age' holds 2 different numbers: use kind=number"),
        ({"x": list(range(11))}, {}, "column 'x' holds 11 different numbers: use kind=number"),
        (WORDS, {}, "column 'report' holds 300 different values, as free text does"),
        (WORDS, {"kind": "labels"}, "column 'report' holds 300 different values, as free text does"),
        (WORDS, {"kind": "number"}, "column 'report' holds 'word 0', not numbers: use kind=classes"),
        ({"x": [True]}, {"kind": "number"}, "column 'x' holds 'true', not numbers"),
        ({"codes": [["A"]]}, {}, "column 'codes' has several values a record"),
        ({"codes": [["A"]]}, {"kind": "number"}, "column 'codes' holds"),
        ({"a": ["1"], "b": ["x"]}, {"kind": "labels", "columns": ["a", "b"]}, "column 'b' holds 'x', a label"),
        ({"a": [2], "b": [1]}, {"kind": "labels", "columns": ["a", "b"]}, "column 'a' holds '2', a label is 0 or 1"),
        ({"a": [["A"]], "b": [1]}, {"kind": "labels", "columns": ["a", "b"]}, "use it alone, as column=a"),
        ({"a": [1], "b": [1]}, {"columns": ["a", "b"]}, "kind=classes takes one column"),
        (AGES, {"kind": "number", "classes": {"A": ["1"]}}, "kind=number has no classes"),
    ],
)  # fmt: skip
def test_a_column_of_another_kind_is_one_clear_line(columns, keys, said):
    with pytest.raises(UserError, match=said) as caught:
        read(columns, **keys)
    assert "\n" not in str(caught.value)


def test_a_number_that_never_varies_is_refused():
    for values, said in (([50.0, 50.0, None], "is 50 in all records"), ([None, math.nan], "has no number")):
        config, names, found = read({"age": pa.array(values, pa.float32())}, kind="number")
        with pytest.raises(UserError, match=f"column 'age' {said}"):
            target.usable(config, names, found, "task")
