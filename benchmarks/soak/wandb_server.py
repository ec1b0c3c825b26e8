"""A server on 127.0.0.1 that speaks as much of W&B's API as an online run takes, and is slow, or answers nothing."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40


class WandbServer(ThreadingHTTPServer):
    """Waits `delay` seconds before each answer; it may be changed at any time.

    `rows` is what runs have logged, `seen` the requests.
    """

    daemon_threads = True

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.delay, self.closed = delay, threading.Event()
        self.rows: list[dict[str, Any]] = []
        self.seen: list[str] = []

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a run that is to use it."""
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "no_proxy": "*", "WANDB_MODE": "online"}

    @contextlib.contextmanager
    def serving(self) -> Iterator[WandbServer]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.closed.set()
            self.shutdown()
            self.server_close()
            thread.join(10)


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_POST

    def _answer(self, body: bytes) -> None:
        began = time.monotonic()
        while time.monotonic() < began + self.server.delay and not self.server.closed.wait(0.05):
            pass
        if self.path.endswith("/file_stream"):
            content = self._stream(json.loads(body))
        elif self.path.endswith("/graphql"):
            content = self._query(json.loads(body))
        else:
            self.server.seen.append(self.path)
            content = {}
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _stream(self, sent: dict[str, Any]) -> dict[str, Any]:
        lines = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
        self.server.rows += [json.loads(line) for line in lines]
        self.server.seen.append("file_stream")
        return {}

    def _query(self, sent: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", sent["query"])
        name, given = found[1] if found else "", sent.get("variables") or {}
        self.server.seen.append(name)
        entity = {"id": "e", "name": "me"}
        project = {"id": "p", "name": given.get("project") or "umbra", "entity": entity}
        bucket = {"id": "r", "name": given.get("name") or "run", "displayName": "run", "project": project}
        return {
            "data": {
                "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
                "serverInfo": {"features": [], "cliVersionInfo": {"max_cli_version": "9.9.9"}},
                "model": {"bucket": None},
                "project": {"run": None},
                "upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True},
                "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []},
            }
        }

    def log_message(self, *words: object) -> None:
        pass
