"""A real HTTP server on the loopback that stalls, cuts, fails, and sends wrong lengths and wrong bytes."""

import contextlib
import http.server
import socket
import threading
import time
from collections import Counter
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder. `faults[name]` are the misdeeds of the next requests for that file, the last of them for ever if
    it ends with `!`; `seen` are all requests; a stall lasts `stall` seconds.
    """

    daemon_threads = True

    def __init__(self, root: Path, stall: float = 5) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.stall, self.faults, self.seen = root, stall, {}, []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set"

    def times(self) -> Counter:
        return Counter(name for name, _ in self.seen)

    @contextlib.contextmanager
    def serving(self):
        with self:
            thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            yield self
            self.released.set()
            self.shutdown()
            thread.join(5)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        asked = self.headers.get("Range")
        self.server.seen.append((name, asked))
        self.server.headers_of = dict(self.headers)
        waiting = self.server.faults.get(name) or [""]
        fault = waiting.pop(0) if len(waiting) > 1 or not waiting[0].endswith("!") else waiting[0]
        path = self.server.root / name
        if not path.is_file():
            return self.send_error(404)
        fault, data = fault.rstrip("!"), path.read_bytes()
        if fault.isdigit():
            return self.send_error(int(fault))
        begin = int(asked[6:].rstrip("-")) if asked and fault != "whole" else 0
        if fault == "bytes":
            data = data[:-3] + b"xyz"
        if fault == "long":
            data += b"0" * 700
        if fault == "short":
            data = data[: len(data) // 2]
        self.send_response(206 if begin else 200)
        if begin:
            other = 1 if fault == "elsewhere" else begin
            self.send_header("Content-Range", f"bytes {other}-{len(data) - 1}/{len(data)}")
        if fault != "nolength":
            self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        body = data[begin:]
        if fault in ("cut", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.server.released.wait(self.server.stall)
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "drip":
            with contextlib.suppress(OSError):
                for i in range(200):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(0.05)
        else:
            self.wfile.write(body)

    def log_message(self, *words) -> None:
        pass
