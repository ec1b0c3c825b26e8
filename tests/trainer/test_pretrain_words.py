"""What a user gets wrong before anything starts: one line, exit code 2; and the ranges of all numbers."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support.handmade import make_shards
from tests.support.launch import ROOT
from tests.support.pretrain_words import SMALL, called
from tests.support.ranges import ranged
from trainer import config, distributed, pretrain
from trainer.data.shards import Shards
from trainer.game.players import pairing_of
from trainer.run import assemble
from trainer.run.pairs import make_pair
from trainer.views import Key
from umbra.encoders.encoder import Scaling
from umbra.errors import UserError
from umbra.layers import keys

OFF = ["game.enabled=false", "game.coverage=0.5", "game.share=1", "game.slope_start=0", "game.slope_rise=0"]
MISTAKES = [
    (["data.path=/no/such/folder"], "not a finished data set"),
    (["data=DIR"], "'data' is a section: give data.path=... or data.lanes=..."),
    (["encoder=resnet34"], "'encoder' is a section: give encoder.name=... or encoder.args=..."),
    (["batch=64"], "'batch' is a section: give batch.global=... or batch.contrast=..."),
    (["batch.globl=3"], "did you mean 'batch.global'?"),
    (["batch.global=1000"], "larger than the 48 training samples"),
    (["batch.global=1"], "batch.global=1 must be >= 2"),
    (["data.lanes=5"], "data.lanes=5 does not divide the contrast batch 16; nearest: 4"),
    (["data.lanes=-4"], "data.lanes=-4 must be >= 0"),
    (["batch.contrast=5"], "batch.contrast=5 does not divide batch.global=16"),
    (["batch.contrast=1"], "batch.contrast=1 leaves no other ECG"),
    (["seed=-1"], "seed=-1 must be >= 0"),
    (["steps=-5"], "steps=-5 must be >= 0"),
    (["epochs=nan"], "epochs=nan must be a finite number"),
    (["epochs=inf"], "epochs=inf must be a finite number"),
    (["epochs=0"], "nothing to train"),
    (["temperature=0"], "temperature=0.0 must be > 0"),
    (["temperature=2", "learn_temperature=true"], "temperature=2: a learned temperature must start between 0.01 and 1"),
    (["batch.device=-1"], "batch.device=-1 must be >= 0"),
    (["encoder.name=resnet19"], "did you mean 'resnet18'?"),
    (["encoder.args.widht=3"], "did you mean 'width'?"),
    (["encoder.args.width=abc"], "encoder.args.width=abc must be of type int"),
    (["encoder.args.groups=0"], "encoder.args.groups=0 must be >= 1"),
    (["encoder.args.layers=[1,1]"], "encoder.args.layers is not an argument of resnet18"),
    (["encoder.args.embedding=0"], "encoder.args.embedding=0 must be >= 1"),
    (["encoder.args.norm=batch", "batch.device=4"], "use batch.device=0 or encoder.args.norm=group"),
    (["encoder.args.norm=layer"], "encoder.args.norm=layer is unknown; use group or batch"),
    (["projector.hidden=-1"], "projector.hidden=-1 must be >= 1"),
    (
        ["projector.hidden=1000000000000000"],
        "the projector cannot be built with projector.hidden=1000000000000000, projector.out=8: it does not fit into",
    ),
    (
        ["projector.hidden=99999999", "encoder.args.embedding=65536"],
        "the projector cannot be built with projector.hidden=99999999, projector.out=8: it does not fit into memory",
    ),
    (
        ["encoder.args.embedding=1000000000000"],
        "the encoder cannot be built with encoder.name=resnet18, encoder.args.width=8, encoder.args.embedding=10000000",
    ),
    (
        ["masker.width=80000000"],
        "the masker cannot be built with masker.name=unet, masker.width=80000000, ",
    ),
    (["projector.out=0"], "projector.out=0 must be >= 1"),
    (["masker.kernel=100001"], "masker.kernel=100001 must be >= 1 and <= 999"),
    (["masker.name=unett"], "masker.name=unett is unknown; did you mean 'unet'?"),
    (["data.ahead=999999999"], "data.ahead=999999999 must be >= 1 and <= 1000"),
    (["data.threads=100000"], "data.threads=100000 must be >= 1 and <= 256"),
    (["data.cache=/tmp/x"], "data.cache=/tmp/x has no effect with a local data.path: leave it out"),
    (["data.cache_gb=5"], "data.cache_gb=5.0 has no effect with a local data.path: leave it out"),
    (["run="], "run is empty: give the run directory, run=DIR"),
    (["epochs=1e300"], "epochs=1e+300 must be >= 0 and <= 1000000"),
    (["max_minutes=1e300"], "max_minutes=1e+300 must be >= 0 and <= 525600"),
    (["game.masks=1000000"], "game.masks=1000000 must be >= 1 and <= 64"),
    (["optim.lr=1e-3"], "unknown key 'optim.lr'; did you mean 'optim.encoder.lr'?"),
    (["seed=010"], "key 'seed': write 10, not 010 ('010' in quotes if it is text)"),
    (["log.every=1:30"], "key 'log.every': write 90, not 1:30"),
    (["seed=${oc.env:HOME}"], "key 'seed': ${oc.env:HOME} is not replaced by a value: write the int itself"),
    (["encoder.args=[1]"], "key 'encoder.args': this is a mapping: write encoder.args={A: B}, or {} for none"),
    (["views.first={name: vcg}"], "key 'views.first': this is a list: write views.first=[A,B], or [] for none"),
    (["views.first=['???']"], "key 'views.first': ??? is no value: give one, or leave the key out"),
    (["--dryrun"], "unknown option --dryrun; did you mean '--dry-run'?"),
    (["masker.kernel=4"], "masker.kernel=4 must be odd"),
    (["masker.kernel=0"], "masker.kernel=0 must be >= 1"),
    (["masker.depth=-1"], "masker.depth=-1 must be >= 0"),
    (["masker.width=0"], "masker.width=0 must be >= 1"),
    (["masker.width=12"], "masker.width=12 is not a multiple of 8"),
    (["optim.masker.lr=-1"], "optim.masker.lr=-1.0 must be >= 0"),
    (["optim.warmup=5"], "optim.warmup=5.0 must be >= 0 and <= 1"),
    (["views.second=[blok_mask]"], "did you mean 'block_mask'?"),
    (["views.both=[{name: cell_mask, cell_s: 1.3}]"], "view 'cell_mask': cell_s=1.3 leaves one cell in 1.28 s"),
    (["views.candidates=4"], "views.candidates=4: a masker makes views hard by itself; use game.enabled=false"),
    (["views.candidates=0"], "views.candidates=0 must be >= 1"),
    ([*OFF, "views.first=[]", "views.both=[]", "views.candidates=4"], "views.candidates=4: all would be the same"),
    (["views.both=[wandr]"], "did you mean 'wander'?"),
    (["views.both=[mains]"], "view 'mains': 50 Hz needs a rate above 100 Hz, the data have 100: leave the view out"),
    (["game.slope=nan"], "game.slope=nan must be a finite number"),
    (["game.strength=nan"], "game.strength=nan must be a finite number"),
    (["game.strength=-1"], "game.strength=-1.0 must be >= 0"),
    (["pair=same", "game.resolution_s=100"], "game.resolution_s=100 leaves one cell in a window of 2.56 s"),
    (["pair=same", "game.coverage=0.05"], "game.coverage=0.05 of 7 cells per window is less than half a cell"),
    (["pair=same", "game.coverage=0.95"], "game.coverage=0.95 of 7 cells per window is less than half a cell"),
    (["game.penalty=paper", "game.ratio=1.5"], "game.ratio=1.5"),
    (["game.threshold=half", "game.coverage=0.3", "game.share=1"], "game.coverage=0.3 has no effect without game.thre"),
    (["game.alpha=0.3"], "game.alpha=0.3 has no effect without game.penalty=paper"),
    (["game.enabled=false", "game.coverage=0.3"], "game.coverage=0.3 has no effect without game.enabled=true"),
    (["game.use=all"], "game.use=all has no effect without game.masks of 2 or more"),
    (["masker.name=paper", "masker.depth=3"], "masker.depth has no effect with masker.name=paper"),
    (["masker.name=paper", "game.resolution_s=1"], "game.resolution_s has no effect with masker.name=paper"),
    (["zero=7"], "zero=7"),
    (["data.partner=patients"], "data.partner=patients is unknown; use same, patient"),
    (["data.partner=patient", "pair=halves"], "data.partner=patient is pair=patient, but pair=halves"),
    (["pair=halve"], "pair.kind=halve is unknown; use same, halves, crops, patient"),
    (["pair=crops", "pair.seconds=3"], "pair.seconds=3 is longer than the windows of the data, 2.56 s"),
    (["game.resolution_s=1.5"], "game.resolution_s=1.5 leaves one cell in a view of 1.28 s"),
    (["game.coverage=0.1"], "game.coverage=0.1 of 4 cells per view is less than half a cell"),
    (["wandb.mode=ofline"], "wandb.mode=ofline"),
    (["data.exclude=[train-00000.tar]"], "not a shard of the training split; did you mean 'train-000000.tar'?"),
    (["data.exclude=[train-000000.tar]"], "data.exclude leaves no training shard: exclude fewer"),
    (["run=README.md"], "README.md is not a folder"),
    (["run=README.md/x"], "README.md is not a folder"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards", {"train": ["SR", "AFIB", "STACH"] * 16})


@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=lambda v: v[-1] if isinstance(v, list) else "")
@pytest.mark.parametrize("dry", [["--dry-run"], []], ids=["dry", "real"])
def test_a_mistake_ends_in_one_line_and_exit_code_2(words, said, dry, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trainer.distributed.initialise", lambda: pytest.fail("the mistake was not seen"))
    given = ["configs/pretrain/adversarial.yaml", f"data.path={shards}", f"run={tmp_path / 'run'}", *SMALL, *words]
    code, output, error = called([*given, *dry], monkeypatch, capsys)
    assert (code, output) == (2, "")
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_partners_of_a_patient_need_patients(shards, tmp_path, capsys, monkeypatch):
    root = shutil.copytree(shards, tmp_path / "s")
    manifest = root / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"patient_ids": true', '"patient_ids": false'))
    words = ["configs/pretrain/none.yaml", f"data.path={root}", *SMALL, "pair=patient", "--dry-run"]
    code, _, error = called(words, monkeypatch, capsys)
    assert (code, error.count("\n")) == (2, 1)
    assert "pair=patient: the source of the data set has no patient ids; use pair=same" in error


@pytest.mark.parametrize("word", ["pair=patient", "data.partner=patient"])
def test_the_partners_of_a_run_are_other_windows_of_the_patient(word, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    cfg = pretrain.read_config([f"data.path={shards}", f"run={tmp_path}", *SMALL, word])
    train = Shards(shards, "train")
    rows = assemble.make_order(cfg, train, {}).step(1)
    partners = assemble.patient_partners(cfg, train)
    assert np.array_equal(partners(rows, 1), rows ^ 1)  # two windows a patient, side by side
    assert assemble.patient_partners(pretrain.read_config([f"data.path={shards}", *SMALL]), train) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pair=patient"], "# pair=patient: 46 of 47 training ECGs have another one of their patient\n"),
        (["pair=halves"], "# pair=halves: views of 1.28 s, of windows of 2.56 s\n"),
        (["pair=crops", "pair.seconds=2"], "# pair=crops: views of 2 s, of windows of 2.56 s\n"),
    ],
)
def test_a_dry_run_says_where_the_views_come_from(words, said, tmp_path, capsys, monkeypatch):
    root = make_shards(tmp_path / "odd", {"train": ["SR"] * 47})
    given = ["configs/pretrain/adversarial.yaml", f"data.path={root}", f"run={tmp_path / 'run'}", *SMALL, *words]
    code, output, error = called([*given, "--dry-run"], monkeypatch, capsys)
    assert (code, error) == (0, "")
    assert said in output


def test_a_dry_run_of_a_mixture_counts_partners_within_a_source(tmp_path, capsys, monkeypatch):
    """Both have the same patients under one key."""
    roots = {name: make_shards(tmp_path / name, {"train": ["SR"] * n}, n) for name, n in (("few", 3), ("odd", 47))}
    given = [f"data.path.{name}={root}" for name, root in roots.items()]
    words = ["configs/pretrain/adversarial.yaml", *given, f"run={tmp_path / 'run'}", *SMALL, "pair=patient"]
    code, output, error = called([*words, "--dry-run"], monkeypatch, capsys)
    assert (code, error) == (0, "")
    assert "# pair=patient: 48 of 50 training ECGs have another one of their patient\n" in output


@pytest.mark.parametrize("config", sorted(path.stem for path in (ROOT / "configs" / "pretrain").glob("*.yaml")))
def test_every_method_makes_pairs_of_halves_with_noise_on_both_sides(config, shards):
    words = [
        f"configs/pretrain/{config}.yaml",
        f"data.path={shards}",
        *SMALL,
        "pair=halves",
        "views.both=[emg]",
    ]
    plan = assemble.plan_run(pretrain.read_config(words))
    run = SimpleNamespace(
        cfg=plan.cfg,
        train=plan.train,
        first=plan.views[0],
        second=plan.views[1],
        scaling=Scaling([0.0] * 12, [0.5] * 12, plan.cfg.scaling),
        pairing=pairing_of(plan.cfg, plan.train),
        patients=None,
    )
    signals = torch.from_numpy(plan.train.gather(np.arange(4), np.empty((4, 12, 256), "<i2")))
    pair = make_pair(run, signals, Key(0, 0, torch.arange(4)))
    assert pair.x.shape == pair.v.shape == (4, 12, 128)
    assert plan.encoder(torch.cat([pair.x, pair.v])).isfinite().all()
    if plan.masker is not None:
        assert plan.masker(pair.v).shape[-1] == 128


def test_views_of_both_sides_come_after_those_of_each(shards, tmp_path):
    words = [f"data.path={shards}", *SMALL, "views.first=[vcg]", "views.second=[time_mask, wander]"]
    first, second = assemble.plan_run(pretrain.read_config([*words, "views.both=[wander, lead_dropout]"])).views
    assert [view.op for view in first.signal + first.mask] == ["vcg", "wander", "lead_dropout"]
    assert [view.op for view in second.signal + second.mask] == ["wander", "wander#2", "time_mask", "lead_dropout"]


def test_a_network_of_one_length_has_no_shorter_views(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("umbra.encoders.resnet.ResNet.any_length", False)
    cfg = pretrain.read_config([f"data.path={shards}", f"run={tmp_path}", *SMALL, "pair=halves"])
    with pytest.raises(UserError, match="pair=halves: views are shorter than the window, and resnet18 takes one len"):
        assemble.plan_run(cfg)


def test_what_is_right_passes(shards, tmp_path, capsys, monkeypatch):
    given = ["configs/pretrain/adversarial.yaml", f"data.path={shards}", f"run={tmp_path / 'run'}", *SMALL, "--dry-run"]
    code, output, error = called(given, monkeypatch, capsys)
    assert (code, error) == (0, "")
    assert "48 training ECGs, 3 steps an epoch, 300 steps of 16, 16 lanes" in output


def test_every_number_of_the_config_has_a_range():
    numbers = {key for key, kind in keys(config.PretrainConfig) if kind in (int, float)}
    assert numbers == ranged(config.PretrainConfig) | {"zero"}


def test_a_checkpoint_keeps_the_numbers_that_0_stands_for(shards):
    cfg = pretrain.read_config([f"data.path={shards}", *SMALL])
    train = Shards(shards, "train")
    world = distributed.World(0, 2, torch.device("cpu"))
    state = assemble.checkpoint_state(cfg, world, assemble.make_order(cfg, train, {}), train)
    assert (state["config"]["data"]["lanes"], state["config"]["batch"]["contrast"]) == (16, 16)
    assert (cfg.precision, state["config"]["precision"]) == ("auto", "fp32")
    cfg.precision = "bf16"
    half = assemble.checkpoint_state(cfg, world, assemble.make_order(cfg, train, {}), train)
    assert half["config"]["precision"] == "bf16"
    assert (state["world"], state["fingerprint"]) == (2, train.manifest.fingerprint)


# ---- a dry run beside the run that is there ----


@pytest.fixture
def begun(shards, tmp_path):
    """The words of a run that was stopped at step 150 of 300."""
    run = tmp_path / "run"
    words = ["configs/pretrain/none.yaml", f"data.path={shards}", f"run={run}", *SMALL, "steps=300"]
    plan = assemble.plan_run(pretrain.read_config(words))
    state = assemble.checkpoint_state(plan.cfg, distributed.World(0, 1, torch.device("cpu")), plan.order, plan.train)
    folder = run / "checkpoints" / "step-150"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 150, **state}))
    (folder / "COMMITTED").touch()
    return words


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["optim.encoder.lr=0.5"], "optim.encoder.lr: 0.001, now 0.5"),
        (["encoder.args.width=16"], "encoder.args.width: 8, now 16"),
        (["optim.schedule=wsd"], 'optim.schedule: "cosine", now "wsd"'),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(more, said, begun, monkeypatch, capsys):
    code, output, error = called([*begun, *more, "--dry-run"], monkeypatch, capsys)
    assert (code, output) == (2, "")
    assert said in error


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "# resumes at step 150\n"),
        (
            ["steps=600"],
            "with 600 steps instead of 300: the encoder's learning rate is 0.00089 from here on, not 0.00054 (",
        ),
        (["steps=301"], "# resumes at step 150, with 301 steps instead of 300\n"),
    ],
)
def test_a_dry_run_says_what_more_steps_do_to_the_learning_rate(more, said, begun, monkeypatch, capsys):
    code, output, _ = called([*begun, *more, "--dry-run"], monkeypatch, capsys)
    assert code == 0
    assert said in output
