"""The figures of a task and of a comparison say the names of classes and tasks as users wrote them."""

import numpy as np
import pytest
from matplotlib.text import Text

from tests.support.results import GOOD, write
from trainer.evaluate import forest, task_figure
from trainer.evaluate.comparison import comparison

NAMES = ["_AVB", "20 $ and 30 $", "LAFB/LPFB"]


@pytest.fixture
def drawn(monkeypatch):
    """Each figure that is written."""
    figures = []
    for module in (task_figure, forest):
        real = module.write
        monkeypatch.setattr(module, "write", lambda f, path, real=real: (figures.append(f), real(f, path)))
    return figures


def texts(figure):
    """What is written in a figure, with the formulas, which would stand between two $."""
    found = [t for t in figure.findobj(Text) if t.get_text()]
    assert not any(t._preprocess_math(t.get_text())[1] is True for t in found), "no formula"
    return " | ".join(t._preprocess_math(t.get_text())[0] for t in found)


@pytest.mark.parametrize("kind", ["labels", "number"])
def test_each_class_or_number_is_named(tmp_path, drawn, kind):
    target = np.tile(np.eye(3), (8, 1))
    task_figure.task_figure(kind, NAMES, target, np.random.default_rng(0).random((24, 3)), tmp_path / "f.png")
    said = texts(drawn[0])
    assert all(name in said for name in NAMES), said


def test_a_forest_names_the_task_and_the_encoders(tmp_path, drawn):
    paths = [write(tmp_path / name, GOOD, task="$a$ b") for name in ("$x$", "_y")]
    comparison([*paths, f"output={tmp_path / 'out'}", "bootstrap=10"])
    said = texts(drawn[0])
    assert all(name in said for name in ("$a$ b: AUROC", "$x$, probe", "_y, probe")), said
