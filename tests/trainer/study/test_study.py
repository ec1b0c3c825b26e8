import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.handmade import make_run, make_shards
from tests.support.study import study_of
from trainer.evaluate.config import TransferConfig
from trainer.export import export
from trainer.study import __main__ as study
from trainer.study import report
from trainer.study import trial as runs
from trainer.study.cells import Cell
from trainer.study.config import Primary, ShardStep, StudyConfig, folds_of, keep_config
from trainer.study.steps import Note, Steps, run_limited, shown
from trainer.study.why import study_of as study_in
from umbra.config import load
from umbra.errors import UserError
from umbra.files import read_json_lines
from umbra.schema import read_manifest

KINDS = ["SR", "SR", "AFIB", "AFIB", "SR", "SR", "STACH", "STACH"]


# --- folds and steps -------------------------------------------------------------------------------------------------


def test_five_rotations_of_ten_folds_test_and_choose_on_each_fold_once():
    parts = [folds_of(r, 10) for r in range(5)]
    for train, val, test in parts:
        assert len(train) == 8
        assert sorted(train + val + test) == list(range(1, 11))
    assert sorted(f for _, val, test in parts for f in val + test) == list(range(1, 11))
    with pytest.raises(UserError, match="rotation 5"):
        folds_of(5, 10)


def test_where_validation_judges_the_test_fold_of_a_rotation_is_never_seen():
    for r in range(5):
        train, val, test = folds_of(r, 10, "validation")
        assert test == folds_of(r, 10)[1]
        assert len(train) == 7
        assert set(train + val + test) == set(range(1, 11)) - set(folds_of(r, 10)[2])


def test_a_step_that_is_too_slow_ends_with_all_its_processes(tmp_path):
    mark = f"umbra-{time.time_ns()}"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])"
    said = run_limited([sys.executable, "-c", child], tmp_path / "log", 2.0)
    assert "longer than" in said
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=20).stdout
    assert mark not in left


def test_a_step_that_fails_is_one_line_with_the_end_of_its_log(tmp_path):
    steps = Steps(tmp_path, 60)
    with pytest.raises(UserError, match=r"step a/0 ended with exit code 3; log: .*a-0.log; it says: OSError: no disk"):
        steps.run(
            "a/0", [sys.executable, "-c", "print('OSError: no disk\\nkilled'); raise SystemExit(3)"], lambda: False
        )
    with pytest.raises(UserError, match="without its result"):
        steps.run("a/0", [sys.executable, "-c", ""], lambda: False)
    steps.run("a/0", ["must", "not", "run"], lambda: True)
    assert not (tmp_path / "steps.jsonl").exists()


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    """As when a process is killed while it writes: the rest of a line stands alone, and readers skip it."""
    steps = Steps(tmp_path, 60)
    steps.note("shard/0", ["a"], 1)
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"step": "shard')
    steps.note("shard/1", ["b"], 2)
    assert [note["step"] for note in read_json_lines(tmp_path / "steps.jsonl", Note)] == ["shard/0", "shard/1"]


# --- whole way -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Instant stand-ins for sharding and pre-training that leave what the real ones leave, and a figure that notes."""
    ready = tmp_path / "ready"
    for r in (0, 1):
        make_shards(ready / f"data-{r}", {"train": KINDS * 4, "val": KINDS * 2, "test": KINDS * 2}, r, 10_000 * r)
    for seed, method in enumerate(("adversarial", "none")):
        make_run(ready / method, steps=[seed + 1], uncommitted=[])

    def copy(source, target):
        code = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
        return [sys.executable, "-c", code, str(source), str(target)]

    monkeypatch.setattr(runs, "shard_command", lambda c, r, base: copy(ready / f"data-{r}", base / "data"))
    monkeypatch.setattr(runs, "pretrain_command", lambda c, m, s, base: copy(ready / m, base / "runs" / f"{m}-seed{s}"))
    monkeypatch.setattr(runs, "config_path", lambda kind, name: Path(f"configs/{kind}/{name}.yaml").absolute())
    monkeypatch.setattr(StudyConfig, "check", lambda config: None)
    drawn = []
    monkeypatch.setattr(report, "study_figure", lambda rows, path: drawn.append((rows, path)))
    return drawn


def words(output, *more):
    lists = ["rotations=[0,1]", "methods=[adversarial,none,random,scratch]", "fractions=[1.0,0.2]", "bootstrap=100"]
    quick = "transfer=[finetune.epochs=1,'finetune.lr=[1e-3]',bootstrap=10]"
    return ["name=tiny", "data=somewhere", f"output={output}", *lists, quick, *more]


def test_whole_study_then_nothing_left_to_do_then_only_what_was_lost(tmp_path, stand_ins, capsys):
    output = tmp_path / "out"
    study.main(words(output))
    results = json.loads((output / "results.json").read_text())
    assert len(results["rows"]) == 4 * 2 * 2
    assert len(results["differences"]) == 3 * 2 * 2
    assert {"shard", "pretrain", "pretrain none", "export", "transfer", "transfer scratch"} <= set(
        results["cost_seconds"]
    )
    assert all(row["records"] == 32 for row in results["rows"] if row["task"] == "rhythm")
    assert {(r["method"], r["task"], r["fraction"]) for r in stand_ins[0][0]} >= {("scratch", "sex", 0.2)}
    text = (output / "table.md").read_text()
    assert "python -m trainer.transfer" in text
    assert "| rhythm | 20% | adversarial |" in text

    steps = (output / "steps.jsonl").read_text()
    study.main(words(output))
    assert (output / "steps.jsonl").read_text() == steps
    assert json.loads((output / "results.json").read_text()) == results

    lost = Cell(1, "random", 0, "sex", 0.2).directory(output) / "result.json"
    lost.unlink()
    study.main(words(output))
    more = (output / "steps.jsonl").read_text().removeprefix(steps).splitlines()
    assert [json.loads(line)["step"] for line in more] == ["transfer/1/random/0/sex/0.2"]
    assert json.loads((output / "results.json").read_text())["rows"] == results["rows"]


def test_more_draws_of_the_labels_are_evaluated_alone_and_averaged(tmp_path, stand_ins):
    output, few = tmp_path / "out", ["methods=[adversarial,random]", "tasks=[sex]"]
    study.main(words(output, *few))
    before = json.loads((output / "results.json").read_text())["rows"]
    steps = (output / "steps.jsonl").read_text()
    study.main(words(output, *few, "draws=3"))
    more = [json.loads(line) for line in (output / "steps.jsonl").read_text().removeprefix(steps).splitlines()]
    trials = [(rotation, method) for method in ("adversarial", "random") for rotation in (0, 1)]
    assert [line["step"] for line in more] == [f"transfer/{r}/{m}/0/sex/0.2/{d}" for r, m in trials for d in (1, 2)]
    assert all(line["command"].endswith(f" draw={line['step'][-1]}") for line in more)
    cells = [Cell(0, "random", 0, "sex", 0.2, draw).directory(output) for draw in (0, 1, 2)]
    results = [json.loads((cell / "result.json").read_text()) for cell in cells]
    assert [r["draw"] for r in results] == [0, 1, 2]
    assert len({r["train_rows"]["sha256"] for r in results}) == 3, "each draw has records of its own"
    assert len({r["train_rows"]["count"] for r in results}) == 1
    after = json.loads((output / "results.json").read_text())["rows"]
    assert [r for r in after if r["fraction"] == 1.0] == [r for r in before if r["fraction"] == 1.0]
    text = (output / "table.md").read_text()
    assert "With fewer labels a seed's score is the mean over 3 draws of them." in text
    assert " draw=" not in text
    assert study_in(output).draws == 3
    shutil.rmtree(cells[2])
    found = study_in(output)
    assert (found.methods, found.draws) == (["adversarial", "random"], 1), "the draws that all have"
    command = next(line["command"] for line in more if line["step"] == "transfer/0/random/0/sex/0.2/2")
    subprocess.run(shlex.split(command), check=True, timeout=200, capture_output=True)
    assert json.loads((cells[2] / "result.json").read_text())["train_rows"] == results[2]["train_rows"]


@pytest.mark.full
def test_real_workers_share_what_is_left_also_that_of_one_that_is_killed(tmp_path, stand_ins):
    output = tmp_path / "out"
    given = words(output, "methods=[adversarial,none,random]", "tasks=[rhythm]")
    study.main(given)
    results = json.loads((output / "results.json").read_text())["rows"]
    lost = [Cell(r, m, 0, "rhythm", f) for r in (0, 1) for m in ("none", "random") for f in (1.0, 0.2)]
    for cell in lost:
        (cell.directory(output) / "result.json").unlink()
    steps = (output / "steps.jsonl").read_text()
    shutil.rmtree(output / "trials")
    command = [sys.executable, "-m", "trainer.study", *given, "workers=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        limit = time.monotonic() + 100
        while not (held := [p for p in output.glob("trials/*.lock") if p.read_text()]):
            assert time.monotonic() < limit
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        os.kill(int(held[0].read_text().split()[1]), signal.SIGKILL)
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert "| rhythm | 20% | none |" in said
    more = (output / "steps.jsonl").read_text().removeprefix(steps).splitlines()
    named = sorted(f"transfer/{c.rotation}/{c.method}/{c.seed}/{c.task}/{c.fraction:g}" for c in lost)
    assert sorted(json.loads(line)["step"] for line in more) == named
    assert json.loads((output / "results.json").read_text())["rows"] == results


def test_a_study_refuses_a_test_split_that_was_seen_in_pretraining_and_notes_that_one_was_not(tmp_path):
    output = tmp_path / "out"
    base = output / "rotation-0"
    data = make_shards(base / "data", {"train": KINDS * 4, "val": KINDS * 2, "test": KINDS * 2})
    seen = make_shards(tmp_path / "seen", {"train": KINDS * 4}, first_patient=2000)  # the patients of data's test split
    cells = [Cell(0, "adversarial", 0, "sex", 1.0)]
    config = load(StudyConfig, None, words(output))
    for trained_on in (seen, data):
        run = base / "runs" / "adversarial-seed0"
        shutil.rmtree(run, ignore_errors=True)
        export(make_run(run, fingerprint=read_manifest(trained_on).fingerprint))
        (run / "config.yaml").write_text(f"data: {{path: '{trained_on}'}}\n")
        if trained_on == seen:
            with pytest.raises(UserError, match="known by pseudonym"):
                runs.assess(config, cells, Steps(output, 60))
    runs.assess(config, cells, Steps(output, 60))
    found = json.loads((cells[0].directory(output) / "result.json").read_text())["leaks"]["by_patient"]
    assert found == {"checked": True, "windows": 0, "patients": 0, "why": ""}


def test_another_study_in_the_same_output_is_refused(tmp_path, stand_ins):
    output = tmp_path / "out"
    keep_config(StudyConfig(name="tiny", data="somewhere", output=str(output)), _made(output))
    with pytest.raises(UserError, match="another 'pretrain'"):
        study.main(words(output, "pretrain=[optim.epochs=3]", "transfer=[]"))


def test_the_primary_comparisons_of_a_study_stay_those_of_its_reference(tmp_path):
    keys = {"methods": ["adversarial", "none", "block_mask"], "reference": "adversarial"}
    primary = Primary(tasks=["rhythm"], fractions=[1.0], others=["none"])
    keep_config(study_of(tmp_path, **keys, primary=primary), tmp_path)
    keep_config(study_of(tmp_path, **keys, primary=primary, seeds=[0, 1]), tmp_path)
    with pytest.raises(UserError, match="holds a study with another 'reference'"):
        keep_config(study_of(tmp_path, **keys | {"reference": "block_mask"}, primary=primary), tmp_path)
    (tmp_path / "config.yaml").unlink()
    keep_config(study_of(tmp_path, **keys), tmp_path)
    keep_config(study_of(tmp_path, **keys | {"reference": "none"}), tmp_path)


def test_a_variant_may_be_added_to_a_study_but_not_changed(tmp_path):
    output = _made(tmp_path / "out")
    kept = dict(name="tiny", data="somewhere", output=str(output))
    keep_config(StudyConfig(**kept, variants={"a": ["none"]}), output)
    keep_config(StudyConfig(**kept, variants={"a": ["none"], "b": ["none", "epochs=2"]}), output)
    with pytest.raises(UserError, match=r"another 'variants\.b'"):
        keep_config(StudyConfig(**kept, variants={"b": ["none", "epochs=3"]}), output)


def _made(path):
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["name=''"], "key 'name' is required"),
        (["methods=[random]", "reference=random"], "at least one must be pre-trained"),
        (["reference=best"], "'best' is not among the methods"),
        (["tasks=[rythm]", "methods=[adversarial]"], "does not exist; there are"),
        (["variants={a: [nothing]}", "methods=[a]", "reference=a"], "nothing.yaml does not exist; there are"),
        (["variants={a: []}"], "variants.a is empty"),
        (["variants={a: [none, game.shar=1]}", "methods=[a]", "reference=a"], "did you mean 'game.share'"),
        (["variants={random: [none]}"], "variants.random: the name is taken"),
        (["variants={none: [adversarial]}"], "variants.none: the name is taken"),
        (["rotations=[]"], "'rotations' is empty"),
        (["fractions=[2]"], "fractions=2.0 must be > 0 and <= 1"),
        (["processes=0"], "processes=0 must be >= 1"),
        (
            ["variants={a: [adversarial, game.alpha=0.3]}", "methods=[a]", "reference=a"],
            "game.alpha=0.3 has no effect",
        ),
        (["pretrain=[scaling=nope]", "methods=[adversarial]"], "scaling=nope is unknown"),
        (["judge=train"], "judge=train is unknown; use test, validation"),
        (["seeds=[0,-1]"], "seeds=-1 must be >= 0 and < 1e18"),
        (["rotations=[-1]"], "rotations=-1 must be >= 0"),
        (["minutes=1e300"], "minutes=1e\\+300 must be > 0 and <= 525600"),
        (["shard.column="], "shard.column is empty"),
        (["transfer=[mode=foo]"], "transfer: mode=foo is unknown; use probe, finetune, scratch"),
        (["transfer=[mode=scratch]"], "transfer: mode=scratch would train every method from scratch"),
        (["primary.tasks=[age]"], "primary.tasks has age; there are: rhythm, sex"),
        (["primary.fractions=[0.5]"], "primary.fractions has 0.5; there are: 1.0, 0.1"),
        (["primary.others=[adversarial]"], "primary.others has adversarial; there are: random"),
        (["primary.others=[random]"], "primary: give tasks, fractions and others, or none of them"),
        (
            ["methods=[adversarial,scratch]", "transfer=['leads=[I]']"],
            "scratch: .*leads.* has no effect with mode=scratch",
        ),
        (["seeds=[1,0,1]"], "seeds has 1 twice: give each once"),
        (["rotations=[0,0]"], "rotations has 0 twice"),
        (["methods=[adversarial,random,random]"], "methods has random twice"),
        (["tasks=[sex,sex]"], "tasks has sex twice"),
        (["fractions=[0.1,0.10000001]"], "fractions has 0.1 twice"),
        (["transfer=[fraction=0.5]"], "transfer: the study sets fraction itself: leave it out"),
        (["transfer=[draw=1]"], "transfer: the study sets draw itself: leave it out"),
        (["draws=0"], "draws=0 must be >= 1"),
        (["transfer=[bootstrap=1]"], "transfer: bootstrap=1 is too few for an interval"),
        (["transfer=[device=cuda:99]"], "transfer: device=cuda:99 is not available"),
        (["transfer=[mod=probe]"], "'mod=probe' of transfer: unknown key 'mod'; did you mean 'mode'"),
        (["pretrain=[epcohs=3]"], "'epcohs=3' of pretrain: unknown key 'epcohs'; did you mean 'epochs'"),
        (["pretrain=[epochs=nan]"], "method adversarial: epochs=nan must be a finite number"),
        (["pretrain=[run=/tmp/zz]"], "pretrain: the study sets run itself: leave it out"),
        (["pretrain=['data={path: x}']"], "pretrain: the study sets data.path itself"),
        (["pretrain=[seed=1]"], "pretrain: the study sets seed itself"),
        (["pretrain=[epochs]"], "'epochs' of pretrain is not of the form key=value"),
        (
            ["variants={a: [none, run=x]}", "methods=[a]", "reference=a"],
            "variants.a: the study sets run itself: leave it out",
        ),
        (
            ["variants={a: [none, epcohs=3]}", "methods=[a]", "reference=a"],
            "'epcohs=3' of variants.a: unknown key 'epcohs'; did you mean 'epochs'",
        ),
        (["shard.overrides=[rate=1]"], "shard.overrides: rate=1.0 must be >= 50 and <= 20000"),
        (["shard.overrides=[raet=100]"], "'raet=100' of shard.overrides: unknown key 'raet'; did you mean 'rate'"),
        (["shard.overrides=[output=x]"], "shard.overrides: the study sets output itself"),
        (["shard.overrides=['split={train: [1]}']"], "shard.overrides: the study sets split.train itself"),
        (["--dryrun"], "unknown option --dryrun; known: --help"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, more, said):
    with pytest.raises(UserError, match=said) as error:
        study.main(["name=s", "data=d", f"output={tmp_path / 'o'}", "methods=[adversarial,random]", *more])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("path", sorted(Path("configs/study").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_that_are_kept_pass_their_check(path):
    load(StudyConfig, path, ["data=d", "output=o", "transfer=[mode=finetune, bootstrap=0]"]).check()


def test_a_part_of_a_study_may_leave_out_methods_that_its_primary_comparisons_name():
    words = ["data=d", "output=o", "methods=[game,block,cmsc]", "seeds=[0,1,2]"]
    config = load(StudyConfig, "configs/study/paper.yaml", words)
    config.check()
    assert config.primary.others == ["blocks", "block", "3kg_halves"]
    assert config.primary.has("sex", 0.1, "block")
    words = ["data=d", "output=o", "methods=[game,random]", "reference=game"]
    others = ["cmsc", "scratch", "cmsc_equal_compute"]  # that another part may run
    load(StudyConfig, "configs/study/paper.yaml", [*words, f"primary.others=[{','.join(others)}]"]).check()
    with pytest.raises(UserError, match=r"primary\.others has cmcs; there are: "):
        load(StudyConfig, "configs/study/paper.yaml", [*words, "primary.others=[cmcs]"]).check()


def test_a_method_that_is_trained_from_scratch_stays_so_whatever_the_others_are():
    config = study_of("out", methods=["adversarial", "scratch", "random"], transfer=["mode=finetune"])
    modes = {}
    for method in config.methods:
        given = runs.transfer_words(config, Cell(0, method, 0, "rhythm", 1.0))
        modes[method] = load(TransferConfig, "configs/transfer/rhythm.yaml", given).mode
    assert modes == {"adversarial": "finetune", "scratch": "scratch", "random": "finetune"}


def test_a_study_whose_recordings_moved_goes_on_under_another_title(tmp_path):
    output = _made(tmp_path / "out")
    keep_config(StudyConfig(name="tiny", data="here", output=str(output)), output)
    keep_config(StudyConfig(name="other", data="there", output=str(output)), output)
    with pytest.raises(UserError, match=r"another 'folds'"):
        keep_config(StudyConfig(name="tiny", data="here", output=str(output), folds=5), output)


def test_commands_are_those_that_one_types(tmp_path):
    config = study_of("out", pretrain=["epochs=3"], shard=ShardStep(overrides=["rate=100"]))
    base = Path("out/rotation-1")
    shard = shown(runs.shard_command(config, 1, base))
    assert "python -m sharding build " in shard
    assert "split.column=strat_fold 'split.train=[1,2,5,6,7,8,9,10]' 'split.val=[4]' 'split.test=[3]'" in shard
    pretrain = shown(runs.pretrain_command(config, "none", 4, base))
    assert pretrain.startswith("deepspeed --num_gpus 2 --master_port ")
    assert pretrain.endswith(
        "none.yaml data.path=out/rotation-1/data run=out/rotation-1/runs/none-seed4 seed=4 epochs=3"
    )


def test_a_variant_adds_its_words_to_a_methods_config_and_has_the_last_one():
    config = study_of("out", pretrain=["epochs=3"], variants={"long": ["none", "epochs=9"]})
    command = shown(runs.pretrain_command(config, "long", 0, Path("out/rotation-1")))
    assert "none.yaml " in command
    assert command.endswith("run=out/rotation-1/runs/long-seed0 seed=0 method=long epochs=3 epochs=9")
