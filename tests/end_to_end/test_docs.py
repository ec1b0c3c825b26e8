"""The pages of docs/: links lead somewhere, words of commands are known, quoted error lines and figures exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from sharding.__main__ import USAGE
from sharding.join import JoinConfig
from sharding.options import BuildConfig
from tests.support.handmade import make_shards
from tests.support.launch import ROOT, launch
from tests.support.pretrain_words import run_words
from trainer.data.remote.cache import Cache
from trainer.evaluate.compare import CompareConfig
from trainer.observe.metrics import read_metrics
from trainer.pretrain import read_config
from trainer.study.config import StudyConfig
from trainer.transfer import read_configs
from umbra.config import load, split_words

DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")] + sorted(DOCS.rglob("*.md"))
GUIDES = [page for page in PAGES if page.parent in (DOCS, DOCS / "data") or page.name == "README.md"]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_a_file_and_a_heading(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        found = page if not path else (page.parent / path).resolve()
        assert found.exists(), target
        assert ROOT in found.parents, f"{target} is outside the repository"
        assert not heading or heading in anchors(found), target


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text()
    pages = [p for p in [*DOCS.rglob("*.md"), *DOCS.glob("*.ipynb")] if p.parent != DOCS / "data"]
    assert [p.name for p in pages if p != DOCS / "README.md" and f"]({p.relative_to(DOCS)})" not in index] == []
    of_data = (DOCS / "data" / "README.md").read_text() + index
    assert [p.name for p in (DOCS / "data").glob("*.md") if f"{p.name})" not in of_data] == []


@pytest.mark.parametrize("config", sorted((ROOT / "configs" / "shard").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_data_set_has_a_page_with_its_command(config):
    pages = [page for page in (DOCS / "data").glob("*.md") if f"configs/shard/{config.name} input=" in page.read_text()]
    assert any(page.name != "README.md" for page in pages)
    assert f"`{config.stem}`" in (DOCS / "data" / "README.md").read_text()


def commands(page: Path) -> list[list[str]]:
    """The commands in the indented blocks of a page, continued lines joined, without comments."""
    text = page.read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in re.findall(r"^    (\S.*)$", text, re.M) if "{" not in line[:9]]


def stages(words: list[str]) -> list[list[str]]:
    """The commands of a pipeline's stages; any other command as it is."""
    if words[0] != "slurm/pipeline.sh":
        return [words]
    starts = [at for at, word in enumerate(words) if word in ("shard", "pretrain", "export", "study")]
    own = {"shard": "output=OUT", "pretrain": "data.path=OUT", "study": "output=OUT"}
    parts = (words[at:end] for at, end in pairwise([*starts, len(words)]))
    return [["sbatch", f"slurm/{part[0]}.sbatch", *part[1:], own.get(part[0], "")] for part in parts]


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_commands_have_keys_that_exist(page):
    for words in (stage for typed in commands(page) for stage in stages(typed)):
        said = " ".join(words)
        if "sharding build" in said or "shard.sbatch" in said:
            load(BuildConfig, *split_words([w for w in words[words.index(config_of(words)) :] if w != "--dry-run"]))
        elif "sharding join" in said:
            load(JoinConfig, None, [w for w in words if "=" in w])
        elif "pretrain.py" in said or "pretrain.sbatch" in said:
            read_config([w for w in words[words.index(config_of(words)) :] if w != "--dry-run"]).check()
        elif "trainer.study" in said or "study.sbatch" in said:
            load(StudyConfig, *split_words(words[words.index(config_of(words)) :])).check()
        elif "trainer.transfer compare" in said:
            load(CompareConfig, None, [w for w in words if "=" in w])
        elif "trainer.transfer" in said:
            assert read_configs(words[words.index("trainer.transfer") + 1 :])
        elif "python -m sharding" in said:
            assert f"\n  {words[3]} " in USAGE


def config_of(words: list[str]) -> str:
    return next(w for w in words if w.startswith("configs/"))


def literals() -> list[str]:
    """All texts in the code, with `{}` for what is put in; adjacent strings are one."""
    texts = []
    for path in (p for part in ("umbra", "sharding", "trainer") for p in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_quoted_error_lines_occur_in_the_code():
    rows = re.findall(r"^\| (.*?) \| .* \|$", (DOCS / "troubleshooting.md").read_text(), re.M)
    quoted = [found[0] for row in rows if (found := re.findall(r"`([^`]+)`", row))]
    assert len(quoted) > 40
    known = literals()
    assert [line for line in quoted if not any(line in text for text in known)] == []


def test_every_figure_of_a_run_is_described(tmp_path):
    """One run with all that a local run can log, and the meters of a cache of remote shards."""
    data = make_shards(tmp_path / "data", {"train": ["SR"] * 48, "val": ["SR"] * 16, "test": ["SR"] * 8})
    extra = ["steps=8", "game.masks=2", "learn_temperature=true", "log.heldout_every=4", "log.probe=[sex]"]
    code, output = launch(run_words(data, tmp_path / "run", *extra))
    assert code == 0, output[-3000:]
    logged = {name for row in read_metrics(tmp_path / "run" / "metrics.jsonl") for name in row}
    logged = {"probe/TASK" if name == "probe/sex" else name for name in logged}
    logged |= set(Cache.meters(SimpleNamespace(counts={"hits": 1, "fetched": 1, "bytes": 1})))
    cells = re.findall(r"^\| (`.*?) \|", (DOCS / "metrics.md").read_text(), re.M)
    assert set(re.findall(r"`([^`]+)`", " ".join(cells))) == logged


# ---- the notebook ---------------------------------------------------------------------------------------------------

NOTEBOOK = json.loads((DOCS / "quickstart.ipynb").read_text())
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_was_executed_in_order_and_names_no_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    text = "".join("".join(output.get("text", [])) for output in outputs)
    assert len(text) > 500
    assert not re.search(r"(^|[\s\"'=])/\w|\x1b|Traceback|error:", text), "a path of a machine, colours, or an error"


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_cells_of_the_notebook_run(tmp_path):
    """As one Python script, with `!` lines given to a shell; printed figures are not compared."""
    script = ["import matplotlib, subprocess", "matplotlib.use('Agg')"]
    for cell in CELLS:
        source = "".join(cell["source"]).replace("\\\n", " ")
        script += [
            f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {line[1:]!r}], check=True)" if line[:1] == "!" else line
            for line in source.split("\n")
        ]
    script.append("assert tuple(features.shape) == (1, encoder.config.dim) and np.abs(ecg_mv).max() > 0.1")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "cells.py").write_text(f"import os\nos.chdir({str(tmp_path)!r})\n" + "\n".join(script))
    code, output = launch([str(tmp_path / "cells.py")])
    assert code == 0, output[-4000:]
    assert re.search(r"^sex +100% +0\.\d{3} \(", output, re.M)
