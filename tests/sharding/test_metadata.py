"""The table of a data set: what may become a label, and how names and tables are read."""

from __future__ import annotations

import openpyxl
import pytest

from sharding.metadata import TableConfig, label, read_table
from umbra.errors import UserError


def table(folder, text: str, encoding: str = "utf-8", **keys):
    (folder / "t.csv").write_bytes(text.encode(encoding))
    return read_table(folder, TableConfig(file=["t.csv"], **keys), 100.0)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("name", ["Smith, John", "Doe, Jane"], "2 words that are not allowed"),
        ("mrn", ["7000004", "7000005"], "looks like an identifier"),
        ("dob", ["19500113", "19610202"], "looks like an identifier"),
        ("dobde", ["04.02.1950", "05.02.1950"], "words that are not allowed"),
        ("age", ["97", "30"], "must stay in private"),
        ("sex", ["M", "F"], "must stay in private"),
        ("patient_id", ["1", "2"], "must stay in private"),
    ],
)
def test_what_names_somebody_is_no_label(tmp_path, column, values, said):
    rows = "".join(f'r{i},"{v}"\n' for i, v in enumerate(values * 3))
    with pytest.raises(UserError, match=said):
        label(table(tmp_path, f"record,{column}\n{rows}"), column)


def test_labels_are_numbers_or_listed_words(tmp_path):
    found = table(tmp_path, "record,fold,qt,af,group\na,1,400.5,True,x\nb,2,,False,y\nc,1,380,True,\n")
    assert label(found, "fold").to_pylist() == [1, 2, 1]
    assert str(label(found, "qt").to_pylist()) == "[400.5, nan, 380.0]"
    assert label(found, "af").to_pylist() == ["True", "False", "True"]
    assert label(found, "group", {"x", "y"}).to_pylist() == ["x", "y", None]
    with pytest.raises(UserError, match=r"as 'x': if they identify nobody, list them in source\.vocabulary"):
        label(found, "group")


def test_one_record_has_one_name(tmp_path):
    names = ["a/b.hea", "./a/b", "a//b", "a\\\\b.dat", "a/./b", "../b", "c.d"]
    found = table(tmp_path, "record\n" + "".join(f"{n}\n" for n in names)).records.to_pylist()
    assert found == ["a/b", "a/b", "a/b", "a/b", "a/b", "../b", "c.d"]


def test_a_table_that_is_no_utf8_is_named_with_the_mend(tmp_path):
    with pytest.raises(UserError, match=r"t\.csv is not UTF-8: save it as UTF-8"):
        table(tmp_path, "record,note\na,Müller\n", "latin-1")


def test_rows_of_a_spreadsheet_may_be_short(tmp_path):
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    for row in (["record", "age", "sex"], ["a", 50], ["b", 60, "F"], ["c"]):
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    found = read_table(tmp_path, TableConfig(file=["t.xlsx"]), 100.0)
    assert found.columns["age"].to_pylist() == ["50", "60", ""]
    assert found.columns["sex"].to_pylist() == ["", "F", ""]
