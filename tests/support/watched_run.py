"""A run directory with curves and masks, made by hand, and a page read back as HTML."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np

from trainer.config import PretrainConfig
from trainer.observe.mask_figure import ecg_with_masks
from trainer.run.record import RunRecord, write_record
from umbra.config import load


class Page(HTMLParser):
    """The texts and the attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags = [], []
        self.feed(text)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def make_run(folder, steps=(20, 40, 60), status="running", sameness=0.1, **more):
    record = RunRecord(
        encoder={"name": "resnet18", "leads": ["I", "II"], "samples": 500, "rate": 100.0, "args": {"width": 8}},
        scaling={"mode": "fixed", "mean_mv": [0.0, 0.0], "std_mv": [0.5, 0.5]},
        fingerprint="feed",
        key_id="key",
        method="<adversarial>",
        steps=200,
        data={"samples": 1234, "patients": 567},
    )
    words = [f"run={folder}", "data.path=/mnt/gnudata/shards", "batch.global=50"]
    write_record(load(PretrainConfig, None, words), record, status)
    rows = [
        {
            "step": s,
            "loss": 2.0 - s / 200,
            "penalty": 0.0,
            "samples_per_s": 10.0,
            "mask_sameness": sameness + s / 1e6,
            **more,
        }
        for s in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in steps:
        masks = np.zeros((1, 200))
        masks[:, step : step + 50] = 1
        ecg_with_masks(np.zeros((1, 200)), masks, 100.0, ["I"], folder / "figures" / f"masks-{step:06d}.png")
    return folder
