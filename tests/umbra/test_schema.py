import dataclasses
import json

import pytest

from tests.support.damage import DAMAGES
from tests.support.handmade import make_shards
from umbra.errors import UserError
from umbra.schema import content_hash, fingerprint_of, read_manifest


@pytest.fixture
def root(tmp_path):
    return make_shards(tmp_path / "set", {"train": ["SR"] * 4, "val": ["SR"] * 2})


def change(root, changes):
    path = root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_one_line(damage, root):
    DAMAGES[damage](root / "manifest.json")
    with pytest.raises(UserError, match=r"manifest.json (is damaged \(.+\): delete it and run|does not exist)") as said:
        read_manifest(root)
    assert "\n" not in str(said.value)


SHARD = {"name": "a.tar", "split": "train", "samples": 1, "bytes": 1, "sha256": ""}
CONTENTS = [
    ({"leads": None}, "'leads' must be a list, not None"),
    ({"rate": "x"}, "'rate' must be a number, not 'x'"),
    ({"rate": 0}, "'rate' is 0"),
    ({"samples": 2.5}, "'samples' must be a whole number"),
    ({"meta_bytes": -64}, "'meta_bytes' is -64"),
    ({"lead_mean_mv": []}, "'lead_mean_mv' has 0 values for 12 leads"),
    ({"lead_std_mv": [float("nan")] * 12}, r"'lead_std_mv\[0\]' must be a number, not nan"),
    ({"shards": {}}, "'shards' must be a list"),
    ({"shards": [{"name": "a.tar"}]}, r"it lacks 'shards\[0\].bytes'"),
    ({"shards": [SHARD | {"split": "dev"}]}, "shard a.tar has split 'dev', 1 samples"),
    ({"shards": [SHARD | {"samples": -1}]}, "shard a.tar has split 'train', -1 samples"),
    ({"shards": [SHARD, SHARD | {"split": "val"}, SHARD]}, "the shards of a split are not contiguous"),
    ({"more": 1}, "unknown 'more'"),
    ({"fingerprint": "0" * 16}, "does not match its own fingerprint"),
    ({"resolution_uv": 2.0}, "does not match its own fingerprint"),
    ({"content_hash": "0" * 64}, "has been modified since the build"),
]


@pytest.mark.parametrize(("changes", "said"), CONTENTS, ids=[said for _, said in CONTENTS])
def test_wrong_content_is_named(changes, said, root):
    change(root, changes)
    with pytest.raises(UserError, match=rf"manifest.json .*{said}.*: delete it and run the same build again"):
        read_manifest(root)


def test_the_hash_over_all_fields_finds_a_change_of_any_of_them(root):
    whole = read_manifest(root)
    signed = json.loads(dataclasses.replace(whole, content_hash=content_hash(whole)).to_json())
    change(root, signed)
    assert fingerprint_of(read_manifest(root)) == whole.fingerprint
    for key, value in {"lead_mean_mv": [0.1] * 12, "key_id": "other", "counts": {"sex": {}}}.items():
        change(root, signed | {key: value})
        with pytest.raises(UserError, match="has been modified since the build"):
            read_manifest(root)


def test_another_version_is_no_damage(root):
    change(root, {"schema": 2, "leads": None})
    with pytest.raises(UserError, match="has schema 2, this version reads 1: build the data set again"):
        read_manifest(root)
