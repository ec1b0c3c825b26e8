"""A result as a text table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.evaluate.metrics import SHOWN
from trainer.evaluate.task import choice
from umbra.schema import SPLITS

BESIDE = {"auroc": ("auprc", "f1", "brier", "ece"), "r2": ("mae", "rmse")}
MOST = 20


def table(result: Mapping[str, Any]) -> str:
    """Counts and scores of each class, of all, and of the subgroups."""
    metric = result["metric"]
    chosen = ", ".join(f"{k}={v:g}" if isinstance(v, int | float) else f"{k}={v}" for k, v in result["chosen"].items())
    head = (
        f"{result['task']}: {result['mode']} of {result['encoder']}, {result['fraction']:.4g} of the labels, "
        f"seed {choice(result['seed'], result.get('draw', 0))}, chosen {chosen}"
    )
    wide = max(12, *(len(name) + 1 for name in result["classes"][:MOST]))
    beside = "".join(f" {SHOWN[name]:>{10 if metric == 'r2' else 7}}" for name in BESIDE[metric])
    first = "number" if metric == "r2" else "class"
    shown = f"{SHOWN[metric]} (95 % by patients)"
    lines = [head, f"{first:<{wide}}{'train':>7}{'val':>7}{'test':>7}  {shown:<26}{beside}"]
    for name in result["classes"][:MOST]:
        counts = [result["counts"][split].get(name, 0) for split in SPLITS]
        lines.append(_line(name, wide, counts, result["per_class"].get(name), metric))
    if len(result["classes"]) > MOST:
        lines.append(f"... and {len(result['classes']) - MOST} more in the result")
    means = {name: found["value"] for name, found in result["metrics"].items()}
    counted = max if metric == "r2" else sum
    totals = [counted(result["counts"][s].values()) for s in SPLITS]
    over_all = means | {k: result[k] for k in ("low", "high")}
    lines.append(_line("mean" if metric == "r2" else "macro", wide, totals, over_all, metric))
    if "accuracy" in means:
        lines.append(f"accuracy {means['accuracy']:.3f}, balanced accuracy {means['balanced_accuracy']:.3f}")
    lines += _seeds(result["seeds"]) if "seeds" in result else []
    for column, groups in result["by"].items():
        lines += [f"by {column}", *(_group(name, wide, row, metric) for name, row in groups.items())]
    return "\n".join(lines)


def scored(row: Mapping[str, Any], metric: str) -> str:
    """A score with its interval, which is missing without resamples."""
    low, high = row.get("low"), row.get("high")
    known = low is not None and high is not None and math.isfinite(low + high)
    return f"{row[metric]:.3f} " + (f"({low:.3f} to {high:.3f})" if known else "(no interval)")


def _seeds(seeds: Mapping[str, Any]) -> list[str]:
    """The spread over the seeds, if there are several, in a line."""
    if seeds["sd"] is None:
        return []
    each = ", ".join(f"{one['test']:.3f} ({one['seed']})" for one in seeds["each"])
    return [
        f"seeds: mean {seeds['mean']:.3f}, SD {seeds['sd']:.3f}: {each}; above and kept: {seeds['kept']}, best on val"
    ]


def _line(name: str, wide: int, counts: Sequence[int], row: Mapping[str, Any] | None, metric: str) -> str:
    start = f"{name:<{wide}}{counts[0]:>7}{counts[1]:>7}{counts[2]:>7}  "
    if row is None:
        return start + "not scored"
    return start + f"{scored(row, metric):<26}" + "".join(_beside(row[other], metric) for other in BESIDE[metric])


def _beside(value: float, metric: str) -> str:
    return f" {value:>10.4g}" if metric == "r2" else f"{value:>8.3f}"


def _group(name: str, wide: int, row: Mapping[str, Any], metric: str) -> str:
    start = f"  {name:<{wide - 2}}{row['records']:>21}  "
    if "not_scored" in row:
        return f"{start}not scored: {row['not_scored']}"
    more = f"{len(row['classes'])} classes" if metric == "auroc" else f"MAE {row['mae']:.4g}"
    return f"{start}{scored(row, metric)}, {more}"
