"""The page of a run: read back as HTML, and in a browser where there is one."""

import base64
import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.support.watched_run import Page, make_run
from trainer import watch
from trainer.observe import page
from umbra.errors import UserError

COLLAPSED = 0.99  # sameness of masks that raises an alarm
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def drawn(run):
    watch.main([str(run)])
    return Page((run / "watch.html").read_text())


def test_the_page_has_the_runs_figures_curves_and_masks(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    found = drawn(run)
    text = " ".join(" ".join(found.texts).split())
    assert f"written: {run / 'watch.html'}" in capsys.readouterr().out
    for word in (
        "<adversarial>, running",
        "60",
        "of 200 steps",
        "0:11:40",
        "1.700",
        "1,234 ECGs of 567 patients",
        "No alarms",
    ):
        assert word in text, word  # 140 steps of 50 ECGs at 10 ECG/s are 700 s
    titles = [t.strip() for t in found.texts if t.strip() in ("contrastive loss", "penalty of the masker", "ECG/s")]
    assert titles == ["ECG/s", "contrastive loss"]  # the tile of ECG/s; neither penalty nor speed ever change
    images = [base64.b64decode(i["src"].removeprefix("data:image/png;base64,")) for i in found.of("img")]
    assert images == [path.read_bytes() for path in sorted((run / "figures").glob("masks-*.png"))]
    assert found.of("input")[0]["max"] == "2"
    assert found.of("progress")[0]["value"] == "60"


def test_the_page_needs_nothing_else_and_names_no_place(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "figures" / "recording-000020.png").write_bytes(b"a patient's ECG")
    (run / "figures" / "mask_lift-0.png").write_bytes(b"a patient's ECG")
    found = drawn(run)
    text = (run / "watch.html").read_text()
    for tag, attrs in found.tags:
        for name in ("src", "href", "xlink:href", "action"):
            value = attrs.get(name, "#")
            assert value.startswith(("#", "data:")), (tag, name, value[:80])
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", text)
    assert "gnudata" not in text
    assert str(tmp_path) not in text
    assert len(found.of("img")) == 3  # no patient's recording


def test_alarms_are_said_in_words(tmp_path):
    run = make_run(tmp_path / "run", steps=(60, 80), sameness=COLLAPSED, alarms=1)
    text = " ".join(drawn(run).texts)
    assert "The masks have collapsed: all ECGs have the same one" in text
    assert "No alarms" not in text


def test_at_most_so_many_masks_from_first_to_last():
    assert page.spread([], 12) == []
    assert page.spread([1, 2], 12) == [1, 2]
    chosen = page.spread(list(range(500)), 12)
    assert (len(chosen), chosen[0], chosen[-1]) == (12, 0, 499)
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1


def test_a_run_is_followed_until_it_ends(tmp_path):
    """The page reloads itself while the run goes on, follows its lines, and shows the end."""
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").rename(tmp_path / "later")
    following = threading.Thread(target=watch.main, args=([str(run), "every=0.05"],))
    following.start()
    while following.is_alive() and not (run / "watch.html").exists():
        if not (run / "metrics.jsonl").exists():
            (tmp_path / "later").rename(run / "metrics.jsonl")
    assert 'http-equiv="refresh" content="0.05"' in (run / "watch.html").read_text()
    make_run(run, steps=(20, 40, 200), status="finished")
    following.join(60)
    assert not following.is_alive()
    text = (run / "watch.html").read_text()
    assert "finished" in text
    assert 'value="200"' in text
    assert "refresh" not in text


@pytest.mark.parametrize("name", ["run.lock", "run.lock.claim"])
def test_a_killed_run_is_not_followed_and_said_to_be_killed(tmp_path, name):
    run = make_run(tmp_path / "run")
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(60)
    (run / name).write_text(f"{os.uname().nodename} {os.getpid()}")
    assert page.is_running(run)
    (run / name).write_text(f"elsewhere {ended.pid}")
    assert page.is_running(run)
    (run / name).write_text(f"{os.uname().nodename} {ended.pid}")
    watch.main([str(run), "every=0.05"])
    text = (run / "watch.html").read_text()
    assert "killed: the same command resumes" in text
    assert "refresh" not in text


@pytest.mark.parametrize(
    ("spoil", "words", "said"),
    [
        (lambda run: None, [], "run is not set: python -m trainer.watch RUN"),
        (lambda run: None, ["RUN", "every=-1"], "every"),
        (lambda run: (run / "run.json").unlink(), ["RUN"], r"run\.json does not exist: .* is not a run directory"),
        (lambda run: (run / "config.yaml").unlink(), ["RUN"], r"config\.yaml does not exist"),
        (lambda run: (run / "metrics.jsonl").write_text(""), ["RUN"], r"metrics\.jsonl has no line yet: wait"),
    ],
)
def test_what_is_no_run_is_named(spoil, words, said, tmp_path):
    run = make_run(tmp_path / "run")
    spoil(run)
    with pytest.raises(UserError, match=said):
        watch.main([word.replace("RUN", str(run)) for word in words])
    assert not (run / "watch.html").exists()


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_a_browser_shows_one_mask_and_all_curves(tmp_path):
    """The DOM after scripts: only the last mask is shown, and no request leaves for another file."""
    run = make_run(tmp_path / "run")
    drawn(run)
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run(
        [*words, "--dump-dom", f"file://{run / 'watch.html'}"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    found = Page(dom)
    assert ["hidden" in figure for figure in found.of("figure")] == [True, True, False]
    assert "hidden" not in found.of("input")[0]
    assert len(found.of("svg")) == 2
