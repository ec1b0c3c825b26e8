"""Shards have the bytes that commit 42d8aac gave them: the same build gives the same tars in every version."""

import hashlib
from pathlib import Path

from sharding import build as building
from sharding.options import BuildConfig
from tests.support.exact_recordings import write_recordings
from umbra.config import load

CONFIG = Path(__file__).parents[2] / "configs" / "shard" / "wfdb.yaml"
# sha256 of each tar that 42d8aac built from these recordings
TARS = {
    "test-000000.tar": "507addae785a8ddc5dd97fe974d5084b782ab922167639f8da528b9bbe5b1204",
    "train-000000.tar": "8485efdd30c9401b946226a4f62c7dd82b80131e19c5e7915f087889fc57a725",
    "train-000001.tar": "de92f9953483f6ff2c863c3eaa40146e8d149158800e366558a55666a0621428",
    "train-000002.tar": "5d6fa8fe7475b0a1574ff608cf36173b23bbd054e89e131e046b17159cf992c3",
    "train-000003.tar": "69fb8a42e21ca6ed66b3cbdbc7d291079c353677100691822fb8fed764aa89f1",
    "val-000000.tar": "73d0610c788631a3d0e74c2e395cd4700e5c8d2d8e94cb80fe0bd5a99060f127",
}


def test_tars_have_the_bytes_of_then(tmp_path):
    write_recordings(tmp_path / "recordings")
    words = [f"input={tmp_path / 'recordings'}", f"output={tmp_path / 'shards'}", "source.public=true"]
    building.build(load(BuildConfig, CONFIG, [*words, "samples_per_shard=8", "seed=3"]))
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "shards").glob("*.tar")}
    assert found == TARS
