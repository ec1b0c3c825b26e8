"""The built wheel in fresh environments, used in a folder that is not the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from umbra.directory import CONFIG, WEIGHTS, save_weights
from umbra.encoders.encoder import EncoderConfig
from umbra.hub import initialise

ROOT = Path(__file__).parents[2]
SMALL = ["steps=2", "batch.global=8", "encoder.args.width=8", "encoder.args.embedding=16", "projector.hidden=16"]


def ran(words: list[str | Path], cwd: Path, seconds: float = 240.0) -> str:
    """What a command prints; the repository is on no path of it."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    ran([sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-q", "-w", folder], folder)
    return next(folder.glob("umbra-*.whl"))


def environment(folder: Path, wheel: Path, packages: list[str]) -> Path:
    """A virtual environment with the wheel and, of this one's packages, those that are named (all without names)."""
    ran([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    site = Path(ran([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    here = Path(sysconfig.get_path("purelib"))
    if packages:
        for name in packages:
            for found in here.glob(name):
                (site / found.name).symlink_to(found)
    else:
        (site / "others.pth").write_text(f"{here}\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return python


def test_the_wheel_holds_the_packages_their_types_and_the_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"umbra/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    code = {str(p.relative_to(ROOT)) for top in ("umbra", "sharding", "trainer") for p in (ROOT / top).rglob("*.py")}
    assert configs | code | {"umbra/py.typed"} <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "docs", "configs")]


def test_torch_numpy_and_safetensors_are_all_that_an_encoder_needs(wheel, tmp_path):
    """The environment holds what these three need of their own, and nothing of the extras."""
    scaling = {"mode": "fixed", "mean_mv": [0.0] * 12, "std_mv": [1.0] * 12}
    leads = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    config = EncoderConfig({"name": "resnet18", "args": {"width": 8}}, 512, 100.0, leads, 200, scaling)
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / CONFIG).write_text(config.to_json())
    save_weights(tmp_path / "encoder" / WEIGHTS, initialise(config, 0).state_dict())
    needed = ["torch", "torchgen", "functorch", "numpy", "numpy.libs", "safetensors", "typing_extensions.py", "sympy"]
    needed += ["mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock"]
    needed += ["torch-*", "numpy-*", "safetensors-*"]
    python = environment(tmp_path / "venv", wheel, needed)
    (tmp_path / "umbra").symlink_to(ROOT)  # a clone beside the script: an installed package is found all the same
    script = "import umbra, torch; e = umbra.load_encoder('encoder'); print(e(torch.zeros(2, 12, 200)).shape)"
    assert ran([python, "-c", script], tmp_path).strip() == "torch.Size([2, 512])"
    for command, extra in (("sharding", "shard"), ("trainer.export", "train")):
        done = subprocess.run([str(python), "-m", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr == f"error: omegaconf is not installed: pip install 'umbra[{extra}]'\n"
    told = "from umbra import load_encoder\ntry: load_encoder('owner/name')\nexcept ValueError as error: print(error)"
    assert "pip install 'umbra[hub]'" in ran([python, "-c", told], tmp_path)


@pytest.mark.full
def test_the_commands_work_from_the_wheel_outside_of_a_checkout(wheel, tmp_path):
    python = environment(tmp_path / "venv", wheel, [])
    assert str(tmp_path) in ran([python, "-c", "import umbra, sharding, trainer; print(trainer.__file__)"], tmp_path)
    ran([python, "-m", "sharding", "synth", "output=rec", "patients=40"], tmp_path)
    shard = ["configs/shard/wfdb.yaml", "input=rec", "output=shards", "rate=100", "seconds=10"]
    ran([python, "-m", "sharding", "build", *shard, "split.train=0.6", "split.val=0.2", "split.test=0.2"], tmp_path)
    launch = [python, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port", "29755"]
    words = ["configs/pretrain/adversarial.yaml", "data.path=shards", "run=run", "masker.width=8", *SMALL]
    assert "finished at step 2" in ran([*launch, "--module", "trainer.pretrain", *words], tmp_path)
    ran([python, "-m", "trainer.export", "run=run"], tmp_path)
    words = ["configs/transfer/sex.yaml", "encoder=run/encoder", "data=shards", "output=out", "bootstrap=20"]
    assert "macro" in ran([python, "-m", "trainer.transfer", *words], tmp_path)
