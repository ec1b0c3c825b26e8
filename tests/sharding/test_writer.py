import hashlib
import io
import json
import tarfile

import numpy as np
import pytest

from sharding import writer
from umbra.schema import Geometry


def test_tar_equals_tarfiles_own(tmp_path):
    geometry = Geometry(2, 5, 512)
    arrays = [np.arange(10, dtype="<i2").reshape(2, 5) * k for k in range(3)]
    metas = [writer.metadata_bytes({"age": k, "codes": ["é"]}, 512) for k in range(3)]
    path = tmp_path / "train-000000.tar"
    with open(path, "wb") as file:
        shard = writer.ShardWriter(file, geometry, 123456)
        keys = [shard.add(a, m) for a, m in zip(arrays, metas)]
        digest = shard.close()
    assert keys == ["123456-000000", "123456-000001", "123456-000002"]
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, array, meta in zip(keys, arrays, metas):
            npy = io.BytesIO()
            np.save(npy, array)
            for name, data in ((f"{key}.ecg.npy", npy.getvalue()), (f"{key}.meta.json", meta)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    data = path.read_bytes()
    plain = expected.getvalue()
    assert data == plain[: len(data)]
    assert not any(plain[len(data) :])
    assert len(data) == geometry.shard_bytes(3)
    assert digest == hashlib.sha256(data).hexdigest()
    view = np.ndarray((3, 2, 5), "<i2", data, geometry.first, (geometry.stride, 10, 2))
    assert (view == np.stack(arrays)).all()


def test_metadata_is_padded_or_refused():
    data = writer.metadata_bytes({"b": 1, "a": None}, 64)
    assert len(data) == 64
    assert json.loads(data) == {"a": None, "b": 1}
    assert writer.metadata_bytes({"codes": ["x" * 64]}, 64) is None


def test_wrong_shapes_are_refused(tmp_path):
    with open(tmp_path / "x", "wb") as file:
        shard = writer.ShardWriter(file, Geometry(2, 5, 512), 0)
        with pytest.raises(AssertionError):
            shard.add(np.zeros((5, 2), "<i2"), bytes(512))
        with pytest.raises(AssertionError):
            shard.add(np.zeros((2, 5), "<i4"), bytes(512))
