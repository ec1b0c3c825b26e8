"""Typical mistakes of a first hour: one line, exit code 2, and what the line says to do is right."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from sharding import __main__ as sharding
from tests.support import watched_run
from tests.support.handmade import make_run, make_shards
from tests.support.pretrain_words import SMALL
from tests.support.recordings import LEADS, beats, write_folder, write_record
from trainer import export, pretrain, transfer, watch
from trainer.evaluate import many
from trainer.study import __main__ as study
from umbra.config import command

LEADS_KEY = "source.array.leads"
TWELVE = f"[{','.join(LEADS)}]"
PLACES = r"\b(WFDB|WFBD|ONE|HDF5|LAST|EMPTY|DATA|RUN|WATCHED|ENCODER|OUT)\b"
COMMANDS = {
    "build": (sharding.main, "build configs/shard/wfdb.yaml input=WFDB output=OUT source.public=true --dry-run"),
    "hdf5": (
        sharding.main,
        "build configs/shard/hdf5.yaml input=HDF5 output=OUT source.public=true --dry-run source.array.rate=100 "
        f"source.array.units=uV source.array.leads={TWELVE} source.array.signals=tracings",
    ),
    "sharding": (sharding.main, ""),
    "pretrain": (
        pretrain.main,
        f"configs/pretrain/adversarial.yaml data.path=DATA run=OUT {' '.join(SMALL)} --dry-run",
    ),
    "export": (export.main, "run=RUN output=OUT"),
    "transfer": (transfer.main, "configs/transfer/rhythm.yaml encoder=random like=ENCODER data=DATA output=OUT"),
    "study": (study.main, "configs/study/ptbxl100-first.yaml data=WFDB output=OUT"),
    "watch": (watch.main, ""),
}


@dataclass(frozen=True)
class Mistake:
    """`words` are added to a command; `said`: a part of its line; with `better` in their place it is not said."""

    command: str
    words: str
    said: str
    better: str | None = None
    processes: int = 1


M = Mistake
MISTAKES = [
    # words of other tools
    M("build", "sample_rate=100", "unknown key 'sample_rate'; did you mean 'rate'?", "rate=100"),
    M("build", "fs=500", "did you mean 'rate'?", "rate=500"),
    M("build", "num_workers=1", "did you mean 'workers'?", "workers=1"),
    M("build", "split.valid=0.1", "did you mean 'split.val'?", "split.val=0.1"),
    M("pretrain", "optim.lr=1e-3", "did you mean 'optim.encoder.lr'?", "optim.encoder.lr=1e-3"),
    M("pretrain", "lr=1e-3", "did you mean 'optim.encoder.lr'?", "optim.encoder.lr=1e-3"),
    M("pretrain", "batch_size=8", "did you mean 'batch.global'?", "batch.global=8"),
    M("pretrain", "batch=8", "'batch' is a section: give batch.global=...", "batch.global=8"),
    M("pretrain", "device=cuda", "devices and processes are the launcher's: deepspeed --num_gpus N"),
    M("pretrain", "num_gpus=2", "devices and processes are the launcher's: deepspeed --num_gpus N"),
    M("pretrain", "model=resnet34", "did you mean 'encoder.name'?", "encoder.name=resnet34"),
    M("pretrain", "encoder=resnet34", "'encoder' is a section: give encoder.name=...", "encoder.name=resnet34"),
    M("pretrain", "max_epochs=3", "did you mean 'epochs'?", "epochs=3"),
    M("transfer", "frac=0.1", "did you mean 'fraction'?", "fraction=0.1"),
    M("pretrain", "num_workers=4", "did you mean 'data.threads'?", "data.threads=4"),
    M("pretrain", "scheduler=cosine", "did you mean 'optim.schedule'?", "optim.schedule=cosine"),
    M("pretrain", "encoder.width=8", "did you mean 'encoder.args.width'?", "encoder.args.width=8"),
    M("pretrain", "wandb.enabled=true", "did you mean 'wandb.mode'?", "wandb.mode=offline"),
    M("pretrain", "--batch-size=8", "did you mean 'batch.global'?", "batch.global=8"),
    M("pretrain", "--config=configs/pretrain/none.yaml", "a config file is given by its path alone"),
    M("build", "--workers 1", "known: --dry-run, --help, and KEY=VALUE without dashes", "workers=1"),
    M("export", "RUN", "is not of the form key=value; did you mean run=", "run=RUN"),
    M("transfer", "task=sex", "a config file is given by its path alone"),
    M("transfer", "mode=linear", "mode=linear is unknown; use probe, finetune, scratch", "mode=probe"),
    # spelling
    M("build", "sorce.public=true", "did you mean 'source'?", "source.public=true"),
    M("build", "--dryrun", "unknown option --dryrun; did you mean '--dry-run'?", "--dry-run"),
    M("build", "seconds = 10", "'seconds' is neither a config file (.yaml) nor key=value: no spaces", "seconds=10"),
    M("sharding", "biuld input=WFDB", "unknown command 'biuld'; did you mean 'build'?"),
    M("pretrain", "encoder.name=ResNet34", "did you mean 'resnet34'?", "encoder.name=resnet34"),
    M("pretrain", "encoder.name=resnet81", "did you mean 'resnet18'?", "encoder.name=resnet18"),
    M("pretrain", "encoder.args.widht=8", "did you mean 'width'?", "encoder.args.width=8"),
    M("pretrain", "views.second=[blockmask]", "did you mean 'block_mask'?", "views.second=[block_mask]"),
    # files and folders
    M("build", "input=WFBD", "does not exist", "input=WFDB"),
    M("build", "input=EMPTY", "is empty"),
    M("build", "output=WFDB", "holds other files: choose another output", "output=OUT"),
    M("sharding", "build configs/shard/ptb-xl.yaml input=WFDB", "does not exist; did you mean 'ptbxl.yaml'?"),
    M("sharding", "build wfdb input=WFDB", "config file wfdb does not exist; did you mean configs/shard/wfdb.yaml?"),
    M("sharding", "build configs/shard input=WFDB", "config file configs/shard is a folder; known: chapman.yaml"),
    M(
        "sharding",
        "build configs/pretrain/none.yaml input=WFDB output=OUT",
        "it is a config of another command: this one needs one of configs/shard/",
    ),
    M("pretrain", "data.path=DATA/manifest.json", "is a file: name the folder of the data set", "data.path=DATA"),
    M("pretrain", "data.path=WFDB", "not a finished data set", "data.path=DATA"),
    M("pretrain", "run=WFDB", "holds other files", "run=OUT"),
    M("export", "run=DATA", "is not a run directory of trainer/pretrain.py", "run=RUN"),
    M("export", "step=5", "it has 3, 7", "step=7"),
    M("export", "output=WFDB", "contains other files", "output=OUT"),
    M("transfer", "encoder=RUN", "RUN is not an encoder directory (`python -m trainer.export`)", "encoder=ENCODER"),
    M("transfer", "like=", "encoder=random needs like=DIR", "like=ENCODER"),
    M("transfer", "output=WFDB", "holds other files", "output=OUT"),
    M("transfer", "column=label", "label column 'label' is not in"),
    M("transfer", "device=cuda", "device=cuda is not available; use auto or cpu", "device=cpu"),
    M("study", "output=RUN", "holds", "output=OUT"),
    M("study", "methods=[same_window,gausian]", "there are:", "methods=[same_window,gaussian]"),
    M("watch", "DATA", "DATA is not a run directory", "WATCHED"),
    # signals
    M("hdf5", "source.array.signals=ecgs", "tracings", "source.array.signals=tracings"),
    M("hdf5", "input=LAST", "leads_last", "input=LAST source.array.leads_last=true"),
    M(
        "hdf5",
        "source.array.leads=[I,II]",
        "source.array.leads must name the array's leads",
        f"{LEADS_KEY}={TWELVE}",
    ),
    M("build", "input=ONE", "leads=[I] builds the leads that are there", "input=ONE leads=[I]"),
    M("build", "seconds=60", "a shorter window, seconds=..., or min_seconds=", "seconds=60 min_seconds=5"),
    M("build", "seconds=10.005", "must be a whole number of samples", "seconds=10"),
    M("build", "source.public=false", "no pseudonym key: set the variable UMBRA_KEY", "source.public=true"),
    M("build", "split.column=fold", "split.column needs a table (source.table.file)"),
    # values
    M("pretrain", "batch.global=63 batch.contrast=0", "use batch.global=62 or 64", "batch.global=62", processes=2),
    M("pretrain", "batch.global=4096", "training samples", "batch.global=64"),
    M("pretrain", "epochs=ten", "key 'epochs': a number is needed, not ten", "epochs=10"),
    M("pretrain", "batch.global=7.5", "key 'batch.global': a whole number is needed, not 7.5", "batch.global=8"),
    M("build", "rate=100Hz", "key 'rate': a number is needed, not 100Hz", "rate=100"),
    M("build", "source.public=maybe", "key 'source.public': true or false is needed, not maybe", "source.public=true"),
    M("pretrain", "epochs=0", "nothing to train", "epochs=1"),
    M("pretrain", "precision=fp16", "precision=fp16 is unknown", "precision=bf16"),
    M("pretrain", "optim.warmup=500", "optim.warmup=500.0 must be >= 0 and <= 1", "optim.warmup=0.1"),
    M(
        "pretrain",
        "views.second={name: block_mask}",
        "a value with spaces in quotes",
        "'views.second=[{name: block_mask}]'",
    ),
    M("pretrain", "views.second=block_mask", "write views.second=[A,B]", "views.second=[block_mask]"),
    M("pretrain", "seed=007", "write 7, not 007", "seed=7"),
    M("transfer", "fraction=10", "fraction=10.0 must be > 0 and <= 1", "fraction=0.1"),
    M("study", "minutes=0", "minutes=0.0 must be > 0", "minutes=10"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Recordings, arrays, shards, a run and an encoder."""
    folder = tmp_path_factory.mktemp("mistakes")
    write_folder(folder / "WFDB", 20)
    for n in range(4):
        write_record(folder / "ONE", f"r{n}", beats(n)[:, :1], leads=("I",))
    signals = np.stack([beats(n).T for n in range(8)])
    for name, array in (("HDF5", signals), ("LAST", signals.transpose(0, 2, 1))):
        (folder / name).mkdir()
        with h5py.File(folder / name / "all.h5", "w") as file:
            file["tracings"], file["exam_id"] = array, np.arange(len(array))
    (folder / "EMPTY").mkdir()
    kinds = ["SR", "AFIB", "STACH", "SR"]
    make_shards(folder / "DATA", {"train": kinds * 16, "val": kinds * 4, "test": kinds * 4})
    make_run(folder / "RUN")
    watched_run.make_run(folder / "WATCHED")
    export.export(folder / "RUN", folder / "ENCODER")
    return folder


def called(mistake: Mistake, words: str, place: Path, monkeypatch, capsys) -> tuple[object, str]:
    """(exit code, stderr) of the command with these words more; a step that takes long ends well at once."""

    def begun(*_):
        raise SystemExit(0)

    monkeypatch.setattr(many, "run", begun)
    monkeypatch.setattr(study.Share, "work", begun)
    monkeypatch.delenv("UMBRA_KEY", raising=False)
    monkeypatch.setenv("WORLD_SIZE", str(mistake.processes))
    shutil.rmtree(place / "OUT", ignore_errors=True)
    main, usual = COMMANDS[mistake.command]
    given = re.sub(PLACES, lambda word: str(place / word[1]), f"{usual} {words}")
    monkeypatch.setattr(sys, "argv", ["command", *shlex.split(given)])
    with pytest.raises(SystemExit) as ended:
        command(main)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.command} {m.words}")
def test_a_mistake_is_one_line_that_leads_the_right_way(mistake, place, monkeypatch, capsys):
    code, said = called(mistake, mistake.words, place, monkeypatch, capsys)
    line = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(line)) == (2, 1), said
    assert mistake.said in line[0]
    if mistake.better is not None:
        assert called(mistake, mistake.better, place, monkeypatch, capsys)[0] == 0
