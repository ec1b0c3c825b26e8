"""Logs the metrics of a run: to the terminal, `metrics.jsonl` (authoritative) and W&B (a copy of it).

Only rank 0 writes. The terminal line formats these names; other metrics are logged as well and shown at its end:

    loss  penalty  coverage  lr/encoder  lr/masker  grad_norm/encoder  grad_norm/masker  samples_per_s  data_wait
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

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

    Raises `UserError` for a mode that W&B does not have.
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
        self._origin = (start_step, time.perf_counter())
        self._last: int | None = None
        self._noted: set[str] = set()
        if not enabled:
            return
        path = make_folder(run_dir, "run") / METRICS
        truncate(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._mirror = Mirror(Path(run_dir), wandb_config, run_info)

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
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
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
            self._file.close()
            self._mirror.close(summary or {})

    def _eta(self, step: int) -> float | None:
        first, since = self._origin
        if step <= first or self._total <= step:
            return None
        return (time.perf_counter() - since) / (step - first) * (self._total - step)


def terminal_line(step: int, total: int, values: Mapping[str, float], eta: float | None = None) -> str:
    """The readable line of one log interval; only what is in `values` is shown. `eta` in seconds."""
    rest = dict(values)
    words = [f"step {step:>{len(str(total))}}/{total}" if total else f"step {step}"]
    words += [f"{name} {rest.pop(name):.4g}" for name in ("loss", "penalty") if name in rest]
    if "coverage" in rest:
        words.append(f"coverage {rest.pop('coverage'):.3f}")
    for label, prefix, form in (("lr", "lr/", ".2e"), ("grad norm", "grad_norm/", ".3g")):
        pair = [f"{rest.pop(prefix + who):{form}}" for who in ("encoder", "masker") if prefix + who in rest]
        words += [f"{label} {' / '.join(pair)}"] if pair else []
    if "samples_per_s" in rest:
        words.append(f"{rest.pop('samples_per_s'):,.0f} samples/s")
    if "data_wait" in rest:
        words.append(f"data wait {100 * rest.pop('data_wait'):.1f} %")
    words += [f"{name} {value:.4g}" for name, value in rest.items() if name != "mfu" or math.isfinite(value)]
    if eta is not None:
        words.append(f"ETA {int(eta) // 3600}:{int(eta) // 60 % 60:02d}:{int(eta) % 60:02d}")
    return " | ".join(words)


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
