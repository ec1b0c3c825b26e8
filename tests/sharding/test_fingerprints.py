"""The fingerprints of signals that a build and a join leave in `private/`, against the tars."""

from pathlib import Path

import numpy as np
import pytest

from sharding import build as building
from sharding import join as joining
from sharding.join import JoinConfig
from sharding.options import BuildConfig
from tests.support.exact_recordings import write_recordings
from umbra.config import load
from umbra.errors import UserError
from umbra.schema import read_manifest
from umbra.signal_fingerprints import NUMBERS, computed, file_of, leads_of, of_shard


def build(recordings: Path, output: Path, *words: str) -> Path:
    fixed = [f"input={recordings}", f"output={output}", "source.public=true", "samples_per_shard=8"]
    building.build(load(BuildConfig, None, [*fixed, *words]))
    return output


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    write_recordings(folder)
    return folder


@pytest.fixture
def built(recordings, tmp_path) -> Path:
    return build(recordings, tmp_path / "built")


def from_tars(root: Path) -> dict[str, np.ndarray]:
    m = read_manifest(root)
    return {s.name: computed(root, m, s, leads_of(m.leads), m.samples / m.rate) for s in m.shards}


def kept(root: Path) -> dict[str, np.ndarray]:
    """Those in the files: the tars are out of reach."""
    manifest = read_manifest(root)
    for shard in manifest.shards:
        (root / shard.name).rename(root / f"{shard.name}.away")
    found = {s.name: of_shard(root, manifest, s) for s in manifest.shards}
    for shard in manifest.shards:
        (root / f"{shard.name}.away").rename(root / shard.name)
    return found


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_build_keeps_those_of_its_windows_in_private_alone(built):
    manifest, found = read_manifest(built), kept(built)
    assert same(found, from_tars(built))
    assert {name: array.shape for name, array in found.items()} == {
        s.name: (s.samples, NUMBERS) for s in manifest.shards
    }
    assert not [p for p in built.rglob("*fingerprint*") if "private" not in p.parts]


def test_a_join_has_those_of_its_own_shards(recordings, built, tmp_path):
    other = build(recordings, tmp_path / "other", "source.name=other", "seed=5")
    joined = tmp_path / "joined"
    joining.join(JoinConfig([str(built), str(other)], str(joined)))
    assert same(kept(joined), from_tars(joined))


def test_without_files_they_are_computed_once(built):
    manifest, shard = read_manifest(built), read_manifest(built).shards[0]
    file_of(built, shard.name).unlink()
    assert np.allclose(of_shard(built, manifest, shard), from_tars(built)[shard.name], atol=1e-6)
    assert same(kept(built), from_tars(built))


def test_without_a_private_folder_nothing_is_written(built):
    manifest = read_manifest(built)
    (built / "private").rename(built.parent / "elsewhere")
    assert len(of_shard(built, manifest, manifest.shards[0])) == manifest.shards[0].samples
    assert not (built / "private").exists()


def test_those_of_another_shard_are_not_taken(built):
    manifest = read_manifest(built)
    one, other = [s for s in manifest.shards if s.split == "train"][:2]
    file_of(built, other.name).write_bytes(file_of(built, one.name).read_bytes())
    assert np.allclose(of_shard(built, manifest, other), from_tars(built)[other.name], atol=1e-6)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)])
def test_a_damaged_file_is_one_line(built, damage):
    manifest = read_manifest(built)
    path = file_of(built, manifest.shards[0].name)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} is damaged .*: delete it, it is then computed again"):
        of_shard(built, manifest, manifest.shards[0])


@pytest.mark.parametrize(
    ("harm", "said"), [(lambda p: p.unlink(), "cannot be read"), (lambda p: p.write_bytes(b"short"), "is cut off")]
)
def test_a_shard_that_is_needed_and_not_whole_is_one_line(built, harm, said):
    manifest = read_manifest(built)
    shard = manifest.shards[0]
    file_of(built, shard.name).unlink()
    harm(built / shard.name)
    with pytest.raises(UserError, match=f"{shard.name} {said}"):
        of_shard(built, manifest, shard)


def test_windows_are_cut_into_pieces_of_another_length(recordings, built, tmp_path):
    short = build(recordings, tmp_path / "short", "seconds=5")
    half, whole = read_manifest(short), read_manifest(built)
    pieces = computed(built, whole, whole.of_split("test")[0], leads_of(whole.leads), 5.0)
    assert len(pieces) == 2 * whole.of_split("test")[0].samples
    assert np.allclose(pieces, of_shard(short, half, half.of_split("test")[0])[: len(pieces)], atol=1e-6)
