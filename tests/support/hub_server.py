"""A server on 127.0.0.1 that speaks as much of the Hugging Face hub's API as pushing and downloading a model take.

Repositories with commits, safetensors by git-LFS and other files in the commit, private ones for their token, etags.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_" + "x" * 34  # of the only user, who may write below `me/`


class Hub(ThreadingHTTPServer):
    """`repos`: id -> {private, files: path -> bytes, commit}; `seen`: (method, path) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.seen: list[tuple[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(10)


def point_client_at(hub: Hub, monkeypatch: Any, cache: Path, token: str = TOKEN) -> None:
    """Makes the hub's client in this process use the server, a cache of its own, and this token (empty: none).

    A process of its own gets the same by HF_ENDPOINT, HF_HOME, HF_HUB_DISABLE_XET and HF_TOKEN.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(cache / "no-tokens"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for method, pattern, answer in _ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return answer(self, *found.groups())
        self._send(404, {"error": f"no such page: {self.command} {path}"})

    def _send(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, name: str, writing: bool = False) -> dict[str, Any] | None:
        """The repository, or an answer that says that it cannot be had."""
        repo = self.server.repos.get(name)
        if repo is None or ((writing or repo["private"]) and not self._allowed):
            self._send(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
            return None
        return repo

    def _create(self) -> None:
        given = json.loads(self.body)
        if not self._allowed:
            return self._send(401, {"error": "Invalid username or password."})
        name = f"{given.get('organization') or 'me'}/{given['name']}"
        if not name.startswith("me/"):
            return self._send(403, {"error": f"You don't have the rights to create {name}"})
        if name in self.server.repos:
            return self._send(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
        private = given.get("visibility") == "private" or given.get("private") is True
        self.server.repos[name] = {"private": private, "files": {}, "commit": "0" * 40}
        self._send(200, {"url": f"{self.server.url}/{name}", "name": name})

    def _validate(self) -> None:
        """The hub's check of a card: metadata between two lines, each known key of its type."""
        import yaml

        card = json.loads(self.body)["content"]
        meta = yaml.safe_load(card.split("---")[1]) if card.startswith("---\n") else {}
        texts = all(isinstance(meta.get(key, ""), str) for key in ("license", "library_name", "pipeline_tag"))
        right = texts and isinstance(meta.get("tags", []), list)
        errors = [] if right else [{"message": "metadata of the wrong type"}]
        self._send(200 if right else 400, {"errors": errors, "warnings": []})

    def _info(self, name: str, revision: str | None = None) -> None:
        if (repo := self._repo(name)) is None:
            return
        if revision not in (None, "main", repo["commit"]):
            return self._send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        files = [{"rfilename": path} for path in repo["files"]]
        self._send(200, {"id": name, "sha": repo["commit"], "private": repo["private"], "siblings": files, "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        if (repo := self._repo(name)) is not None:
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in repo["files"].items()
            ]
            self._send(200, rows)

    def _preupload(self, name: str, revision: str) -> None:
        if self._repo(name, writing=True) is None:
            return
        files = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
            | {"shouldIgnore": False, "oid": None}
            for f in json.loads(self.body)["files"]
        ]
        self._send(200, {"files": files})

    def _lfs(self, name: str) -> None:
        if self._repo(name, writing=True) is None:
            return
        upload = {"href": f"{self.server.url}/large/", "header": {}}
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {**upload, "href": upload["href"] + o["oid"]}}}
            for o in json.loads(self.body)["objects"]
        ]
        kind = {"Content-Type": "application/vnd.git-lfs+json"}
        self._send(200, {"transfer": "basic", "objects": objects}, **kind)

    def _put(self, oid: str) -> None:
        right = hashlib.sha256(self.body).hexdigest() == oid
        if right:
            self.server.large[oid] = self.body
        self._send(200 if right else 400, {})

    def _commit(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, writing=True)) is None:
            return
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo["files"][value["path"]] = self.server.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                repo["files"].pop(value["path"])
        repo["commit"] = hashlib.sha1(self.body).hexdigest()
        url = f"{self.server.url}/{name}/commit/{repo['commit']}"
        self._send(200, {"success": True, "commitOid": repo["commit"], "commitUrl": url, "hookOutput": ""})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self._repo(name)) is None:
            return
        if path not in repo["files"]:
            return self._send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        data = repo["files"][path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self._send(200, data, ETag=etag, X_Repo_Commit=repo["commit"], Accept_Ranges="bytes")


_NAME, _REVISION = r"([\w.-]+/[\w.-]+)", r"([\w.-]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate),
    ("GET", rf"/api/models/{_NAME}", _Handler._info),
    ("GET", rf"/api/models/{_NAME}/revision/{_REVISION}", _Handler._info),
    ("GET", rf"/api/models/{_NAME}/tree/{_REVISION}", _Handler._tree),
    ("POST", rf"/api/models/{_NAME}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", rf"/{_NAME}.git/info/lfs/objects/batch", _Handler._lfs),
    ("PUT", r"/large/(\w+)", _Handler._put),
    ("POST", rf"/api/models/{_NAME}/commit/{_REVISION}", _Handler._commit),
    ("HEAD", rf"/{_NAME}/resolve/{_REVISION}/(.+)", _Handler._resolve),
    ("GET", rf"/{_NAME}/resolve/{_REVISION}/(.+)", _Handler._resolve),
]
