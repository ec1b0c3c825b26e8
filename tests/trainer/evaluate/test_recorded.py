"""Fewer leads and shorter strips in a probe."""

import json

import pytest
import torch

from tests.support.handmade import make_run, make_shards, small_encoder
from trainer.evaluate.recorded import as_recorded
from trainer.evaluate.store import weights_hash
from trainer.export import export
from trainer.transfer import main
from umbra.errors import UserError
from umbra.leads import CANONICAL


@pytest.mark.parametrize("name", ["resnet18", "vit_s"])
def test_the_encoder_sees_the_named_leads_of_the_first_seconds(name):
    plain = small_encoder(name)
    x = torch.randn(3, 12, 1000)
    seen = plain.scaling(x)[..., :250].clone()
    for row, lead in enumerate(CANONICAL):
        if lead not in ("I", "V2"):
            seen[:, row] = 0
    with torch.no_grad():
        wanted = plain.backbone(seen)
        found = as_recorded(small_encoder(name), ["lead i", "v2"], 2.5)(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_nothing_asked_changes_nothing():
    encoder = small_encoder("resnet18")
    before = weights_hash(encoder)
    assert weights_hash(as_recorded(encoder, [], 0)) == before


def test_features_of_other_leads_or_lengths_are_kept_apart():
    asked = [([], 0), (["I"], 0), (["II"], 0), ([], 5), ([], 2.5), (["I"], 5)]
    assert len({weights_hash(as_recorded(small_encoder("resnet18"), *a)) for a in asked}) == len(asked)


@pytest.mark.parametrize(
    ("leads", "seconds", "said"),
    [
        (["V9"], 0, "leads has 'V9', which the encoder does not know; known: I, II"),
        ([], 11, "seconds=11 is more than the records have, 10 s"),
        (["I"], 0.004, "seconds=0.004 is less than a sample at 100 Hz: give more, or 0 for all"),
    ],
)
def test_what_no_record_has_is_one_line(leads, seconds, said):
    with pytest.raises(UserError, match=said):
        as_recorded(small_encoder("resnet18"), leads, seconds)


def test_a_network_of_one_length_has_no_shorter_strips(monkeypatch):
    monkeypatch.setattr("umbra.encoders.resnet.ResNet.any_length", False)
    with pytest.raises(
        UserError, match="seconds=5: resnet18 takes only ECGs of the length that it was built for, 10 s"
    ):
        as_recorded(small_encoder("resnet18"), [], 5)


def test_a_transfer_with_fewer_leads_and_shorter_strips(tmp_path, capsys):
    """Of its own features, kept beside those of whole records; refused where a model would be kept."""
    kinds = ["SR", "SR", "AFIB", "AFIB"]
    data = make_shards(tmp_path / "s", {"train": kinds * 6, "val": kinds * 3, "test": kinds * 3})
    encoder = export(make_run(tmp_path / "run"))
    words = ["configs/transfer/rhythm.yaml", f"encoder={encoder}", f"data={data}", "bootstrap=0"]
    found = []
    for name, more in (("whole", []), ("few", ["leads=[II]", "seconds=1.5"]), ("again", ["leads=[II]", "seconds=1.5"])):
        main([*words, f"output={tmp_path / name}", *more])
        found.append(json.loads((tmp_path / name / "result.json").read_text()))
        assert f"{0 if name == 'again' else 48} records computed" in capsys.readouterr().out
    assert found[1]["config"]["leads"] == ["II"]
    assert found[0]["encoder_sha256"] != found[1]["encoder_sha256"] == found[2]["encoder_sha256"]
    for word in ("leads=[II]", "seconds=1"):
        with pytest.raises(UserError, match="has no effect with mode=finetune"):
            main([*words, f"output={tmp_path / 'x'}", "mode=finetune", word])
