"""The page at the end of the demo."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding.options import BuildConfig
from tests.support.launch import ROOT
from tests.support.watched_run import Page, make_run
from trainer import demo
from trainer.evaluate.config import TransferConfig
from trainer.pretrain import read_config
from umbra.config import load, split_words
from umbra.errors import UserError


@pytest.fixture
def finished(tmp_path):
    """The output of a demo, in a folder that needs quotes."""
    out = tmp_path / "my demo"
    make_run(out / "run", status="finished")
    given = (("random", (0.55, None, None)), ("random-masks", (0.75, 0.7, 0.8)), ("run", (0.8, 0.7, 0.9)))
    for encoder, score in given:
        task, place = "rhythm", out / "transfer" / f"rhythm-{encoder}"
        place.mkdir(parents=True)
        row = {"task": task, "encoder": encoder, "fraction": 1.0, **dict(zip(("auroc", "low", "high"), score))}
        (place / "result.json").write_text(json.dumps(row))
    return out


def test_the_page_has_scores_curves_masks_and_needs_nothing_else(finished, capsys):
    demo.main([str(finished)])
    assert capsys.readouterr().out == f"written: {finished / 'index.html'}\n"
    found = Page((finished / "index.html").read_text())
    text = " ".join(" ".join(found.texts).split())
    assert "rhythm learned masks 0.800 (0.700 to 0.900)" in text
    assert "rhythm random masks 0.750 (0.700 to 0.800)" in text
    assert "rhythm untrained 0.550 (no interval)" in text
    assert text.index("learned masks 0.8") < text.index("random masks 0.7") < text.index("untrained 0.5")
    assert "Differences" not in text, "without predictions"
    assert "1,234 ECGs of 567 patients" in text
    assert len(found.of("img")) == 3
    assert len(found.of("svg")) == 2
    spans = [attrs["style"] for attrs in found.of("i") if "style" in attrs]
    assert spans == ["left:50.0%;width:33.3%", "left:50.0%;width:16.7%"]  # on a line from 0.4 to 1
    assert all(a.get("src", "data:").startswith("data:") and "href" not in a for tag, a in found.tags if tag != "use")


def test_the_page_says_how_far_learned_masks_are_above_random_ones(finished):
    """The difference as in the results' predictions, with the sign of learned minus random."""
    right = np.arange(60) % 2
    for encoder, score in (("run", right), ("random-masks", np.arange(60) // 2 % 2)):
        p = np.clip(score, 0.1, 0.9)
        columns = {"row": np.arange(60), "patient": np.arange(60), "label": [f"c{k}" for k in right]}
        table = pa.table(columns | {"p_c0": 1 - p, "p_c1": p})
        pq.write_table(table, finished / "transfer" / f"rhythm-{encoder}" / "predictions.parquet")
    demo.main([str(finished)])
    text = " ".join(" ".join(Page((finished / "index.html").read_text()).texts).split())
    assert "rhythm learned masks - random masks +0.500 (+0.3" in text


def test_the_commands_of_the_page_are_known_and_name_this_environment(finished, monkeypatch):
    monkeypatch.chdir(ROOT)
    demo.main([str(finished)])
    text = Page((finished / "index.html").read_text()).texts
    lines = [line for words in text for line in words.splitlines() if str(Path(sys.executable).parent) in line]
    assert len(lines) == 9
    for words in map(shlex.split, lines):
        words = [word for word in words if not word.startswith("UMBRA_KEY=")]
        program, rest = " ".join(words[:4]), words[3:]
        if "pretrain.py" in " ".join(words):
            read_config(words[4:]).check()
        elif "trainer.transfer" in program and rest[0] != "compare":
            load(TransferConfig, *split_words(rest)).check()
        elif "sharding build" in program:
            load(BuildConfig, *split_words(words[4:], ["--dry-run"]))
        else:
            assert re.search(r"-c import umbra|trainer.(export|watch|transfer) |sharding report", program)


def test_a_demo_that_has_not_ended_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no transfer/\*/result\.json: give the output folder of a `make demo`"):
        demo.main([str(tmp_path)])
    with pytest.raises(UserError, match="output is not set"):
        demo.main([])
