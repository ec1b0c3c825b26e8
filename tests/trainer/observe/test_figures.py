"""The pictures hold what they were given: read back from the pixels and from the drawn artists."""

import json
from itertools import pairwise
from xml.etree import ElementTree

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from trainer import figures as figures_command
from trainer.observe import curves, mask_figure
from trainer.observe.curves import loss_curves, panel_svg
from trainer.observe.example_ecg import synthetic_example
from trainer.observe.mask_figure import ecg_with_masks
from trainer.observe.series import panels
from trainer.study import figure as study_drawing
from trainer.study.figure import study_figure
from umbra.drawing import paper as ecg_paper
from umbra.errors import UserError
from umbra.leads import CANONICAL

RATE = 100.0


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, for a look at their artists."""
    saved, save = [], ecg_paper.write
    for module in (mask_figure, curves, study_drawing):
        monkeypatch.setattr(module, "write", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def _traces(figure):
    return [line.get_xydata() for line in figure.axes[0].lines]


def test_paper_is_25_mm_per_s_and_10_mm_per_mv(tmp_path, drawn):
    signal = np.zeros((12, 300))
    signal[:, 100] = 1.0
    ecg_with_masks(signal, None, RATE, CANONICAL, tmp_path / "ecg.png", "one mV at one second")
    (figure,) = drawn
    width, height = figure.get_size_inches() * 25.4
    assert figure.axes[0].get_xlim() == (0, pytest.approx(width))
    assert figure.axes[0].get_ylim() == (0, pytest.approx(height))
    traces = _traces(figure)
    assert len(traces) == 12
    for trace in traces:
        assert trace[100] - trace[0] == pytest.approx([25, 10])
        assert trace[-1, 0] - trace[0, 0] == pytest.approx(2.99 * 25)


def test_limb_leads_stand_left_in_clinical_order_whatever_the_order_given(tmp_path, drawn):
    leads = CANONICAL[::-1]
    signal = np.zeros((12, 200))
    for i, lead in enumerate(leads):
        signal[i, 50] = 0.01 * (1 + CANONICAL.index(lead))
    ecg_with_masks(signal, None, RATE, leads, tmp_path / "ecg.png")
    labels = {text.get_text(): text.get_position() for text in drawn[0].axes[0].texts}
    traces = {round((t[50, 1] - t[0, 1]) / 0.1): t[0] for t in _traces(drawn[0])}
    for number, lead in enumerate(CANONICAL):
        x, y = labels[lead]
        assert abs(traces[number + 1][0] - x) < 2
        assert 0 < y - traces[number + 1][1] < 15
    assert len({labels[lead][0] for lead in CANONICAL[:6]}) == 1 < len({x for x, _ in labels.values()})
    assert [labels[lead][1] for lead in CANONICAL[:6]] == sorted(
        (labels[lead][1] for lead in CANONICAL[:6]), reverse=True
    )


def _blend(paper, colour, opacity):
    return (1 - opacity) * np.array(matplotlib.colors.to_rgb(paper)) + opacity * np.array(
        matplotlib.colors.to_rgb(colour)
    )


@pytest.mark.parametrize("per_lead", [False, True])
def test_masks_shade_their_time_and_leads_as_strongly_as_their_value(per_lead, tmp_path):
    """Read from the pixels: one lead of 2 s; mask 1 hides 0.5 to 1 s fully, mask 2 hides 1.5 to 2 s by half."""
    masks = np.zeros((2, 1, 200) if per_lead else (2, 200))
    masks[0, ..., 50:100], masks[1, ..., 150:200] = 1.0, 0.5
    path = tmp_path / "ecg.png"
    ecg_with_masks(np.full((1, 200), -0.5), masks, RATE, ["II"], path)
    picture = matplotlib.image.imread(path)[..., :3]
    per_mm = 150 / 25.4
    middle = picture.shape[0] - (7 + 22 * 0.75) * per_mm

    def seen(second):
        x, y = (5 + 25 * second) * per_mm, middle
        patch = picture[int(y) - 15 : int(y) + 15, int(x) - 15 : int(x) + 15]
        return np.median(patch.reshape(-1, 3), axis=0)

    paper = matplotlib.colors.to_rgb(ecg_paper.PAPER)
    blue, green = mask_figure.MASK_COLOURS[:2]
    assert seen(0.25) == pytest.approx(paper, abs=0.01)
    assert seen(1.25) == pytest.approx(paper, abs=0.01)
    assert seen(0.75) == pytest.approx(_blend(ecg_paper.PAPER, blue, 0.30), abs=0.015)
    assert seen(1.75) == pytest.approx(_blend(ecg_paper.PAPER, green, 0.15), abs=0.015)


def test_a_mask_of_one_lead_shades_that_lead_alone(tmp_path, drawn):
    masks = np.zeros((1, 12, 300))
    masks[0, 7] = 1
    ecg_with_masks(np.zeros((12, 300)), masks, RATE, CANONICAL, tmp_path / "ecg.png")
    axes = drawn[0].axes[0]
    shaded = [image.get_extent() for image in axes.images if image.get_array()[..., 3].max() > 0]
    assert len(shaded) == 2
    hit = {text.get_text() for text in axes.texts if _inside(text.get_position(), shaded[0])}
    assert hit == {"V2"}
    assert sum(_inside(trace[0], shaded[0]) for trace in _traces(drawn[0])) == 1


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 12.0, 400.0])
@pytest.mark.parametrize("leads", [CANONICAL, [*CANONICAL, "X"], ["II"]])
def test_leads_stay_in_their_own_strip_between_name_and_lanes(scale, leads, tmp_path, drawn):
    """Whatever the amplitude: no trace reaches that of a neighbour, a lead's name or the lanes of the masks."""
    random = np.random.default_rng(int(scale))
    signal = scale * random.standard_normal((len(leads), 300)) * random.uniform(0.1, 1.0, (len(leads), 1)) + 50.0
    ecg_with_masks(signal, np.ones((3, 300)), RATE, leads, tmp_path / "ecg.png")
    axes, extents = drawn[0].axes[0], {}
    shaded = [(tuple(image.get_extent()), float(image.get_array()[..., 3].max())) for image in axes.images]
    strips = sorted({extent for extent, opacity in shaded if opacity < 0.5})
    assert len(strips) == len(leads)
    lanes = [extent for extent, opacity in shaded if opacity > 0.5]
    width, height = axes.get_xlim()[1], axes.get_ylim()[1]
    names = {text.get_text(): text.get_position()[1] for text in axes.texts}
    gain = float(next(text for text in names if "mm/mV" in text).split()[2])
    for line in _traces(drawn[0]):
        (strip,) = [s for s in strips if s[0] <= line[0, 0] + 0.01 and line[0, 0] < s[1] and s[2] < line[0, 1] < s[3]]
        own = [top for left, _, bottom, top in lanes if left == strip[0] and strip[2] <= bottom < strip[3]]
        assert max(own) < line[:, 1].min()
        assert line[:, 1].max() < strip[3] - 4
        extents.setdefault(strip[0], []).append((strip[2], strip[3]))
    for column in extents.values():
        column.sort()
        assert all(upper[0] >= lower[1] - 1e-9 for lower, upper in pairwise(column))
        assert column[0][0] > 0
        assert column[-1][1] < height
    assert np.ptp(signal, axis=1).max() * gain <= 60.01
    assert (gain == 10) == (np.ptp(signal, axis=1).max() <= 6)
    assert width < 300


def _inside(point, extent):
    left, right, bottom, top = extent
    return left <= point[0] + 0.01 and point[0] <= right and bottom <= point[1] <= top


@pytest.mark.parametrize("shape", [(1, 99), (1, 11, 100), (100,)])
def test_masks_of_a_wrong_shape_are_refused(shape, tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        ecg_with_masks(np.zeros((12, 100)), np.zeros(shape), RATE, CANONICAL, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_leads_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not fit 2 leads"):
        ecg_with_masks(np.zeros((3, 100)), None, RATE, ["I", "II"], tmp_path / "no.png")


def test_picture_has_no_text_chunks(tmp_path):
    ecg_with_masks(np.zeros((1, 100)), None, RATE, ["I"], tmp_path / "ecg.png")
    content = (tmp_path / "ecg.png").read_bytes()
    assert not any(chunk in content for chunk in (b"tEXt", b"iTXt", b"zTXt", b"eXIf"))


# ---- the synthetic example ----


def test_example_obeys_einthoven_and_goldberger():
    ecg = dict(zip(CANONICAL, synthetic_example(CANONICAL, 1000, RATE)))
    one, two = ecg["I"], ecg["II"]
    assert np.allclose(ecg["III"], two - one, atol=1e-12)
    assert np.allclose(ecg["aVR"], -(one + two) / 2, atol=1e-12)
    assert np.allclose(ecg["aVL"], (one - ecg["III"]) / 2, atol=1e-12)
    assert np.allclose(ecg["aVF"], (two + ecg["III"]) / 2, atol=1e-12)


def test_example_looks_like_a_sinus_rhythm():
    rate = 500.0
    ecg = dict(zip(CANONICAL, synthetic_example(CANONICAL, 5000, rate)))
    two = ecg["II"]
    peaks = np.flatnonzero((two[1:-1] > two[:-2]) & (two[1:-1] >= two[2:]) & (two[1:-1] > 0.6)) + 1
    assert 11 <= len(peaks) <= 14
    assert np.diff(peaks).min() > 0.7 * rate
    assert np.diff(peaks).max() < 0.95 * rate
    beats = [(p - int(0.3 * rate), p + int(0.45 * rate)) for p in peaks[1:-1]]
    mean = {lead: np.mean([x[a:b] for a, b in beats], axis=0) for lead, x in ecg.items()}
    assert mean["II"][int(0.08 * rate) : int(0.18 * rate)].max() > 0.07
    assert 0.1 < mean["II"][int(0.5 * rate) :].max() < 0.5
    assert mean["aVR"].min() < -0.5 < 0.3 > mean["aVR"].max()
    growth = [mean[lead].max() / -mean[lead].min() for lead in ("V1", "V2", "V3", "V4", "V5")]
    assert growth == sorted(growth)
    assert growth[0] < 0.7
    assert growth[3] > 1
    assert max(np.abs(x).max() for x in ecg.values()) < 2


def test_example_has_the_shape_asked_for_at_any_rate_and_for_any_leads():
    slow, fast = synthetic_example(["V1", "II"], 250, 100.0), synthetic_example(["II", "X", "V1"], 1250, 500.0)
    assert slow.shape == (2, 250)
    assert fast.shape == (3, 1250)
    assert np.allclose(slow[0], fast[2, ::5])
    assert np.allclose(fast[0], fast[1])


# ---- curves and study ----


ROWS = [
    {"step": 10, "loss": 4.0, "penalty": 0.0, "lr/encoder": 1e-3, "lr/masker": 2e-3, "samples_per_s": 100.0},
    {"step": 20, "loss": None, "penalty": 0.0, "lr/encoder": 2e-3, "lr/masker": 3e-3, "heldout/loss": 5.0},
    {"step": 30, "loss": 2.0, "penalty": 0.0, "lr/encoder": 3e-3, "lr/masker": 4e-3, "samples_per_s": 300.0},
]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4')


@pytest.mark.parametrize("name", ["o.xyz", "o", "o.jpg", "png"])
def test_a_figure_has_the_ending_of_what_it_is(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}: the figure is written as a PNG: give a name that ends in .png"):
        figures_command.main(["curves", str(tmp_path / name), str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_curves_draw_the_numbers_of_the_file(tmp_path, drawn):
    rows = [*ROWS, {"step": 40, "heldout/loss": 4.5}]
    _write(tmp_path / "metrics.jsonl", rows)
    assert loss_curves(tmp_path / "metrics.jsonl", tmp_path / "figures" / "curves.png")
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 1000
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    assert set(panels) == {"contrastive loss", "learning rate", "ECG/s"}  # no penalty: it is always 0
    lines = {title: [line.get_xydata().tolist() for line in axes.lines] for title, axes in panels.items()}
    assert lines["contrastive loss"] == [[[10, 4], [30, 2]], [[20, 5], [40, 4.5]]]
    assert lines["learning rate"][1] == [[10, 2e-3], [20, 3e-3], [30, 4e-3]]
    assert panels["ECG/s"].get_ylim()[0] == 0


def test_a_curve_of_one_point_is_not_drawn(tmp_path, drawn):
    _write(tmp_path / "metrics.jsonl", ROWS)
    loss_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert [line.get_label() for line in drawn[0].axes[0].lines] == ["training"]


def test_the_svg_of_a_panel_has_a_line_per_series_and_its_words_as_text():
    (panel, *_) = panels([*ROWS, {"step": 40, "heldout/loss": 4.5}])
    root = ElementTree.fromstring(panel_svg(panel))
    assert panel_svg(panel) == panel_svg(panel)
    texts = {"".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"contrastive loss", "training", "held-out patients", "step"} <= texts
    paths = [node.get("style", "") for node in root.iter("{http://www.w3.org/2000/svg}path")]
    for colour in curves.METHOD_COLOURS[:2]:
        assert sum(f"stroke: {colour}" in style and "fill: none" in style for style in paths) == 2  # curve and legend


def test_curves_without_anything_to_say_write_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in (
        "",
        '{"step": 1}\n',
        '{"step": 1, "loss": 4.0}\n',
        '{"step": 1, "loss": 4}\n{"step": 2, "loss": 4}\n',
    ):
        path.write_text(content)
        assert not loss_curves(path, tmp_path / "no.png")
        assert not (tmp_path / "no.png").exists()


def test_study_has_a_panel_per_task_and_fraction_and_a_line_per_method(tmp_path, drawn):
    rows = [
        {"method": method, "task": task, "fraction": fraction, "metric": metric, "value": 0.8, "low": low, "high": 0.85}
        for task, metric in (("rhythm", "auroc"), ("sex", "r2"))
        for fraction in (0.1, 1.0)
        for method, low in (("adversarial", 0.75), ("scratch", 0.7))
    ]
    rows[0] |= {"low": None, "high": None}
    study_figure(rows, tmp_path / "study.png")
    panels = {axes.get_title(loc="left"): axes for axes in drawn[0].axes}
    assert list(panels) == [f"{task}, {n} % of the labels" for task in ("rhythm", "sex") for n in (100, 10)]
    for title, axes in panels.items():
        intervals = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
        wanted = [[[0.75, 0], [0.85, 0]], [[0.7, 1], [0.85, 1]]]
        assert axes.get_xlabel() == ("AUROC" if title.startswith("rhythm") else "R2")
        assert intervals == (wanted[1:] if title == "rhythm, 10 % of the labels" else wanted)
    first = drawn[0].axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["adversarial", "scratch"]
    assert first.get_ylim()[0] > first.get_ylim()[1]
    with pytest.raises(ValueError, match="without rows"):
        study_figure([], tmp_path / "no.png")


def test_runs_are_drawn_together_and_one_without_metrics_is_named(tmp_path, capsys):
    for seed in (0, 1):
        (tmp_path / f"seed{seed}").mkdir()
        rows = [{"step": n, "loss": 3.0 - n / 10 + seed, "alarms": 0} for n in range(1, 9)]
        (tmp_path / f"seed{seed}" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "curves.png"
    figures_command.main(["curves", str(out), str(tmp_path / "seed0"), str(tmp_path / "seed1")])
    assert out.stat().st_size > 5000
    assert str(out) in capsys.readouterr().out
    with pytest.raises(UserError, match=r"seed2 has no metrics\.jsonl"):
        figures_command.main(["curves", str(out), str(tmp_path / "seed2")])
    with pytest.raises(UserError, match="say what to draw"):
        figures_command.main(["curves", str(out)])
