"""A metric is shown from the line on at which it says something, and never if it does not."""

import json
import math
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.metrics_page import documented
from trainer.observe import series
from trainer.observe.series import Seen, panels, says_something

ROOT = Path(__file__).parents[3]

FIGURES = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.5]))
LINES = st.lists(st.fixed_dictionaries({}, optional={"loss": FIGURES, "penalty": FIGURES, "alarms": FIGURES}))


def rows(lines):
    return [{"step": n, **line} for n, line in enumerate(lines, 1)]


def drawn(found):
    return {s.name for panel in panels(found) for s in panel.series}


def test_two_different_values_say_something():
    assert says_something(np.array([0.0, 1e-9]))
    assert says_something(np.array([3.0, 3.0, 3.1]))
    for none in ([], [3.0], [0.0, 0.0], [3.0, 3.0 + 1e-9], [-2.0, -2.0]):
        assert not says_something(np.array(none))


@given(LINES)
def test_a_curve_is_drawn_if_its_metric_has_two_values(lines):
    expected = set()
    for name in ("loss", "penalty", "alarms"):
        if len({line[name] for line in lines if line.get(name) is not None}) > 1:
            expected.add(name)
    assert drawn(rows(lines)) == expected
    assert Seen(lines).telling == expected


@given(LINES)
def test_line_by_line_a_metric_is_announced_once_and_begins_to_speak_once(lines):
    seen, new, telling = Seen(), [], []
    for line in lines:
        added, told = seen.add(line)
        new += added
        telling += told
        assert seen.telling == set(telling)
    assert sorted(new) == sorted({k for line in lines for k, v in line.items() if v is not None})
    assert len(telling) == len(set(telling))
    assert set(telling) <= set(new)


def held_out(own, loss=(3.0, 2.0), others=(2.5, 1.5)):
    return [
        {"step": n, "heldout/loss": a, "heldout/masked_loss": b, "heldout/others_masks_loss": c, "loss": a + 1}
        for n, (a, b, c) in enumerate(zip(loss, own, others), 1)
    ]


def test_an_equal_held_out_loss_is_shown_once_in_a_panel():
    for own, labels in (
        ((3.0, 2.0), ["as in training", "another ECG's mask"]),
        ((3.5, 2.2), ["as in training", "own mask alone", "another ECG's mask"]),
    ):
        found = {panel.title: [s.label for s in panel.series] for panel in panels(held_out(own))}
        assert found == {"contrastive loss": ["training", "held-out patients"], "held-out loss by mask": labels}
    assert "heldout/masked_loss" not in Seen(held_out((3.0, 2.0))).telling
    assert "heldout/masked_loss" in Seen(held_out((3.5, 2.2))).telling


def test_a_panel_of_curves_that_another_has_is_left_out():
    found = [{key: row[key] for key in ("step", "loss", "heldout/loss")} for row in held_out((3.0, 2.0))]
    assert [panel.title for panel in panels(found)] == ["contrastive loss"]


def test_values_that_are_not_finite_are_no_points():
    found = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": None}, {"step": 4, "loss": 2}]
    (panel,) = panels(found)
    assert panel.series[0].steps.tolist() == [1, 4]
    assert panel.series[0].values.tolist() == [1, 2]


def test_learning_rates_have_a_curve_per_player():
    found = [{"step": n, "lr/encoder": n * 1e-3, "lr/masker": n * 1e-4} for n in (1, 2)]
    (panel,) = panels(found)
    assert [s.label for s in panel.series] == ["encoder", "masker"]


def test_every_figure_of_a_run_is_documented_once():
    found = json.loads((ROOT / "tests" / "data" / "metrics-42d8aac.json").read_text())
    written = {name for row in found for name in row} - {"step"}
    drawn = {name for _, _, metrics in series._PANELS for name, _ in metrics if not name.endswith("/")}
    assert written | drawn <= documented()
