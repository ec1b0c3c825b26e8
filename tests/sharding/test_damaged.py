"""Damaged files of a data set, and folders that cannot be made: one line, or built again; never a traceback."""

import hashlib
import json
import shutil

import pytest

from sharding.__main__ import main
from tests.support.damage import DAMAGES, called, damages
from tests.support.recordings import write_folder
from umbra.schema import read_manifest

WORDS = ["build", "configs/shard/wfdb.yaml", "source.public=true", "workers=1", "samples_per_shard=6"]
HEALED = ["samples.parquet", "private/records.parquet", "private/stats/train-000000.tar.json"]
SAID = ["manifest.json", "private/plan.json", "private/plan.parquet"]
FILES = [*HEALED, *SAID, "private/stats/train-000000.tar.parquet", "private/records.sha256", "train-000000.tar"]
READ_BY_REPORT = ["manifest.json", "samples.parquet", "private/records.parquet"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    write_folder(folder / "in", 12)
    main([*WORDS, f"input={folder / 'in'}", f"output={folder / 'out'}"])
    return folder


@pytest.fixture
def output(built, tmp_path):
    shutil.copytree(built / "out", tmp_path / "out")
    return tmp_path / "out"


def hashes(folder):
    """Of all files but the stats, which hold times, and the report."""
    files = (p for p in folder.rglob("*") if p.is_file() and not {"stats", "report"} & {*p.parts})
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(("name", "damage"), damages(FILES))
def test_no_command_ends_in_a_traceback(name, damage, built, output, monkeypatch, capsys):
    DAMAGES[damage](output / name)
    for command in ("status", "verify", *(["report"] if name in READ_BY_REPORT else [])):
        code, said = called(main, [command, str(output)], monkeypatch, capsys)
        assert code == 0 or str(output) in said
    words = [*WORDS, f"input={built / 'in'}", f"output={output}"]
    code, said = called(main, words, monkeypatch, capsys)
    assert code == 0 or str(output) in said
    if name in HEALED:
        assert code == 0
        assert hashes(output) == hashes(built / "out")
    if name in SAID and (damage, name) != ("missing", "manifest.json") and name != "private/plan.json":
        assert code == 2
        assert name in said


def test_a_destroyed_manifest_is_not_taken_for_a_finished_build(built, output, monkeypatch, capsys):
    (output / "manifest.json").write_text('{"sch')
    words = [*WORDS, f"input={built / 'in'}", f"output={output}"]
    code, said = called(main, words, monkeypatch, capsys)
    assert (code, "manifest.json is damaged" in said) == (2, True)
    (output / "manifest.json").unlink()  # as the line says
    assert called(main, words, monkeypatch, capsys) == (0, "")
    assert read_manifest(output) == read_manifest(built / "out")


@pytest.mark.parametrize("content", [{}, {"sums": []}, {"bytes": "x"}, {"rejected": None}])
def test_stats_of_wrong_content_are_a_shard_to_build_again(content, built, output, monkeypatch, capsys):
    path = output / "private" / "stats" / "train-000000.tar.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content if content else {}))
    code, _ = called(main, ["status", str(output)], monkeypatch, capsys)
    assert code == 0
    assert called(main, [*WORDS, f"input={built / 'in'}", f"output={output}"], monkeypatch, capsys) == (0, "")
    assert hashes(output) == hashes(built / "out")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize("place", ["/proc/foo", "/etc/passwd", "/etc/passwd/x"])
def test_an_output_that_cannot_be_made_is_one_line(place, dry, built, monkeypatch, capsys):
    for words in ([*WORDS, f"input={built / 'in'}", *dry], ["synth", "patients=1"]):
        code, said = called(main, [*words, f"output={place}"], monkeypatch, capsys)
        assert code == 2
        assert f"output={place}: " in said


@pytest.fixture(scope="module")
def joined(built, tmp_path_factory):
    """(words, output) of a join of two sets that share patients."""
    folder = tmp_path_factory.mktemp("joined")
    write_folder(folder / "in", 9)
    words = [*WORDS, f"input={folder / 'in'}", "source.name=other"]
    main([*words, f"output={folder / 'other'}"])
    words = ["join", str(built / "out"), str(folder / "other"), "distinct_patients=true"]
    main([*words, f"output={folder / 'both'}"])
    return words, folder / "both"


@pytest.mark.parametrize(("name", "damage"), damages(["private/join.json", "private/moves.parquet"]))
def test_a_join_goes_on_from_whole_files_only(name, damage, joined, tmp_path, monkeypatch, capsys):
    words, output = joined
    shutil.copytree(output, tmp_path / "both")
    (tmp_path / "both" / "train-000000.tar").unlink()
    DAMAGES[damage](tmp_path / "both" / name)
    code, said = called(main, [*words, f"output={tmp_path / 'both'}"], monkeypatch, capsys)
    assert (code, name in said, "join again" in said) == (2, True, True), said


@pytest.mark.parametrize("change", [lambda j: j["parts"].pop(), lambda j: j["bases"][0].update(part=7)])
def test_a_join_json_of_wrong_content_is_named(change, joined, tmp_path, monkeypatch, capsys):
    words, output = joined
    shutil.copytree(output, tmp_path / "both")
    (tmp_path / "both" / "train-000000.tar").unlink()
    path = tmp_path / "both" / "private" / "join.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    code, said = called(main, [*words, f"output={tmp_path / 'both'}"], monkeypatch, capsys)
    assert (code, "join.json is damaged (it " in said) == (2, True), said


@pytest.mark.parametrize("command", ["status", "verify", "report"])
@pytest.mark.parametrize("place", ["/etc/passwd", "/proc", "nowhere"])
def test_what_is_no_data_set_is_one_line(command, place, monkeypatch, capsys):
    code, said = called(main, [command, place], monkeypatch, capsys)
    assert code == 2
    assert place in said


@pytest.mark.parametrize("damage", ["cut", "binary", "list"])
def test_synthetic_recordings_with_damaged_settings_are_not_gone_on_with(damage, tmp_path, monkeypatch, capsys):
    words = ["synth", f"output={tmp_path / 'in'}", "patients=1"]
    assert called(main, words, monkeypatch, capsys) == (0, "")
    DAMAGES[damage](tmp_path / "in" / "synthetic.yaml")
    code, said = called(main, words, monkeypatch, capsys)
    assert (code, "synthetic" in said, "choose another folder" in said) == (2, True, True)


@pytest.mark.parametrize("name", ["samples.parquet", "private/records.parquet", "train-000000.tar"])
def test_verify_says_of_a_missing_file_what_to_do(name, output, monkeypatch, capsys):
    (output / name).unlink()
    code, said = called(main, ["verify", str(output)], monkeypatch, capsys)
    assert (code, said) == (2, f"error: {output / name} is missing: run the same build again")
