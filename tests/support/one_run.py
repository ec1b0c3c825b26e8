"""Fixtures of a test of real runs: 32 ECGs in `shards`, and the directory `run` of a new run."""

import pytest

from tests.support.handmade import make_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards", {"train": ["SR", "AFIB"] * 16})


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"
