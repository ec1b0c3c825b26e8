"""A file of lines on a disk that is full for a while."""

import errno

import pytest

from trainer.observe.lines import Lines
from trainer.observe.metrics import METRICS, Metrics, read_metrics
from trainer.observe.wandb_mirror import WandbConfig


class Disk:
    """The file on a disk with room for some more bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def close(self):
        self.file.close()


def on_disk(lines, room):
    lines._file = disk = Disk(lines._file, room)
    return disk


@pytest.mark.parametrize("room", [0, 1, 5, 6, 7, 11])
def test_lines_that_do_not_fit_are_written_whole_once_there_is_room(tmp_path, room):
    path = tmp_path / "lines"
    lines = Lines(path)
    disk = on_disk(lines, room)
    assert [lines.add("first"), lines.add("second")][-1] == "No space left on device"
    assert path.read_bytes() == b"first\nsecond\n"[:room]
    disk.room = 100
    assert lines.add("third") == ""
    assert path.read_bytes() == b"first\nsecond\nthird\n"
    assert lines.close() == ""


def test_a_full_disk_is_told_once_and_no_end_of_a_run(tmp_path, capsys):
    metrics = Metrics(tmp_path, WandbConfig(mode="disabled"), {})
    metrics.log(1, {"loss": 1.0})
    disk = on_disk(metrics._lines, 10)
    for step in (2, 3, 4):
        metrics.log(step, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / METRICS)] == [1]
    disk.room = 1000
    metrics.log(5, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path / METRICS)] == [1, 2, 3, 4, 5]
    disk.room = 0
    metrics.log(6, {"loss": 1.0})
    metrics.close()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    why = "# WARNING: metrics.jsonl cannot be written (No space left on device): its last lines"
    kept, again = f"{why} are kept until there is room", "# metrics.jsonl is written again, and complete"
    assert said == [kept, again, kept, f"{why} are lost"]
