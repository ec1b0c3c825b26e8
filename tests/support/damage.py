"""Ways in which a file is damaged, and commands called on it in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from umbra.config import command


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(path: Path) -> None:
    """The middle of the file is overwritten with bytes that are no text, number or page of a table."""
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) * 3 // 4] = b"\xff" * (len(data) * 3 // 4 - len(data) // 4)
    path.write_bytes(data)


def _holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "scrambled": scramble,
    "missing": Path.unlink,
    "empty": _holding(b""),
    "binary": _holding(b"\x80\x04\xff\xfe" * 40),
    "null": _holding(b"null"),
    "list": _holding(b"[1]"),
    "mapping": _holding(b"{}"),
    "nested": _holding(b"[" * 100_000),
}


def damages(names: Iterable[str]) -> list[tuple[str, str]]:
    """(file, damage): all damages of a text, of other files those that are not alike for them."""
    text = (".json", ".jsonl", ".yaml")
    return [(n, d) for n in names for d in (DAMAGES if n.endswith(text) else ("cut", "scrambled", "missing", "empty"))]


def called(main: Callable[[list[str]], object], words: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """(exit code, stderr) of a command line; any error but a `UserError` passes, as does one of more than a line."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["command", *words])
    with pytest.raises(SystemExit) as ended:
        command(main)
    code, said = int(str(ended.value.code or 0)), capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 0 or (code == 2 and len(errors) == 1 and said.endswith(f"{errors[0]}\n")), said
    return code, errors[0] if errors else ""
