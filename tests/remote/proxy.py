"""A proxy between client and server that counts requests and spoils some of them.

Which ones depends on the seed and the number of the request; the kinds take turns, those of stores:
500 and 503, an answer that comes late, a connection that breaks in the middle of an answer, and one
that breaks after the server has done what was asked but before it could say so.
"""

import http.client
import http.server
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("500", "503", "slow", "cut", "lost")


@dataclass(frozen=True)
class Request:
    """One request as the proxy saw it."""

    method: str
    path: str
    range: str | None
    sent: int
    """Bytes of its body."""
    received: int
    """Bytes of the answer's body."""
    fault: str | None


@dataclass
class Plan:
    """What is to be spoiled, and what came through."""

    server: str
    seed: int = 0
    share: float = 0.0
    """Of requests that are spoiled."""
    faults: Sequence[str] = FAULTS
    seconds: float = 0.5
    """How late a slow answer comes."""
    only: str = ""
    """Spoil only requests whose path contains this."""
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(self.seed)
        self._spoiled = 0

    def next_fault(self, path: str) -> str | None:
        """The fault of the next request, or None."""
        with self._lock:
            if self.only not in path or self._random.random() >= self.share:
                return None
            self._spoiled += 1
            return self.faults[self._spoiled % len(self.faults)]

    def note(self, request: Request) -> None:
        """Remember a request."""
        with self._lock:
            self.requests.append(request)

    @property
    def spoiled(self) -> set[str]:
        """Kinds of faults that did happen."""
        return {request.fault for request in self.requests if request.fault}

    def gets(self, word: str = "") -> list[Request]:
        """Reads of objects whose path contains `word`."""
        return [
            r for r in self.requests if r.method == "GET" and word in r.path and "?" not in r.path
        ]


@contextmanager
def running_proxy(plan: Plan) -> Iterator[str]:
    """The proxy in front of `plan.server`; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(plan))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(plan: Plan) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

        def _pass_on(self) -> None:
            body = self._body()
            fault = plan.next_fault(self.path)
            if fault in ("500", "503"):
                self._note(body, b"", fault)
                self._answer(int(fault), {}, _ERROR[fault])
                return
            if fault == "slow":
                time.sleep(plan.seconds)
            status, headers, content = self._forward(body)
            self._note(body, content, fault)
            if fault == "lost":
                self._break()
            elif fault == "cut":
                self._answer(status, headers, content, len(content) // 2)
                self._break()
            else:
                self._answer(status, headers, content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            out = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                out += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return out

        def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            server = urlsplit(plan.server)
            connection = http.client.HTTPConnection(server.hostname or "", server.port, timeout=60)
            drop = ("transfer-encoding", "content-length", "expect", "connection")
            headers = {name: v for name, v in self.headers.items() if name.lower() not in drop}
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()
            finally:
                connection.close()

        def _answer(
            self, status: int, headers: dict[str, str], content: bytes, stop: int | None = None
        ) -> None:
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers.items():
                if self.command == "HEAD" and name.lower() == "content-length":
                    length = value
                elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[:stop])

        def _break(self) -> None:
            """Reset the connection."""
            self.wfile.flush()
            self.close_connection = True
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.shutdown(socket.SHUT_RDWR)

        def _note(self, body: bytes, content: bytes, fault: str | None) -> None:
            held = self.headers.get("Range")
            sizes = len(body), len(content)
            plan.note(Request(self.command, self.path, held, *sizes, fault))

    return Handler


_ERROR = {
    "500": b"<Error><Code>InternalError</Code><Message>We encountered an error</Message></Error>",
    "503": b"<Error><Code>SlowDown</Code><Message>Please reduce your rate</Message></Error>",
}
