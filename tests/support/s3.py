"""An S3 server on loopback (moto's), and a proxy in front of it that fails as networks and servers do."""

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("500", "503", "slow", "reset before", "reset after", "truncate")
KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback", "AWS_REGION": "us-east-1"}


def others(name: str) -> Path:
    """A program of the environment with moto and s3fs, which do not go together with the newest of ours."""
    path = Path(sys.prefix) / "s3/bin" / name
    assert path.exists(), f"{path} is not there: `make install` makes it, an environment with moto, s3fs and xarray"
    return path


class Server:
    """moto's S3 in a process of its own, everything in its memory."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [others("moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "moto's server does not answer"
                time.sleep(0.1)

    def bucket(self, name: str) -> str:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        return f"s3://{name}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `server`, and fails with `rate` in one of the `faults`, drawn from a seeded stream.

    Attributes
    ----------
    asked : requests by method and path; failed : how many failed, by fault.
    away : while true, connections are closed as they come; turned_away : how many.
    slowness : seconds of a slow answer.
    sent : bytes of answers.
    bucket : URL of a bucket, for tests.
    """

    daemon_threads = True

    def __init__(self, server: str, rate: float = 0.0, seed: int = 0, slowness: float = 1.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.rate, self.slowness, self.away = server.removeprefix("http://"), rate, slowness, False
        self.faults: tuple[str, ...] = FAULTS
        self.chance, self.lock = random.Random(seed), threading.Lock()
        self.asked: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[str] = Counter()
        self.sent, self.turned_away, self.bucket = 0, 0, ""
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address) -> None:
        """Connections that clients or faults have closed are expected."""

    def draw(self, method: str, path: str) -> str:
        with self.lock:
            self.asked[method, path] += 1
            if self.chance.random() >= self.rate:
                return ""
            fault = self.chance.choice(self.faults)
            if fault == "truncate" and method != "GET":
                fault = "500"
            self.failed[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer with a body waits 40 ms for an acknowledgement

    def log_message(self, *args) -> None:
        pass

    def _pass(self) -> None:
        if self.server.away:
            with self.server.lock:
                self.server.turned_away += 1
            self._reset()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.draw(self.command, self.path)
        if fault == "reset before":
            self._reset()
            return
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=120)
        upstream.request(self.command, self.path, body, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fault == "slow":
            time.sleep(self.server.slowness)
        if fault == "reset after":
            self._reset()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        with self.server.lock:
            self.server.sent += len(content)
        if fault == "truncate":
            self.wfile.write(content[: len(content) // 2])
            self._reset()
            return
        self.wfile.write(content)

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass
