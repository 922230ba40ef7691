"""A reverse proxy before a tracking server: it asks who one is, and refuses what it is told to refuse."""

from __future__ import annotations

import base64
import http.client
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from tests.contract.servers import HOP_BY_HOP, Server

Refusal = Callable[[str, str], int | None]
"""The status with which a method and a path are refused, or None where they are passed on."""


class Guard(Server):
    """Asks for Basic authentication where `user` is set; what `refuse` refuses, the server behind it never hears."""

    def __init__(self, target: str, user: str = "", refuse: Refusal = lambda method, path: None) -> None:
        super().__init__(_Guarded)
        self.target, self.refuse = target.removeprefix("http://"), refuse
        self.wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else None
        self.refused = Counter[int]()

    def status(self, method: str, path: str, authorization: str | None) -> int | None:
        if self.wanted is not None and authorization != self.wanted:
            return 401
        return self.refuse(method, path)


class _Guarded(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Guard

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = self.server.status(self.command, self.path, self.headers.get("Authorization"))
        if status is not None:
            self.server.refused[status] += 1
            asked = {"WWW-Authenticate": 'Basic realm="mlflow"'} if status == 401 else {}
            self._answer(status, {"Content-Type": "text/plain", **asked}, b"refused by the proxy")
            return
        connection = http.client.HTTPConnection(self.server.target)
        kept = {name: value for name, value in self.headers.items() if name.lower() not in (*HOP_BY_HOP, "host")}
        connection.request(self.command, self.path, body, kept)
        answer = connection.getresponse()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP}
        self._answer(answer.status, headers, answer.read())
        connection.close()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
