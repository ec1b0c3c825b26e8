"""Logs the metrics of a run: to the terminal, `metrics.jsonl` (authoritative) and W&B (a copy of it).

Only rank 0 writes. The terminal gets the few figures that say whether a run is well (`terminal_line`); docs/metrics.md
lists them all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from trainer.observe.lines import Lines
from trainer.observe.wandb_mirror import MODES, Mirror, WandbConfig
from umbra.errors import UserError
from umbra.files import make_folder, read_json_lines, write_text

METRICS = "metrics.jsonl"


class Metrics:
    """The log outputs of one run.

    `run_info`: `wandb_id` (see `new_wandb_id`; the same one after a restart), `steps` (total, for the ETA), and
    anything else to show at W&B as the run's config, e.g. `config`, `versions`, filtered by `public_config`. `enabled`
    is true on rank 0 only; on other ranks every call does nothing. `start_step` is the step of the checkpoint that the
    run resumes from: later lines of `metrics.jsonl` are dropped (all lines if it is 0).

    Raises `UserError` for a mode that W&B does not have. On a full disk lines are kept until there is room.
    """

    def __init__(
        self,
        run_dir: str | Path,
        wandb_config: WandbConfig,
        run_info: Mapping[str, Any],
        enabled: bool = True,
        start_step: int = 0,
    ) -> None:
        if wandb_config.mode not in MODES:
            raise UserError(f"wandb.mode={wandb_config.mode} does not exist: use one of {', '.join(MODES)}")
        self._enabled = enabled
        self._total = int(run_info.get("steps") or 0)
        self._last: int | None = None
        self._noted: set[str] = set()
        if not enabled:
            return
        path = make_folder(run_dir, "run") / METRICS
        truncate(path, start_step)
        self._lines, self._unwritten = Lines(path), False
        self._mirror = Mirror(Path(run_dir), wandb_config, run_info, read_metrics(path))
        self._origin = (start_step, time.perf_counter())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of `metrics.jsonl`, one line of the terminal, one row of W&B; `step` = steps done so far.

        Non-finite values become `null` in `metrics.jsonl`. Raises `ValueError` if `step` does not increase.
        """
        if not self._enabled:
            return
        if self._last is not None and step <= self._last:
            raise ValueError(f"step {step} was logged after step {self._last}: log each step once, in order")
        numbers = {name: _number(value) for name, value in values.items()}
        row = {"step": step, **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}
        self._tell(self._lines.add(json.dumps(row, allow_nan=False)), "are kept until there is room")
        print(terminal_line(step, self._total, numbers, self._eta(step)), flush=True)
        if self._last is None:
            self._origin = (step, time.perf_counter())
        self._last = step
        self._mirror.log(step, numbers)

    def note(self, text: str | None) -> None:
        """Prints a line on the terminal, unless it is None or an earlier one had the same text before the colon."""
        if self._enabled and text and (subject := text.partition(":")[0]) not in self._noted:
            self._noted.add(subject)
            print(f"# {text}", flush=True)

    def figure(self, step: int, name: str, path: str | Path, recording: bool = False) -> None:
        """Sends a PNG to W&B. One that shows a patient's `recording` is sent only with `wandb.upload_ecgs=true`."""
        if self._enabled:
            self._mirror.figure(step, name, Path(path), recording)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Closes the sinks; `summary` is shown at W&B as the run's results. A second call does nothing."""
        if self._enabled:
            self._enabled = False
            self._tell(self._lines.close(), "are lost")
            self._mirror.close(summary or {})

    def _tell(self, why: str, so: str) -> None:
        """Says once that lines cannot be written, and once that they are."""
        if why and (not self._unwritten or so == "are lost"):
            print(f"# WARNING: {METRICS} cannot be written ({why}): its last lines {so}", flush=True)
        elif self._unwritten and not why:
            print(f"# {METRICS} is written again, and complete", flush=True)
        self._unwritten = bool(why)

    def _eta(self, step: int) -> float | None:
        first, since = self._origin
        if step <= first or self._total <= step:
            return None
        return (time.perf_counter() - since) / (step - first) * (self._total - step)


def terminal_line(step: int, total: int, values: Mapping[str, float], eta: float | None = None) -> str:
    """One log interval in at most 100 columns; only what is in `values` is shown. `eta` in seconds.

    `loss`, `coverage` (as `masked`), `samples_per_s` (as `ECG/s`), `data_wait` (as `waiting`), `alarms` (if any).
    """
    words = [f"step {step:>{len(str(total))}}/{total}" if total else f"step {step}"]
    words += [f"ETA {duration(eta)}"] if eta is not None else []
    words += [say(values[name]) for name, say in _SAID.items() if name in values]
    return "  ".join(word for word in words if word)


def duration(seconds: float) -> str:
    """`0:02:10`; from 100 hours on `4d 5h`."""
    minutes = int(seconds) // 60
    if minutes >= 100 * 60:
        return f"{minutes // 1440}d {minutes // 60 % 24}h"
    return f"{minutes // 60}:{minutes % 60:02d}:{int(seconds) % 60:02d}"


_SAID: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {x:.3f}" if abs(x) < 99.9995 else f"loss {x:.0f}",
    "coverage": lambda x: f"masked {100 * x:.0f} %",
    "samples_per_s": lambda x: f"{x:,.0f} ECG/s" if x < 99_999.5 else f"{x / 1000:,.0f}k ECG/s",
    "data_wait": lambda x: f"waiting {100 * x:.0f} %",
    "alarms": lambda x: f"{x:.0f} alarm{'s' if x > 1 else ''}" if x else "",
}


class _Row(TypedDict):
    step: int


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a line truncated by a crash is skipped."""
    return [dict(row) for row in read_json_lines(Path(path), _Row)]


def truncate(path: Path, step: int) -> None:
    """Keeps the lines of `metrics.jsonl` up to `step` (none if it is 0), atomically."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if step > 0 and row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _number(value: Any) -> int | float:
    return value if isinstance(value, int) else float(value)
