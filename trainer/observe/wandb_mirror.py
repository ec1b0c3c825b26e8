"""Weights & Biases as a mirror of `metrics.jsonl`: what it may know, and how its failure stops nothing."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import secrets
import shutil
import socket
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbra.config import setting

MODES = ("offline", "online", "disabled")


PRIVATE_KEYS = frozenset(
    ("path", "dir", "directory", "folder", "root", "run", "input", "output", "file", "cache", "resume", "cwd", "home")
    + ("program", "argv", "command", "host", "hostname", "node", "user", "username")
)


@dataclass
class WandbConfig:
    """The mirror of `metrics.jsonl` at Weights & Biases."""

    mode: str = setting("offline", choices=MODES)
    """`offline` writes files that `wandb sync` sends later; `online` sends at once; `disabled`: no mirror."""
    project: str = "umbra"
    """The W&B project."""
    name: str = ""
    """The run's name at W&B (empty: one that W&B makes)."""
    entity: str = ""
    """The team or user at W&B (empty: the default one)."""
    upload_ecgs: bool = False
    """Whether figures of patients' recordings may be sent."""


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
            mode="online" if online else "offline",
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
