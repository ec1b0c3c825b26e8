import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from umbra.errors import UserError
from umbra.parquet import Table


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"number": rng.integers(0, 1 << 40, 3000), "word": rng.integers(0, 99, 3000).astype(str)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=1000)
    return tmp_path / "t.parquet"


def read_all(path):
    table = Table(path, "copy it again")
    parts = [table.read(), *(table.group(n) for n in range(len(table.groups))), *table.batches(["word"], 700)]
    return table, parts


def test_what_is_read_is_what_pyarrow_reads(path):
    whole, (table, parts) = pq.read_table(path), read_all(path)
    assert (table.names, table.rows, table.groups) == (["number", "word"], 3000, [1000] * 3)
    assert parts[0].equals(whole)
    assert pa.concat_tables(parts[1:4]).equals(whole)
    assert pa.Table.from_batches(parts[4:]).equals(whole.select(["word"]))
    assert table.group(1, ["word"]).equals(whole.slice(1000, 1000).select(["word"]))


def test_a_file_cut_anywhere_is_one_line(path):
    data = path.read_bytes()
    for size in (0, 1, 4, 100, len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(UserError, match=r"t.parquet is damaged \(.*\): copy it again") as said:
            read_all(path)
        assert "\n" not in str(said.value)
    path.unlink()
    with pytest.raises(UserError, match=r"t.parquet is missing: copy it again"):
        read_all(path)


def test_overwritten_pages_are_one_line_or_other_values(path):
    """The format has no checksums of its own: what can still be decoded is told from `samples.parquet` by its hash."""
    data, refused = path.read_bytes(), 0
    for at in range(4, len(data) - 200, len(data) // 23):
        path.write_bytes(data[:at] + b"\xff" * 64 + data[at + 64 :])
        try:
            read_all(path)
        except UserError:  # any other error fails the test
            refused += 1
    assert refused


@pytest.mark.parametrize("read", [Table.read, lambda t, c: t.group(0, c), lambda t, c: list(t.batches(c))])
def test_a_column_that_is_not_there_is_named(path, read):
    with pytest.raises(UserError, match="it has no column 'patient'"):
        read(Table(path, "copy it again"), ["word", "patient"])
    with pytest.raises(UserError, match="it has 3 row groups"):
        Table(path, "copy it again").group(3)
