"""The tasks of configs/transfer against one another, the vocabularies, and a published table of PTB-XL."""

import csv
import os
import re
from pathlib import Path

import pytest

from sharding.deidentify import codes
from sharding.vocabulary import SCP, SNOMED
from trainer.evaluate.config import TransferConfig
from umbra.config import load

TASKS = sorted(Path("configs/transfer").glob("*.yaml"))


def task(name):
    return load(TransferConfig, f"configs/transfer/{name}.yaml")


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_a_task_has_the_name_of_its_file_and_codes_that_a_build_keeps(path):
    config = load(TransferConfig, path)
    assert config.name == path.stem
    if config.column == "codes":
        listed = [code for codes in config.classes.values() for code in codes]
        assert [code for code in listed if code not in SCP | SNOMED] == []
        assert len(set(listed)) == len(listed), "a code of two classes"


def test_the_statements_are_the_71_of_scp_each_by_its_own_code():
    classes = task("ptbxl-statements").classes
    assert set(classes) == set(SCP)
    assert len(classes) == 71
    assert all(listed[0] == name for name, listed in classes.items())
    for name, listed in task("cinc2021").classes.items():
        scp = [code for code in listed if code in SCP]
        assert all(set(listed) - set(scp) <= set(classes[code]) for code in scp), f"{name} differs from its statement"


def test_superclasses_are_whole_subclasses_and_these_whole_statements():
    statements, sub, sup = (task(f"ptbxl-{n}").classes for n in ("statements", "subclass", "superclass"))
    assert (len(sub), len(sup)) == (23, 5)
    assert {c for of in sub.values() for c in of} == {c for of in sup.values() for c in of} - {"164865005"}
    for name, listed in sub.items():
        assert sum(set(listed) <= set(of) for of in sup.values()) == 1, name
        assert set(listed) == {c for s in listed if s in SCP for c in statements[s]}, name


def test_the_scored_classes_of_cinc_2021_are_30_codes_of_which_four_pairs_count_as_one():
    classes = task("cinc2021").classes
    snomed = {name: [c for c in listed if c in SNOMED] for name, listed in classes.items()}
    assert sum(map(len, snomed.values())) == 30
    assert {name for name, listed in snomed.items() if len(listed) == 2} == {"CLBBB", "CRBBB", "PAC", "PVC"}


def test_superclasses_of_ptbxl_records_are_those_of_the_published_table():
    folder = Path(os.environ.get("UMBRA_REAL_DATA", "/nowhere")) / "ptbxl100"
    if not folder.is_dir():
        pytest.skip("no real data here")
    classes = {name: set(listed) for name, listed in task("ptbxl-superclass").classes.items()}
    with open(folder / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        kept, _ = codes(row["scp_codes"])
        found = {name for name, listed in classes.items() if listed & set(kept)}
        assert found == set(re.findall("[A-Z]+", row["super_class"])), row["ecg_id"]
