"""Results of transfer made by hand: 200 records of 100 patients, two classes, a good probe and a bad one."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

RNG = np.random.default_rng(0)
N = 200
LABEL, PATIENT = np.arange(N) % 2, np.arange(N) // 2
NAMES = ("A", "B")


def scores(strength):
    p = 1 / (1 + np.exp(-(RNG.normal(size=N) + strength * (2 * LABEL - 1))))
    return np.column_stack([1 - p, p])


GOOD, BAD = scores(1.0), scores(0.2)


def write(folder, p, task="t", rows=None, **content):
    """Writes a result as versions before kinds of tasks did, unless `content` adds to it; returns its path."""
    folder.mkdir(parents=True)
    rows = np.arange(len(p)) if rows is None else rows
    columns = {"row": rows, "patient": PATIENT[rows], "label": [NAMES[k] for k in LABEL[rows]]}
    columns |= {f"p_{name}": p[:, k] for k, name in enumerate(NAMES)}
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    value = roc_auc_score(LABEL[rows], p[:, 1])
    result = {"task": task, "encoder": folder.name, "fraction": 0.5, "auroc": value, "low": None, "high": None}
    (folder / "result.json").write_text(json.dumps(result | content))
    return str(folder / "result.json")
