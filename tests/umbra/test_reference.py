"""The pages of the config keys say what the dataclasses say, and every key says what it means."""

from pathlib import Path

import pytest

from umbra.reference import SCHEMAS, reference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_page_of_the_docs_is_that_of_the_code(name):
    page = ROOT / "docs" / "keys" / f"{name}.md"
    assert page.read_text() == reference(name), "run `make keys`"


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_has_a_meaning(name):
    rows = [line.split(" | ") for line in reference(name).splitlines() if line.startswith("| `")]
    silent = [row[0] for row in rows if not row[-1].strip(" |")]
    assert rows
    assert not silent
