"""Servers for the tests of reading over a network: one that breaks another's answers, and two that serve files."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}
ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>said by the test</Message></Error>"


class Server(ThreadingHTTPServer):
    """On a free port of the loopback."""

    daemon_threads = True
    # A connection that does not fit in is tried again a second later, and then ever more seldom.
    request_queue_size = 128

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.host}"

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()
            self.server_close()

    def shutdown_request(self, request) -> None:
        # Without the polite end of the original, so that a connection that is to be reset is reset.
        self.close_request(request)

    def handle_error(self, request, client_address) -> None:
        """Clients go away in the middle of answers here; that is no news."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server behind the proxy said."""

    status: int
    headers: dict[str, str]
    body: bytes


class FaultyProxy(Server):
    """Passes requests on to a server as they are, the signed Host included, and breaks the answers in its plan.

    `plan[method]` is what befalls the next answers, one after another; `always[method]` all that follow.
    """

    def __init__(self, target: str) -> None:
        super().__init__(_Forward)
        self.target = urlsplit(target).netloc
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.plan: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.asked: list[tuple[str, str]] = []

    def next_fault(self, method: str, path: str) -> Fault:
        with self.lock:
            self.asked.append((method, path))
            return self.plan[method].pop(0) if self.plan[method] else self.always.get(method, pass_on)

    def count(self, method: str) -> int:
        return [asked for asked, _ in self.asked].count(method)

    def forget(self) -> None:
        self.plan.clear()
        self.always.clear()
        self.asked.clear()


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault(self.command, self.path)
        fault(self, self._forward(body))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _forward(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.server.target)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        found = Answer(status=answer.status, headers=headers, body=answer.read())
        connection.close()
        return found

    def begin(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        length = len(answer.body) if self.command != "HEAD" else answer.headers.get("Content-Length", 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


Fault = Callable[[_Forward, Answer], None]


def pass_on(request: _Forward, answer: Answer) -> None:
    request.begin(answer)
    if request.command != "HEAD":
        request.wfile.write(answer.body)


def instead(status: int, kind: str, text: str, **headers: str) -> Fault:
    def fault(request: _Forward, answer: Answer) -> None:
        pass_on(request, Answer(status=status, headers={"Content-Type": kind, **headers}, body=text.encode()))

    return fault


slow_down = instead(503, "application/xml", ERROR.format(code="SlowDown"))
internal_error = instead(500, "application/xml", ERROR.format(code="InternalError"))
bad_gateway = instead(502, "text/plain", "upstream connect error")
too_many_requests = instead(429, "text/plain", "", **{"Retry-After": "0"})


def reset(request: _Forward, answer: Answer) -> None:
    """The server did what was asked; nobody hears of it."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.close_connection = True


def reset_in_the_body(request: _Forward, answer: Answer) -> None:
    cut(request, answer)
    reset(request, answer)


def cut(request: _Forward, answer: Answer) -> None:
    """Half of the body, and an orderly end of the connection."""
    request.begin(answer)
    request.wfile.write(answer.body[: len(answer.body) // 2])
    request.close_connection = True


def shortened(request: _Forward, answer: Answer) -> None:
    """Half of the body, by a machine that sets Content-Length to what it sends."""
    pass_on(request, replace(answer, body=answer.body[: len(answer.body) // 2]))


def lengthened(request: _Forward, answer: Answer) -> None:
    """More than was asked for, by a machine that sets Content-Length to what it sends."""
    pass_on(request, replace(answer, body=answer.body + bytes(1000)))


def unmeasured(request: _Forward, answer: Answer) -> None:
    """The whole body in one chunk, by a machine that does not say before how long it is."""
    request.send_response_only(answer.status)
    for name, value in answer.headers.items():
        if name.lower() != "content-length":
            request.send_header(name, value)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(answer.body), answer.body))


def silent(request: _Forward, answer: Answer) -> None:
    """Half of the body, and then nothing."""
    cut(request, answer)
    request.server.closing.wait(60)


def flipped(request: _Forward, answer: Answer) -> None:
    body, middle = bytearray(answer.body), len(answer.body) // 2
    body[middle] ^= 1
    pass_on(request, replace(answer, body=bytes(body)))


class FileServer(Server):
    """Python's own server of files, which knows no ranges unless `ranges` is set; redirects those in `moved`."""

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        super().__init__(_Ranges if ranges else _Files)
        self.folder = folder
        self.moved: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []

    def tokens(self) -> list[str | None]:
        """The Authorization header of each request."""
        return [headers.get("Authorization") for _, headers in self.asked]


class _Files(SimpleHTTPRequestHandler):
    server: FileServer

    def __init__(self, request, address, server: FileServer) -> None:
        super().__init__(request, address, server, directory=str(server.folder))

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers.items())))
        if (target := self.server.moved.get(self.path)) is not None:
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.serve()

    def serve(self) -> None:
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Ranges(_Files):
    """With single ranges, and If-Range, as servers of shards have them."""

    protocol_version = "HTTP/1.1"

    def serve(self) -> None:
        path = self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            return self.send_error(404)
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", etag) != etag:
            return self.send(200, body, ETag=etag)
        first, end = int(asked[1]), min(int(asked[2] or len(body)) + 1, len(body))
        if first >= len(body):
            return self.send(416, b"", **{"Content-Range": f"bytes */{len(body)}"})
        return self.send(
            206, body[first:end], **{"ETag": etag, "Content-Range": f"bytes {first}-{end - 1}/{len(body)}"}
        )

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
