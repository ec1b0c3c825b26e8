"""Damaged files of runs and studies, and folders that cannot be made: one line, never a traceback."""

import json
import shutil

import pytest
import torch

from tests.support.damage import DAMAGES, called, damages
from tests.support.handmade import make_shards
from tests.support.pretrain_words import SMALL
from trainer import export, figures, pretrain, transfer
from trainer.data import audit
from trainer.data.shards import Shards
from trainer.evaluate import mask_lift
from trainer.game.players import make_players
from trainer.run import checkpoint
from trainer.run.assemble import checkpoint_state, make_order
from trainer.run.record import new_record, write_record
from trainer.study import __main__ as study
from trainer.study import report
from trainer.study.config import StudyConfig, keep_config
from trainer.study.steps import STEPS, Note, Steps
from umbra.directory import save_weights
from umbra.errors import UserError
from umbra.files import read_json_lines

STEP = "checkpoints/step-3"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set and a run on it, with a checkpoint as the parts of a real run write it, but for DeepSpeed's state."""
    folder = tmp_path_factory.mktemp("made")
    data = make_shards(folder / "data", {"train": ["SR", "AFIB"] * 8, "val": ["SR", "AFIB"] * 8})
    words = ["configs/pretrain/adversarial.yaml", f"data.path={data}", f"run={folder / 'run'}", *SMALL]
    cfg = pretrain.read_config([*words, "encoder.args.norm=batch"])
    train = Shards(data, "train")
    encoder, masker = make_players(cfg, train)
    record = new_record(cfg, train, 10, bf16=False, world=1)
    write_record(cfg, record, "running")
    step = folder / "run" / STEP
    step.mkdir(parents=True)
    weights = {**encoder.state_dict(), **{f"masker.{k}": v for k, v in masker.state_dict().items()}}
    save_weights(step / "weights.safetensors", weights)
    world = pretrain.distributed.World(0, 1, torch.device("cpu"))
    state = checkpoint_state(cfg, world, make_order(cfg, train, {}), train)
    (step / "state.json").write_text(json.dumps({"step": 3, **state}))
    (step / "COMMITTED").touch()
    rows = (f'{{"step": {step}, "loss": {6 - step}.5}}\n' for step in range(1, 7))
    (folder / "run" / "metrics.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of it, which the run's config and state name."""
    shutil.copytree(made / "data", tmp_path / "data")
    shutil.copytree(made / "run", tmp_path / "run")
    for path in (tmp_path / "run" / "config.yaml", tmp_path / "run" / STEP / "state.json"):
        path.write_text(path.read_text().replace(str(made), str(tmp_path)))
    monkeypatch.setattr(mask_lift, "measure", lambda *_: [])
    monkeypatch.setenv("WORLD_SIZE", "1")
    return tmp_path


def commands(place):
    run = place / "run"
    words = [f"data.path={place / 'data'}", f"run={run}", *SMALL, "encoder.args.norm=batch", "--dry-run"]
    return {
        "export": (export.main, [f"run={run}"]),
        "masks": (figures.main, ["masks", str(run), "ecgs=4", "draw=0"]),
        "curves": (figures.main, ["curves", str(place / "o.png"), str(run)]),
        "pretrain": (pretrain.main, ["configs/pretrain/adversarial.yaml", *words]),
    }


READ = {  # file -> the commands that need it
    "run/run.json": ["export", "masks", "pretrain"],
    "run/config.yaml": ["masks"],
    "run/metrics.jsonl": ["curves"],
    f"run/{STEP}/weights.safetensors": ["export", "masks"],
    f"run/{STEP}/state.json": ["export", "pretrain"],
    "data/manifest.json": ["export", "masks", "pretrain"],
    "data/samples.parquet": ["masks", "pretrain"],
    "data/train-000000.tar": ["export", "pretrain"],
}
HARMLESS = {  # what is left is enough
    ("run/run.json", "missing", "masks"),
    ("run/run.json", "missing", "pretrain"),
    ("run/metrics.jsonl", "cut", "curves"),
    ("run/metrics.jsonl", "scrambled", "curves"),
    ("data/train-000000.tar", "scrambled", "export"),
    ("data/train-000000.tar", "scrambled", "pretrain"),
}


def test_all_goes_well_without_damage(place, monkeypatch, capsys):
    for main, words in commands(place).values():
        assert called(main, words, monkeypatch, capsys) == (0, "")


@pytest.mark.parametrize(("name", "damage"), damages(READ))
def test_a_damaged_file_is_one_line_that_names_it(name, damage, place, monkeypatch, capsys):
    DAMAGES[damage](place / name)
    for command in READ[name]:
        code, said = called(*commands(place)[command], monkeypatch, capsys)
        if (name, damage, command) in HARMLESS:
            assert (code, said) == (0, ""), command
        else:
            assert code == 2, command
            assert name.rpartition("/")[2] in said


RECORDS = [
    ({"encoder": None}, "'encoder' must be a mapping, not None"),
    ({"encoder": {}}, "it lacks 'encoder.args'"),
    ({"scaling": {"mode": "fixed"}}, "it lacks 'scaling.mean_mv'"),
    ({"fingerprint": 1}, "'fingerprint' must be a text, not 1"),
]


@pytest.mark.parametrize(("change", "said"), RECORDS, ids=[said for _, said in RECORDS])
def test_a_run_json_of_wrong_content_is_named_before_a_run_goes_on(change, said, place, monkeypatch, capsys):
    path = place / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for command in ("export", "pretrain"):
        code, error = called(*commands(place)[command], monkeypatch, capsys)
        assert (code, said in error, "run the same pretrain command again" in error) == (2, True, True)


STATES = [
    (lambda s: s.pop("fingerprint"), "it lacks 'fingerprint'"),
    (lambda s: s.update(config=None), "'config' must be a mapping, not None"),
    (lambda s: s["config"].pop("data"), "it lacks 'config.data'"),
    (lambda s: s.update(step="3"), "'step' must be a whole number, not '3'"),
    (lambda s: s.update(excluded=[3]), r"'excluded\[0\]' must be a list of 2, not 3"),
]


@pytest.mark.parametrize(("change", "said"), STATES, ids=[said for _, said in STATES])
def test_a_state_of_wrong_content_is_named_with_the_way_out(change, said, place):
    path = place / "run" / STEP
    state = json.loads((path / "state.json").read_text())
    assert checkpoint.saved_state(path)["step"] == 3
    change(state)
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=rf"state.json is damaged \({said}\): delete .*step-3 to go on from the checkp"):
        checkpoint.saved_state(path)


class Broken:
    """An engine whose state cannot be read, as DeepSpeed and torch say it."""

    def __init__(self, error):
        self.error = error

    def load_checkpoint(self, folder, tag):
        if self.error is None:
            return None, {}
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("PytorchStreamReader failed\nat 3"), AssertionError(), EOFError(), None]
)
def test_deepspeeds_errors_for_a_damaged_state_are_one_line_of_any_process(error, place):
    path = place / "run" / STEP
    state = json.loads((path / "state.json").read_text())
    with pytest.raises(UserError, match=r"step-3/encoder is damaged \(.+\): delete .*step-3 to go on from") as said:
        checkpoint.load(path, {"encoder": Broken(error)}, state)
    assert said.value.alone
    assert "\n" not in str(said.value)


def test_the_masker_of_another_config_is_one_line(place, monkeypatch, capsys):
    path = place / "run" / "config.yaml"
    path.write_text(path.read_text().replace("width: 8", "width: 16"))
    code, said = called(*commands(place)["masks"], monkeypatch, capsys)
    assert (code, "does not match the masker in" in said) == (2, True)


def test_the_words_of_figures_are_checked_before_the_work(place, monkeypatch, capsys):
    monkeypatch.setattr(mask_lift, "masks_of_run", lambda *_: pytest.fail("the work began"))
    main, words = commands(place)["masks"]
    for word, said in (("by=nope", "by=nope: "), ("lead=X", "lead=X is not among")):
        code, error = called(main, [*words, word], monkeypatch, capsys)
        assert (code, said in error) == (2, True)


@pytest.mark.parametrize("folder", ["/proc/x", "/etc/passwd", "/etc/passwd/x"])
def test_a_folder_that_cannot_be_made_is_one_line(folder, place, monkeypatch, capsys):
    shown = commands(place)
    pretraining = [w for w in shown["pretrain"][1] if not w.startswith("run=")]
    task = ["configs/transfer/rhythm.yaml", "encoder=random", "like=x", f"data={place / 'data'}"]
    studying = ["configs/study/ptbxl100-first.yaml", f"data={place}"]
    monkeypatch.setattr(study.Share, "work", lambda *_: pytest.fail("the work began"))
    for main, words, key in (
        (export.main, shown["export"][1], "output"),
        (pretrain.main, pretraining, "run"),
        (pretrain.main, [w for w in pretraining if w != "--dry-run"], "run"),
        (transfer.main, task, "output"),
        (study.main, studying, "output"),
    ):
        code, said = called(main, [*words, f"{key}={folder}"], monkeypatch, capsys)
        assert (code, f"{key}={folder}: " in said) == (2, True), said
    code, said = called(figures.main, ["curves", f"{folder}/o.png", str(place / "run")], monkeypatch, capsys)
    assert (code, f"cannot write {folder}/o.png (" in said) == (2, True)


def test_an_output_that_holds_something_else_is_refused_before_the_work(place, monkeypatch, capsys):
    monkeypatch.setattr(study.Share, "work", lambda *_: pytest.fail("the work began"))
    task = ["configs/transfer/rhythm.yaml", "encoder=random", "like=x", f"data={place / 'data'}"]
    for main, words in (
        (transfer.main, task),
        (study.main, ["configs/study/ptbxl100-first.yaml", f"data={place}"]),
    ):
        for name in ("data", "run"):  # a run has a config.yaml, as a study has
            code, said = called(main, [*words, f"output={place / name}"], monkeypatch, capsys)
            assert (code, f"output={place / name} holds " in said, "choose a" in said) == (2, True, True), said
    assert "name" not in (place / "run" / "config.yaml").read_text().splitlines()[0]


# --- studies and audits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("missing", "mapping")])
def test_a_damaged_config_of_a_study_is_one_line(damage, tmp_path):
    config = StudyConfig(name="s", data="d", output=str(tmp_path), methods=["none"])
    keep_config(config, tmp_path)
    keep_config(config, tmp_path)
    DAMAGES[damage](tmp_path / "config.yaml")
    if damage == "cut":  # YAML that is cut may be YAML
        (tmp_path / "config.yaml").write_text("shard: {config: ptb")
    with pytest.raises(UserError, match=r"config.yaml is damaged \(.+\): delete it and run the same study") as said:
        keep_config(config, tmp_path)
    assert "\n" not in str(said.value)


def test_a_cut_line_of_a_studys_steps_is_skipped_and_not_gone_on_with(tmp_path):
    steps = Steps(tmp_path, 60)
    steps.note("shard/0", ["a"], 1.0)
    with open(tmp_path / STEPS, "a") as file:
        file.write('{"step": "pretrain/0/no')
    steps.note("export/0/none/0", ["b"], 2.0)
    noted = read_json_lines(tmp_path / STEPS, Note)
    assert [note["step"] for note in noted] == ["shard/0", "export/0/none/0"]
    assert report.cost(noted) == {"export": 2.0, "export none": 2.0, "shard": 1.0}


@pytest.mark.parametrize("head", [b"{\n", b"[1]\n", b'{"step": 0}\n', b"\xff\n"])
def test_a_damaged_record_of_an_audit_is_one_line(head, made, tmp_path):
    shutil.copytree(made / "data", tmp_path / "audit")
    (tmp_path / "audit" / "start-00001.rank-00000.bin").write_bytes(head)
    with pytest.raises(UserError, match=r"start-00001.rank-00000.bin is damaged \(.+\): delete it"):
        audit.judge(tmp_path)
