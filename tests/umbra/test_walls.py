"""Who may import whom: read from the source, and from what a fresh process really loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOPS = ("umbra", "sharding", "trainer")
# What a package may import beside itself and the standard library.
ALLOWED = {
    "umbra": {"torch", "numpy", "safetensors", "huggingface_hub", "omegaconf", "yaml", "matplotlib", "pyarrow"}
    | {"sklearn"},
    "sharding": {"umbra", "numpy", "scipy", "pyarrow", "yaml", "tqdm", "openpyxl", "omegaconf", "h5py", "matplotlib"}
    | {"ecgdatakit", "pydicom", "hdf5plugin", "soundfile", "wfdb"},
    "trainer": {"umbra", "numpy", "torch", "safetensors", "deepspeed", "tqdm", "neurokit2", "pyarrow", "sklearn"}
    | {"matplotlib", "wandb", "webdataset", "yaml", "scipy"},
}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for top in TOPS for path in files(top)}


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """The modules that a file imports, in functions too if `everywhere`; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
    return found


@pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)
def test_each_package_imports_what_it_may(path):
    top = path.relative_to(ROOT).parts[0]
    names = {name.split(".")[0] for name in imports(path)}
    assert names - set(sys.stdlib_module_names) - {top} <= ALLOWED[top]


def test_no_circle_of_imports():
    arrows = {name: imports(path) & MODULES.keys() - {name} for name, path in MODULES.items()}
    while free := [name for name, to in arrows.items() if not to & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows, f"circle among {', '.join(sorted(arrows))}"


def loaded(statement: str) -> set[str]:
    """The top-level names of what a fresh process has loaded after a statement."""
    script = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    return set(out.stdout.split())


def test_import_umbra_loads_nothing_heavy():
    assert not loaded("import umbra") & {"torch", "numpy", "deepspeed", "omegaconf", "yaml", "sharding", "trainer"}


def test_loading_an_encoder_needs_torch_numpy_and_safetensors_alone():
    found = loaded("from umbra import load_encoder, load_predictor")
    assert {"torch", "safetensors"} <= found
    heavy = {"deepspeed", "wandb", "pyarrow", "scipy", "sklearn", "matplotlib", "omegaconf", "h5py", "webdataset"}
    assert not found & (heavy | {"sharding", "trainer", "huggingface_hub", "pandas"})


def test_one_module_of_umbra_asks_for_sharding_by_name_and_only_for_a_path():
    """`Encoder.embed` is one call for arrays and files; `sharding.recording` is loaded where a file is to be read."""
    modules = {name: path for name, path in MODULES.items() if name.split(".")[0] == "umbra"}
    asked = {name: re.findall(r"import_module\((.*?)\)", path.read_text()) for name, path in modules.items()}
    assert {name: found for name, found in asked.items() if found} == {
        "umbra.encoders.recordings": ['"sharding.recording"'],
        "umbra.reference": ["module"],  # the configs whose keys it prints
    }
    embed = """import numpy; from umbra.encoders.config import EncoderConfig as C; from umbra.hub import initialise
from umbra.leads import CANONICAL as L
scaling = {"mode": "record", "mean_mv": [0.0] * 12, "std_mv": [1.0] * 12}
encoder = initialise(C({"name": "resnet18", "args": {"width": 8}}, 0, 100, list(L), 200, scaling), 0)
encoder.embed(numpy.random.default_rng(0).normal(size=(12, 1500)), rate=500)"""
    assert not loaded(f"exec({embed!r})") & {"sharding", "trainer", "scipy", "pyarrow", "omegaconf"}


def test_sharding_runs_without_torch():
    assert not loaded("import sharding.__main__, sharding.build, sharding.report") & {"torch", "deepspeed", "trainer"}


def test_only_the_engines_the_checkpoint_and_the_ranks_know_deepspeed():
    knowing = {name for name, path in MODULES.items() if any(n.split(".")[0] == "deepspeed" for n in imports(path))}
    assert knowing == {"trainer.run.engines", "trainer.run.checkpoint", "trainer.distributed"}


def test_only_the_game_the_losses_and_fine_tuning_go_backward():
    playing = {name for name, path in MODULES.items() if ".backward(" in path.read_text()}
    assert playing <= {"trainer.game.game", "trainer.game.losses", "trainer.evaluate.finetune"}


def test_one_module_holds_the_collectives_and_the_environment_of_the_ranks():
    collective = {name for name, path in MODULES.items() if "torch.distributed" in imports(path)}
    assert collective == {"trainer.distributed"}
    reading = {name for name, path in MODULES.items() if "LOCAL_RANK" in path.read_text()}
    assert reading == {"trainer.distributed", "trainer.run.terminal"}  # the latter before torch is loaded


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        names = {name.rpartition(".")[2] for name in imports(path)} | {n.split(".")[0] for n in imports(path)}
        assert not [name for name in names if name.startswith("test_")], path
