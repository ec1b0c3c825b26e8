"""Who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = {"sharding.schema", "sharding.config", "sharding.leads", "sharding.signal", "sharding.files"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the full name"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", files("sharding"), ids=lambda p: str(p.relative_to(ROOT)))
def test_sharding_knows_no_torch_and_no_trainer(path):
    forbidden = {"torch", "deepspeed", "trainer", "umbra", "wandb", "wfdb", "webdataset"}
    assert not rooms(imports(path)) & forbidden


@pytest.mark.parametrize("path", [*files("trainer"), *files("umbra")], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_trainer_takes_only_the_pure_parts_of_sharding(path):
    names = imports(path)
    taken = {n for n in names if n.startswith("sharding")}
    assert all(any(n == pure or n.startswith(f"{pure}.") for pure in PURE) for n in taken)
    assert not rooms(names) & {"benchmarks", "tests"}


@pytest.mark.parametrize("folder", ["sharding", "trainer", "umbra"])
def test_each_room_is_there(folder):
    assert files(folder)


def test_only_the_game_the_loop_and_the_start_hold_engines():
    knowing = {p.name for p in files("trainer") if "deepspeed" in rooms(imports(p))}
    assert knowing == {"engines.py", "checkpoint.py", "dist.py"}
    playing = {p.name for p in files("trainer") if ".backward(" in p.read_text()}
    assert playing <= {"game.py", "transfer.py", "losses.py"}
