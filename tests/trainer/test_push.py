"""`python -m trainer.export push=...`: the card's results by the hub's own parser, and the command against a server."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from tests.support.handmade import make_run
from tests.support.hub_server import TOKEN, point_client_at, serving
from trainer.export import main
from umbra.errors import UserError

RESULT = {
    "task": "rhythm",
    "mode": "probe",
    "encoder": "ENCODER",
    "fraction": 0.1,
    "seed": 3,
    "data": {"fingerprint": "f00d", "key_id": "public"},
    "auroc": 0.875,
    "low": 0.8125,
    "high": 0.9375,
    "per_class": {"SR": {"auroc": 0.75}, 'AF"IB: é': {"auroc": 1.0}, "RARE": {"auroc": None}},
}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def result(run, name="result.json", **changes):
    path = run.parent / name
    path.write_text(json.dumps(RESULT | {"encoder": str(run / "encoder")} | changes))
    return path


def test_the_hubs_own_parser_reads_the_results_of_the_card(run, capsys):
    one, two = result(run), result(run, "b.json", task="sex", low=None, high=None, mode="finetune", fraction=1.0)
    main([f"run={run}", f"results=[{one},{two}]", "license=CC-BY-4.0"])
    assert "warning" not in capsys.readouterr().out
    data = ModelCard.load(run / "encoder" / "README.md").data
    assert (data.library_name, data.license, data.pipeline_tag) == ("umbra", "cc-by-4.0", "feature-extraction")
    assert data.tags == ["ecg", "electrocardiogram", "self-supervised", "resnet18"]
    assert data.model_name == "umbra-resnet18"
    found = [(e.task_name, e.metric_name, e.metric_type, e.metric_value) for e in data.eval_results]
    rhythm, sex = "rhythm, probe with 0.1 of the labels", "sex, finetune with 1 of the labels"
    assert found == [
        (rhythm, "macro AUROC (95 % by patients: 0.812 to 0.938)", "roc_auc", 0.875),
        (rhythm, "AUROC of SR", "roc_auc", 0.75),
        (rhythm, 'AUROC of AF"IB: é', "roc_auc", 1.0),
        (sex, "macro AUROC", "roc_auc", 0.875),
        (sex, "AUROC of SR", "roc_auc", 0.75),
        (sex, 'AUROC of AF"IB: é', "roc_auc", 1.0),
    ]
    assert {(e.dataset_split, e.dataset_revision) for e in data.eval_results} == {("test", "f00d")}
    again = ModelCard(f"---\n{data.to_yaml()}\n---\n").data  # what their writer makes of it says the same
    assert again.to_dict() == data.to_dict()
    text = (run / "encoder" / "README.md").read_text()
    assert "| rhythm | probe with 0.1 of the labels, seed 3 | `f00d` | AUROC 0.875 (0.812 to 0.938) |" in text


def test_a_task_of_numbers_has_its_own_metric(run):
    age = {"r2": 0.5, "low": None, "high": None}
    of_age = {"kind": "number", "metric": "r2", "r2": 0.5, "per_class": {"age": age}, "task": "age"}
    main([f"run={run}", f"results=[{result(run, **of_age)}]"])
    found = ModelCard.load(run / "encoder" / "README.md").data.eval_results
    assert [(e.metric_type, e.metric_value) for e in found] == [("r_squared", 0.5), ("r_squared", 0.5)]
    assert found[1].metric_name == "R2 of age"


def test_without_results_or_a_licence_the_card_names_none(run):
    main([f"run={run}"])
    data = ModelCard.load(run / "encoder" / "README.md").data
    assert (data.eval_results, data.license, data.library_name) == (None, None, "umbra")
    assert "Results" not in (run / "encoder" / "README.md").read_text()


def test_results_of_another_encoder_are_said(run, capsys):
    main([f"run={run}", f"results=[{result(run, encoder='someone/else')}]"])
    assert "is a result of encoder=someone/else, not of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["results=[nowhere.json]"], "nowhere.json does not exist: give result.json files"),
        (["results=[{result}]", "mode=scratch"], "is of random weights .*: leave it out"),
        (["results=[{result}]", "encoder=random"], "is of random weights .*: leave it out"),
        (["results=[{result}]", "auroc="], "is damaged .'auroc' is None.: give result.json files"),
        (["results=[{result}]", "task=7"], "is damaged .'task' is 7.: give result.json files"),
        (["push=ecg"], "push=ecg is no repository at the hub: give push=owner/name"),
        (["push=a/b/c"], "push=a/b/c is no repository at the hub"),
        (["license=a licence: mine"], "license=a licence: mine is no licence as the hub writes them"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(words, said, run):
    head, *rest = words
    change = dict(word.split("=") for word in rest)
    change = {key: None if value == "" else 7 if value == "7" else value for key, value in change.items()}
    with pytest.raises(UserError, match=said) as caught:
        main([f"run={run}", head.format(result=result(run, **change))])
    assert "\n" not in str(caught.value)
    assert not (run / "encoder").exists()


def test_a_push_without_a_token_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    with serving() as hub:
        point_client_at(hub, monkeypatch, tmp_path / "cache", token="")
        with pytest.raises(UserError, match="me/ecg: sending to the hub needs a token: set HF_TOKEN"):
            main([f"run={run}", "push=me/ecg"])
        assert not hub.seen
    assert not (run / "encoder").exists()


@pytest.mark.full
def test_the_command_sends_the_directory_and_its_encoder_loads_from_there(run, tmp_path):
    with serving() as hub:
        more = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        env = os.environ | more | {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        code = (
            "import sys; from trainer.export import main; from umbra import load_encoder; main(sys.argv[1:]);"
            "print('step', load_encoder('me/ecg').config.training['step'])"
        )
        words = [f"run={run}", "push=me/ecg", "private=false", f"results=[{result(run)}]"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert f"encoder sent to {hub.url}/me/ecg/commit/" in done.stdout
        assert "step 7" in done.stdout
        repo = hub.repos["me/ecg"]
    assert not repo["private"]
    assert {name: (run / "encoder" / name).read_bytes() for name in repo["files"]} == repo["files"]
    assert ModelCard(repo["files"]["README.md"].decode()).data.model_name == "ecg"
