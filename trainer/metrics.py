"""Where the numbers of a run go: the terminal, `metrics.jsonl` (the truth) and W&B (its mirror).

Only rank 0 writes. Names that the terminal line knows; any other name is logged all the same and shown at the end:

    loss  penalty  coverage  lr/encoder  lr/masker  grad_norm/encoder  grad_norm/masker  samples_per_s  data_wait
"""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import re
import secrets
import shutil
import socket
import string
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sharding.config import UserError
from sharding.files import write_text

METRICS = "metrics.jsonl"
MODES = ("offline", "online", "disabled")
PRIVATE_KEYS = frozenset(
    ("path", "dir", "directory", "folder", "root", "run", "input", "output", "file", "cache", "resume", "cwd", "home")
    + ("program", "argv", "command", "host", "hostname", "node", "user", "username")
)


@dataclass
class WandbConfig:
    """`mode`: offline, online or disabled; `upload_ecgs`: whether figures of patients' recordings may be sent."""

    mode: str = "offline"
    project: str = "umbra"
    name: str = ""
    entity: str = ""
    upload_ecgs: bool = False


class Metrics:
    """The sinks of one run.

    `run_info`: `wandb_id` (see `new_wandb_id`; the same one after a restart), `steps` (total, for the ETA), and
    whatever else W&B may show as the run's config, e.g. `config`, `versions`: it goes through `public_config`.
    `enabled` is true on rank 0 only; elsewhere every call does nothing. `start_step` is the step of the checkpoint that
    the run goes on from: later lines of `metrics.jsonl` are dropped (all lines if it is 0).

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
        path = Path(run_dir) / METRICS
        path.parent.mkdir(parents=True, exist_ok=True)
        truncate(path, start_step)
        self._file = path.open("a", encoding="utf-8")
        self._mirror = Mirror(Path(run_dir), wandb_config, run_info)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of `metrics.jsonl`, one line of the terminal, one row of W&B; `step` = steps done so far.

        Non-finite values become `null` in `metrics.jsonl`. Raises `ValueError` if `step` does not grow.
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
        """Prints a line on the terminal, unless it is None or one that began alike (up to its colon) came before it."""
        if self._enabled and text and (subject := text.partition(":")[0]) not in self._noted:
            self._noted.add(subject)
            print(f"# {text}", flush=True)

    def figure(self, step: int, name: str, path: str | Path, recording: bool = False) -> None:
        """Mirrors a PNG. One that shows a patient's `recording` is sent only with `wandb.upload_ecgs=true`."""
        if self._enabled:
            self._mirror.figure(step, name, Path(path), recording)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Closes the sinks; `summary` is shown by W&B as the run's results. A second call does nothing."""
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


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a line that a crash has cut is left out."""
    rows = []
    for line in Path(path).read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows


def truncate(path: Path, step: int) -> None:
    """Keeps the lines of `metrics.jsonl` up to `step` (none if it is 0): written aside, then renamed."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if step > 0 and row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def _number(value: Any) -> int | float:
    return value if isinstance(value, int) else float(value)


# ---- W&B ----


def new_wandb_id() -> str:
    """A random W&B run id; keep it in `run.json`, so that a restart goes on in the same W&B run."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config W&B may see: numbers, and strings that can be no path and hold no host or user name.

    Left out: keys that name places (`PRIVATE_KEYS`, also as the last word of `some_dir`), strings that hold a slash,
    backslash or tilde, strings of which a word is this machine's or this user's name, and values of any other type.
    """
    words = _private_words()
    return {
        key: value
        for key, raw in config.items()
        if isinstance(key, str) and _is_public_key(key) and _is_public_text(key, words)
        if (value := _public(raw, words)) is not _DROPPED
    }


_DROPPED = object()


def _public(value: Any, words: frozenset[str]) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if _is_public_text(value, words) else _DROPPED
    if isinstance(value, Mapping):
        return public_config(value)
    if isinstance(value, list | tuple):
        items = [item for raw in value if (item := _public(raw, words)) is not _DROPPED]
        return items if items or not value else _DROPPED
    return _DROPPED


def _is_public_key(key: str) -> bool:
    return re.split(r"[_.-]", key.lower())[-1] not in PRIVATE_KEYS


def _is_public_text(text: str, words: frozenset[str]) -> bool:
    if re.search(r"[/\\~]", text):
        return False
    lower = text.lower()
    return not any(re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", lower) for word in words)


def _private_words() -> frozenset[str]:
    host = socket.gethostname()
    names = {host, host.partition(".")[0], os.environ.get("USER", "")}
    with contextlib.suppress(Exception):
        names.add(getpass.getuser())
    return frozenset(name.lower() for name in names if name)


def wandb_settings() -> dict[str, Any]:
    """Settings of wandb under which it sends no path, host, user, code, git remote, packages or machine statistics.

    What wandb would find out by itself where a field is left empty is filled with a word that says nothing.
    """
    return {
        "host": "umbra",
        "username": "umbra",
        "email": "",
        "program": "umbra",
        "program_relpath": "umbra",
        "program_abspath": "umbra",
        "x_executable": "python",
        "docker": "",
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "save_code": False,
        "symlink": False,
        "console": "off",
        "silent": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "init_timeout": 60.0,
        "finish_timeout": 120.0,
    }


class Mirror:
    """W&B, best effort: the first exception of any call prints one warning and switches it off; nothing stops."""

    def __init__(self, run_dir: Path, config: WandbConfig, run_info: Mapping[str, Any]) -> None:
        self._config = config
        self._folder = run_dir / "wandb"
        self._run: Any = None
        self._alive = config.mode != "disabled"
        self._attempt(lambda: self._start(run_info))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._attempt(lambda: self._run.log(dict(values), step=step))

    def figure(self, step: int, name: str, path: Path, recording: bool) -> None:
        if not recording or self._config.upload_ecgs:
            self._attempt(lambda: self._run.log({name: self._image(path)}, step=step))

    def close(self, summary: Mapping[str, Any]) -> None:
        def finish() -> None:
            self._run.summary.update(public_config(summary))
            self._run.finish()

        self._attempt(finish)
        self._alive = False
        self._remove_logs()

    def _attempt(self, action: Callable[[], Any]) -> None:
        if not self._alive:
            return
        try:
            action()
        except Exception as error:
            self._alive = False
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"warning: W&B is switched off, the run goes on and metrics.jsonl is complete ({reason})", flush=True)

    def _start(self, run_info: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{self._folder} is not writable")
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        online = self._config.mode == "online"
        if online and not wandb.login(prompt=False):
            raise RuntimeError("no API key: run `wandb login` or set WANDB_API_KEY")
        self._run = wandb.init(
            mode=self._config.mode,
            project=self._config.project,
            name=self._config.name or None,
            entity=self._config.entity or None,
            id=run_info.get("wandb_id") or new_wandb_id(),
            resume="allow",
            dir=str(self._folder.parent.resolve()),
            config=public_config(run_info),
            settings=wandb.Settings(**wandb_settings()),
        )
        self._remove_logs()

    def _image(self, path: Path) -> Any:
        import wandb

        return wandb.Image(str(path))

    def _remove_logs(self) -> None:
        """wandb's own debug logs hold paths: they are deleted, so that a copy of the folder gives nothing away."""
        for logs in self._folder.glob("*run-*/logs"):
            shutil.rmtree(logs, ignore_errors=True)


# ---- speed ----


class Throughput:
    """Samples per second and share of the time spent waiting for data, without the first `skip` steps of this process.

    with throughput.waiting():
        batch = next(batches)
    ...
    throughput.step(samples)     # of all ranks
    """

    def __init__(self, skip: int = 3, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._skip = skip
        self._restart()

    def _restart(self) -> None:
        self._since = self._clock()
        self._samples = 0
        self._waited = 0.0
        self._depths: list[int] = []

    def found(self, depth: int) -> None:
        """Counts the batches that were ready when one was asked for."""
        self._depths.append(depth)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside the block as waiting for data."""
        begin = self._clock()
        try:
            yield
        finally:
            self._waited += self._clock() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside the block (validation, a checkpoint) out."""
        begin = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - begin

    def step(self, samples: int) -> None:
        """Marks the end of a step that took `samples` samples."""
        if self._skip > 0:
            self._skip -= 1
            self._restart()
        else:
            self._samples += samples

    def take(self) -> dict[str, float]:
        """`samples_per_s`, `data_wait` (0 to 1) and `queue_depth` (mean, if any) since the last `take`; or nothing."""
        seconds = self._clock() - self._since
        if not self._samples or seconds <= 0:
            return {}
        result = {"samples_per_s": self._samples / seconds, "data_wait": self._waited / seconds}
        if self._depths:
            result["queue_depth"] = sum(self._depths) / len(self._depths)
        self._restart()
        return result
