"""The examples of CONTRIBUTING.md: their files are made in a copy of the tree, their commands are run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = [name for name in re.findall(r"^## (.*)$", TEXT, re.M) if name.startswith(("A ", "An "))]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for name in ("umbra", "sharding", "trainer", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def apply(block: str, tree: Path) -> None:
    """Writes the file that a block's first line names, or puts the block below the line that it names."""
    first, _, rest = block.partition("\n")
    added = re.fullmatch(r"# (\S+), below `(.*)`:", first)
    if not added:
        path = tree / first.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest)
        return
    path = tree / added[1]
    text = path.read_text()
    assert text.count(f"{added[2]}\n") == 1, f"{added[1]} has no one line {added[2]}"
    path.write_text(text.replace(f"{added[2]}\n", f"{added[2]}\n{rest}"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_works_as_it_stands(example, tree):
    section = TEXT.partition(f"## {example}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", section, re.M | re.S)
    commands = re.findall(r"^    (python .*)$", section, re.M)
    assert blocks
    assert commands
    for block in blocks:
        apply(block, tree)
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tree),
    }
    for command in commands:
        done = subprocess.run(["bash", "-c", command], cwd=tree, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_every_kind_of_part_has_its_example():
    assert EXAMPLES == ["A view", "An encoder", "A task", "A source"]
