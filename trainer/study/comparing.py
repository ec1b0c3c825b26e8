"""The rows of a study's table, and the paired differences between its reference and each other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from trainer.evaluate.scores import interval
from trainer.study.config import StudyConfig
from trainer.study.pooling import Pooled, metric_of, pool
from umbra.errors import UserError

RESOLVABLE = 2.8  # standard errors: 80 % power at a two-sided level of 5 %


@dataclass(frozen=True)
class Scored:
    """A method's row of the table; its value by seed `[S]`, and in each patient resample `[bootstrap]` (mean of the
    seeds and draws)."""

    row: dict[str, Any]
    by_seed: np.ndarray
    resampled: np.ndarray


def compare(config: StudyConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all methods, and the paired differences; those of `primary` have p-values by Holm's procedure."""
    rows, differences = [], []
    for task in config.tasks:
        for fraction in config.fractions:
            scored = {m: score(config, m, task, fraction) for m in config.compared}
            noise = seed_error([s.by_seed for s in scored.values()])
            rows += [s.row | _ends(s.resampled, noise) for s in scored.values()]
            differences += _differences(config, scored)
    holm([d for d in differences if d["primary"]], config.primary.count)
    return rows, differences


def score(config: StudyConfig, method: str, task: str, fraction: float) -> Scored:
    """Scores one method."""
    pooled, by_seed = values(config, method, task, fraction)
    row = {
        "method": method,
        "task": task,
        "fraction": fraction,
        "metric": metric_of(config, task),
        "value": float(by_seed.mean()),
        "by_seed": by_seed.tolist(),
        "pooled_predictions": float(np.mean([p.value(p.prediction) for p in pooled])),
        "mean_over_rotations": float(np.mean([p.mean_over_rotations() for p in pooled])),
        "records": len(pooled[0].patient),
        "patients": len(np.unique(pooled[0].patient)),
        "test_counts": pooled[0].counts,
    }
    return Scored(row, by_seed, np.mean([p.resampled(config.bootstrap) for p in pooled], axis=0))


def values(config: StudyConfig, method: str, task: str, fraction: float) -> tuple[list[Pooled], np.ndarray]:
    """The pooled predictions of one method, of each seed and draw of the labels; and each seed's value `[S]`, the mean
    over its draws."""
    draws = config.draws_of(fraction)
    pooled = [pool(config, method, seed, task, fraction, draw) for seed in config.seeds for draw in range(draws)]
    return pooled, np.array([p.value(p.scores()) for p in pooled]).reshape(-1, draws).mean(1)


def _differences(config: StudyConfig, scored: dict[str, Scored]) -> list[dict[str, Any]]:
    first = scored[config.reference]
    others = {m: s for m, s in scored.items() if m != config.reference}
    for method, other in others.items():
        if other.row["test_counts"] != first.row["test_counts"] or other.row["records"] != first.row["records"]:
            raise UserError(f"{method} and {config.reference} were tested on different records: use a new output")
    noise = seed_error([first.by_seed - other.by_seed for other in others.values()])
    return [difference(config, first, other, noise) for other in others.values()]


def difference(config: StudyConfig, reference: Scored, other: Scored, noise: float) -> dict[str, Any]:
    """Reference minus other, from the same differences in each patient resample and the error of the seeds, `noise`.

    `resolvable`: the smallest true difference that a two-sided test at 5 % detects with 80 % power,
    (1.96 + 0.84) x the standard error of the paired difference. `p`: two-sided, of a normal distribution.
    """
    ends = _ends(reference.resampled - other.resampled, noise)
    row = reference.row
    value = row["value"] - other.row["value"]
    return {
        "task": row["task"],
        "fraction": row["fraction"],
        "metric": row["metric"],
        "reference": row["method"],
        "other": other.row["method"],
        "difference": value,
        **ends,
        "resolvable": RESOLVABLE * ends["standard_error"],
        "p": float(2 * norm.sf(abs(value) / ends["standard_error"])) if ends["standard_error"] > 0 else None,
        "primary": config.primary.has(row["task"], row["fraction"], other.row["method"]),
    }


def seed_error(by_seed: list[np.ndarray]) -> float:
    """The standard error that a mean over S seeds has from the seeds, of values `[S]` of several methods.

    The variance over the seeds is pooled over the methods, since two or three seeds of one say little; 0 for one seed.
    """
    seeds = len(by_seed[0]) if by_seed else 1
    return float(np.sqrt(np.mean([np.var(v, ddof=1) for v in by_seed]) / seeds)) if seeds > 1 else 0.0


def _ends(resampled: np.ndarray, noise: float) -> dict[str, float]:
    """Interval and standard error of resamples of the patients `[bootstrap]`, widened by a normal error `noise`."""
    wide = resampled + noise * np.random.default_rng(0x5EED).standard_normal(len(resampled))
    low, high = interval(wide)
    return {"low": low, "high": high, "standard_error": float(np.nanstd(wide, ddof=1))}


def holm(tests: list[dict[str, Any]], count: int) -> None:
    """Adds `p_holm` to each of the tests: the p-value adjusted for all `count` that were named (Holm, A simple
    sequentially rejective multiple test procedure, 1979). Those that are not here count as the least significant ones,
    which makes no p smaller than it is with them. A test without a p-value is left out."""
    known = sorted((t for t in tests if t["p"] is not None), key=lambda t: t["p"])
    count -= len(tests) - len(known)
    least = 0.0
    for rank, test in enumerate(known):
        least = max(least, min(1.0, (count - rank) * test["p"]))
        test["p_holm"] = least
