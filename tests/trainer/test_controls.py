"""The YAMLs that are compared with the game differ from it in what they say, and in nothing else."""

import pytest

from tests.support.launch import ROOT
from trainer.config import PretrainConfig
from trainer.study.config import StudyConfig
from umbra.config import as_dict, load

BLOCK = {"name": "block_mask", "coverage": 0.25}


def differences(one: str, other: str, *words: str) -> dict[str, object]:
    """The keys in which the first YAML differs from the second with `words`, and its values there."""
    first, second = (flat(as_dict(load(PretrainConfig, ROOT / f"configs/pretrain/{name}.yaml", given)))
                     for name, given in ((one, []), (other, words)))  # fmt: skip
    return {key: value for key, value in first.items() if value != second[key]}


def flat(tree: dict, above: str = "") -> dict[str, object]:
    parts = [flat(v, f"{above}{k}.") if isinstance(v, dict) else {above + k: v} for k, v in tree.items()]
    return {key: value for part in parts for key, value in part.items()}


@pytest.mark.parametrize(
    ("control", "apart"),
    [
        ("other_masks", {"game.mask_of": "another"}),
        (
            "block_mask",
            {"game.enabled": False, "game.coverage": 0.5, "game.share": 1.0, "game.slope_start": 0.0,
             "game.slope_rise": 0.0, "views.second": [BLOCK]},
        ),
    ],
)  # fmt: skip
def test_a_control_is_the_game_but_for_its_masks(control, apart):
    assert differences(control, "adversarial") == apart


BLOCKS = ["block_mask", "block_mask_both", "lead_blocks", "hard_views"]
CELLS = ["other_masks", "cell_mask", "smooth_mask", "qrs_mask"]


@pytest.mark.parametrize("control", [*BLOCKS, *CELLS])
def test_controls_are_on_the_pairs_of_the_game(control):
    game, other = (load(PretrainConfig, ROOT / f"configs/pretrain/{name}.yaml") for name in ("adversarial", control))
    assert (other.pair, other.views.both) == (game.pair, game.views.both)
    assert other.views.both == [{"name": "vcg", "max_angle": 15, "max_scale": 1.2}]


def test_the_study_of_the_paper_plays_the_default_and_its_controls():
    study = load(StudyConfig, ROOT / "configs/study/paper.yaml", [])
    for method, name in (("game", "adversarial"), ("block", "block_mask"), ("blocks", "block_mask_both")):
        base, *words = study.variants[method]
        assert differences(name, base, *words) == {}


def test_the_blocks_of_the_paper_s_own_pairs_are_the_game_but_for_who_hides_view_2():
    study = load(StudyConfig, ROOT / "configs/study/same-window.yaml", [])
    game, blocks = (
        flat(as_dict(load(PretrainConfig, ROOT / f"configs/pretrain/{study.variants[name][0]}.yaml", words)))
        for name in ("game", "blocks")
        for words in [[*study.pretrain, *study.variants[name][1:]]]
    )
    apart = {key: value for key, value in blocks.items() if value != game[key]}
    block = {"name": "block_mask", "coverage": game["game.coverage"]}
    assert apart.keys() == {"game.enabled", "game.slope_start", "game.slope_rise", "views.second"}
    assert game["views.first"] == blocks["views.second"] == [block]
    assert (game["pair.kind"], game["views.both"]) == ("same", [])
