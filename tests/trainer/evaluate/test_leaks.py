"""Patients and recordings of the test split that were in pre-training, against the names in `private/`."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sharding import build as building
from sharding import join as joining
from sharding.join import JoinConfig
from sharding.options import BuildConfig
from sharding.synthetic import SynthConfig, write
from tests.support.handmade import ENCODER, make_run, make_shards
from trainer import transfer
from trainer.evaluate import many
from trainer.evaluate.config import TransferConfig
from trainer.evaluate.leaks import check
from trainer.export import export
from umbra.config import load
from umbra.directory import read_config
from umbra.errors import UserError
from umbra.schema import read_manifest
from umbra.signal_fingerprints import file_of

SEX = "configs/transfer/sex.yaml"
SPLIT = ["split.train=0.4", "split.val=0.3", "split.test=0.3"]
TREATED = ["rate=250", "resolution_uv=5", "high_pass=0.5"]


def build(recordings: Path, output: Path, *words: str) -> Path:
    building.build(load(BuildConfig, None, [f"input={recordings}", f"output={output}", *words]))
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data sets: `seen`, which the encoders were trained on; `treated`, `renamed` (under another source name): the same
    recordings treated and split otherwise; `new`: other patients; `both`: new and seen, joined."""
    root = tmp_path_factory.mktemp("leaks")
    for name, seed in (("old", 0), ("new", 1)):
        write(SynthConfig(str(root / f"{name}-recordings"), 30, rate=100.0, seed=seed), progress=False)
    build(root / "old-recordings", root / "seen", "rate=100")
    build(root / "old-recordings", root / "treated", "seed=3", *TREATED)
    build(root / "old-recordings", root / "renamed", "seed=4", "source.name=other", *TREATED)
    build(root / "new-recordings", root / "new", "rate=100", "source.name=new")
    joining.join(JoinConfig([str(root / "new"), str(root / "seen")], str(root / "both")))
    return root


def encoder_of(root: Path, trained_on: Path) -> Path:
    """An encoder directory that names the data set, away from its run."""
    m = read_manifest(trained_on)
    facts = ENCODER | {"samples": m.samples, "rate": m.rate}
    run = make_run(root / "run", fingerprint=m.fingerprint, key_id=m.key_id, encoder=facts)
    return export(run, root / "encoder")


def checked(encoder: Path, data: Path, **keys) -> dict:
    config = TransferConfig(encoder=str(encoder), data=str(data), output="out", **keys)
    return check(config, read_config(encoder))


def rows(root: Path, split: str) -> list[dict]:
    """Record and patient of each window of a split."""
    names = {r["key"]: r["record"] for r in pq.read_table(root / "private" / "records.parquet").to_pylist() if r["key"]}
    shards = read_manifest(root).shards
    found = pq.read_table(root / "samples.parquet").to_pylist()
    return [r | {"record": names[r["key"]]} for r in found if shards[r["shard"]].split == split]


def records(root: Path, split: str) -> set[str]:
    return {row["record"] for row in rows(root, split)}


def test_the_same_build_has_other_patients_in_its_test_split(folder, tmp_path, capsys):
    encoder = encoder_of(tmp_path, folder / "seen")
    found = checked(encoder, folder / "seen")
    nothing = {"checked": True, "windows": 0, "patients": 0, "why": ""}
    assert found == {
        "pretrained": True,
        "data": read_manifest(folder / "seen").fingerprint,
        "allowed": False,
        "by_patient": nothing,
        "by_signal": nothing,
    }
    assert capsys.readouterr().out == (
        "leaks: no patients of the test split in pre-training\nleaks: no recordings of the test split in pre-training\n"
    )


def test_treated_recordings_are_found_by_pseudonym_and_by_signal(folder, tmp_path):
    encoder = encoder_of(tmp_path, folder / "seen")
    shared = records(folder / "treated", "test") & records(folder / "seen", "train")
    assert shared
    known = {"checked": True, "windows": len(shared), "patients": len(shared), "why": ""}
    found = checked(encoder, folder / "treated", pretrained_on=str(folder / "seen"), allow_leak=True)
    assert (found["by_patient"], found["by_signal"], found["allowed"]) == (known, known, True)
    said = (
        f"^{len(shared)} patients \\({len(shared)} windows\\) known by pseudonym and {len(shared)} recordings "
        f"\\({len(shared)} patients\\) known by signal of the test split of {folder / 'treated'} were in the "
        f"pre-training of {encoder}: evaluate on a data set without them, or say allow_leak=true"
    )
    with pytest.raises(UserError, match=said):
        checked(encoder, folder / "treated", pretrained_on=str(folder / "seen"))


def test_under_another_source_name_only_signals_tell(folder, tmp_path, capsys):
    encoder = encoder_of(tmp_path, folder / "seen")
    found = checked(encoder, folder / "renamed", pretrained_on=str(folder / "seen"), allow_leak=True)
    shared = records(folder / "renamed", "test") & records(folder / "seen", "train")
    assert shared
    assert found["by_signal"] == {"checked": True, "windows": len(shared), "patients": len(shared), "why": ""}
    assert not found["by_patient"]["checked"]
    assert not found["by_patient"]["windows"]
    assert "patients of the test split in pre-training: not checkable: pseudonyms" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"^{len(shared)} recordings "):
        checked(encoder, folder / "renamed", pretrained_on=str(folder / "seen"))


def test_patients_in_part_of_a_joined_set(folder, tmp_path):
    encoder = encoder_of(tmp_path, folder / "both")
    found = checked(encoder, folder / "seen", pretrained_on=str(folder / "both"))
    assert not found["by_patient"]["windows"]
    assert found["by_patient"]["why"].endswith("for new (key public)")
    with pytest.raises(UserError, match="were in the pre-training"):
        checked(encoder, folder / "treated", pretrained_on=str(folder / "both"))


def test_other_patients_are_not_taken_for_those(folder, tmp_path):
    found = checked(encoder_of(tmp_path, folder / "seen"), folder / "new", pretrained_on=str(folder / "seen"))
    assert found["by_signal"] == {"checked": True, "windows": 0, "patients": 0, "why": ""}


def test_windows_of_another_length_are_compared_in_pieces(folder, tmp_path):
    short = build(folder / "old-recordings", tmp_path / "short", "rate=100", "seconds=5", "seed=4", "source.name=other")
    found = checked(encoder_of(tmp_path, folder / "seen"), short, pretrained_on=str(folder / "seen"), allow_leak=True)
    shared = records(short, "test") & records(folder / "seen", "train")
    assert (found["by_signal"]["windows"], found["by_signal"]["patients"]) == (2 * len(shared), len(shared))


def test_the_run_around_an_encoder_says_where_its_data_are(folder, tmp_path):
    encoder = encoder_of(tmp_path, folder / "seen")
    inside = encoder.rename(tmp_path / "run" / "encoder")
    settings = tmp_path / "run" / "config.yaml"
    for path, why in [
        (folder / "new", "now holds another data set"),
        (tmp_path / "gone", "are no longer in"),
        ("https://example.org/data", "are at https://example.org/data"),
    ]:
        settings.write_text(f"data: {{path: '{path}'}}\n")
        found = checked(inside, folder / "treated")
        assert why in found["by_patient"]["why"]
        assert found["by_patient"] == found["by_signal"]
    for text in ("data: [1]\n", "- 1\n", "{", "data: {path: 3}\n"):
        settings.write_text(text)
        assert "is not the run of the encoder" in checked(inside, folder / "treated")["by_signal"]["why"]
    settings.write_text(f"data: {{path: '{folder / 'seen'}'}}\n")
    with pytest.raises(UserError, match="were in the pre-training"):
        checked(inside, folder / "treated")


def test_what_cannot_be_checked_is_said_and_stops_nothing(folder, tmp_path, capsys):
    encoder = encoder_of(tmp_path, folder / "seen")
    found = checked(encoder, folder / "treated")
    assert not found["by_signal"]["checked"]
    assert "give the folder of its pre-training data as pretrained_on=DIR" in found["by_patient"]["why"]
    assert capsys.readouterr().out.count("not checkable: the encoder does not lie in") == 2
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps(config | {"data": {}}))
    assert "does not say what it was pre-trained on" in checked(encoder, folder / "treated")["by_signal"]["why"]
    assert checked(encoder, folder / "seen", mode="scratch") == {"pretrained": False}


def said_to_have_seen(encoder: Path, **training) -> None:
    """Writes into an encoder's config.json what else its weights have seen, and that it was pre-trained on `new`."""
    path = encoder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"training": content["training"] | training}))


def earlier(root: Path, way: str) -> dict:
    """The entry of `training` in config.json where the weights saw the data set `root` before, one or two steps ago."""
    name = read_manifest(root).fingerprint
    return {
        "began with": {"init": {"sha256": "", "training": {}, "data": {"fingerprint": name}}},
        "fine-tuned": {"labels": {"task": "sex", "data": name}},
        "began with a fine-tuned": {"init": {"training": {"labels": {"data": name}}, "data": {"fingerprint": "f00d"}}},
        "fine-tuned twice": {"labels": {"data": "f00d", "before": {"data": name}}},
    }[way]


@pytest.mark.parametrize("way", ["began with", "fine-tuned", "began with a fine-tuned", "fine-tuned twice"])
def test_what_the_weights_saw_before_the_last_training_counts_too(folder, tmp_path, capsys, way):
    encoder = encoder_of(tmp_path, folder / "new")
    given = {"pretrained_on": str(folder / "new")}
    assert checked(encoder, folder / "treated", **given)["by_signal"]["checked"]
    said_to_have_seen(encoder, **earlier(folder / "seen", way))
    found = checked(encoder, folder / "treated", **given)
    assert not found["by_signal"]["checked"]
    assert f"{read_manifest(folder / 'seen').fingerprint}, which is not at hand" in found["by_patient"]["why"]
    assert "give its folder as also_trained_on=[DIR]" in capsys.readouterr().out
    shared = records(folder / "treated", "test") & records(folder / "seen", "train")
    more = {"also_trained_on": [str(folder / "seen")]}
    found = checked(encoder, folder / "treated", allow_leak=True, **given, **more)
    assert found["by_signal"]["windows"] == found["by_patient"]["windows"] == len(shared) > 0
    with pytest.raises(UserError, match=f"^{len(shared)} patients .*known by pseudonym and {len(shared)} recordings"):
        checked(encoder, folder / "treated", **given, **more)
    found = checked(encoder, folder / "seen", **given)
    assert not found["by_signal"]["windows"], "its own test split was in neither"
    assert (not found["by_signal"]["why"]) == (way in ("began with", "fine-tuned")), "the evaluated data are at hand"


def test_a_model_names_the_labelled_data_that_made_it(folder, tmp_path, capsys):
    """A model that was trained on all labels of a data set is then an encoder itself."""
    data = build(folder / "old-recordings", tmp_path / "data", "rate=100", "seed=3", *SPLIT)
    other = build(folder / "old-recordings", tmp_path / "other", "rate=100", "seed=9", *SPLIT)
    encoder = encoder_of(tmp_path, folder / "new")
    shared = records(other, "test") & records(data, "train")
    assert shared
    tune = ["finetune.epochs=1", "finetune.lr=[1e-3]", "bootstrap=0", "features=none"]
    for mode, seen in (("finetune", ["also_trained_on=[{}]"]), ("scratch", ["pretrained_on={}"])):
        words = [SEX, f"encoder={encoder}", f"data={data}", f"output={tmp_path / mode}", f"mode={mode}", *tune]
        transfer.main(words)
        words = [SEX, f"encoder={tmp_path / mode / 'model'}", f"data={other}", f"output={tmp_path / 'out'}", *tune]
        with pytest.raises(UserError, match=f"^{len(shared)} patients .* known by pseudonym"):
            transfer.main([*words, *(word.format(data) for word in seen)])
    twice = [SEX, f"encoder={tmp_path / 'finetune' / 'model'}", f"data={other}", f"output={tmp_path / 'twice'}", *tune]
    transfer.main([*twice, "mode=finetune"])
    about = read_config(tmp_path / "twice" / "model")
    assert about.data["fingerprint"] == read_manifest(folder / "new").fingerprint
    assert about.training["labels"]["data"] == read_manifest(other).fingerprint
    assert about.training["labels"]["before"]["data"] == read_manifest(data).fingerprint


def test_transfer_to_another_data_set_uses_its_own_splits_and_says_what_was_seen(folder, tmp_path):
    data = build(folder / "new-recordings", tmp_path / "data", "rate=100", "seed=3", "source.name=new", *SPLIT)
    encoder = encoder_of(tmp_path, folder / "seen")
    words = [SEX, f"encoder={encoder}", f"data={data}", f"output={tmp_path / 'out'}", "bootstrap=0", "probe.C=[1]"]
    transfer.main([*words, f"pretrained_on={folder / 'seen'}"])
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    table = pq.read_table(data / "samples.parquet").to_pylist()
    shards = read_manifest(data).shards
    known = [(i, r, shards[r["shard"]].split) for i, r in enumerate(table) if r["sex"]]
    told = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [(r["row"], r["patient"], r["label"]) for r in told] == [
        (i, r["patient"], r["sex"]) for i, r, split in known if split == "test"
    ]
    train = np.array([i for i, _, split in known if split == "train"], "<i8")
    assert found["train_rows"] == {"count": len(train), "sha256": hashlib.sha256(train.tobytes()).hexdigest()}
    assert found["data"]["fingerprint"] == read_manifest(data).fingerprint
    assert found["leaks"]["data"] == read_manifest(folder / "seen").fingerprint != found["data"]["fingerprint"]
    assert found["leaks"]["by_signal"] == {"checked": True, "windows": 0, "patients": 0, "why": ""}
    assert not found["leaks"]["by_patient"]["checked"]
    assert "for new (key public), wfdb (key public)" in found["leaks"]["by_patient"]["why"]


def test_short_windows_do_not_compare_by_signal(tmp_path):
    seen = make_shards(tmp_path / "seen", {"train": ["SR"] * 4, "test": ["SR"] * 4})
    found = checked(encoder_of(tmp_path, seen), seen)
    assert found["by_signal"]["why"] == "windows of 2.56 s are too short, 5 s are needed"
    assert found["by_patient"]["checked"]


def test_shards_that_are_gone_leave_what_is_kept(folder, tmp_path):
    seen = build(folder / "old-recordings", tmp_path / "seen", "rate=100")
    encoder = encoder_of(tmp_path, seen)
    train = [s.name for s in read_manifest(seen).of_split("train")]
    (seen / train[0]).unlink()
    with pytest.raises(UserError, match="known by signal"):
        checked(encoder, folder / "treated", pretrained_on=str(seen))
    file_of(seen, train[0]).unlink()
    found = checked(encoder, folder / "treated", pretrained_on=str(seen), allow_leak=True)
    assert found["by_signal"]["why"] == f"1 shards of {seen} are missing, first {train[0]}"
    assert found["by_patient"]["windows"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("new", "pretrained_on=.* has the fingerprint .*, .*encoder was pre-trained on"),
        ("", "is not a finished data set"),
    ],
)
def test_another_data_set_than_that_of_pretraining_is_a_mistake(folder, tmp_path, place, said):
    with pytest.raises(UserError, match=said):
        checked(encoder_of(tmp_path, folder / "seen"), folder / "seen", pretrained_on=str(folder / place))


def test_a_transfer_is_refused_before_its_work_and_allowed_on_request(folder, tmp_path, capsys, monkeypatch):
    data = build(folder / "old-recordings", tmp_path / "data", "rate=100", "seed=3", *SPLIT)
    encoder = encoder_of(tmp_path, folder / "seen")
    words = [SEX, f"encoder={encoder}", f"data={data}", f"output={tmp_path / 'out'}", "bootstrap=0", "probe.C=[1]"]
    words.append(f"pretrained_on={folder / 'seen'}")
    with monkeypatch.context() as patched:
        patched.setattr(many, "run", None)
        with pytest.raises(UserError, match="were in the pre-training"):
            transfer.main(words)
    assert not (tmp_path / "out").exists()
    transfer.main([*words, "--allow-leak"])
    assert "known by signal of the test split were in pre-training; allowed by allow_leak" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "result.json").read_text())["leaks"]
    shared = records(data, "test") & records(folder / "seen", "train")
    assert found["allowed"]
    assert found["by_signal"]["windows"] == found["by_patient"]["windows"] == len(shared)
    assert not re.search(r"P0\d\d\d\d", (tmp_path / "out" / "result.json").read_text())
