"""A spot machine's notice, from a server that answers as AWS's does."""

from __future__ import annotations

import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from cluster.deploy import spot_notice
from tests.contract.servers import Server


class Metadata(Server):
    """Asks for a session, and has a notice from the given question on."""

    def __init__(self, notice_at: int) -> None:
        super().__init__(_Answers)
        self.notice_at, self.asked = notice_at, 0


class _Answers(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        self._say(200, "session" if self.headers.get("X-aws-ec2-metadata-token-ttl-seconds") else "")

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != "session":
            return self._say(401, "")
        self.server.asked += 1
        there = self.server.asked >= self.server.notice_at
        return self._say(200 if there else 404, '{"action": "terminate"}' if there else "")

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_ray_is_told_once_there_is_a_notice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = tmp_path / "told"
    program = tmp_path / "ray"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{told}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(str(shutil.which('sh'))).parent}")
    server = Metadata(notice_at=3)
    with server.running():
        assert spot_notice.watch(server.url, 90, look_seconds=0.01) == 0
    assert server.asked == 3
    words = told.read_text().splitlines()
    assert words[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert words[-2:] == ["--deadline-remaining-seconds", "90"]


def test_a_machine_that_is_none_of_aws_has_no_notice():
    server = Metadata(notice_at=1)
    with server.running():
        assert spot_notice.taken_away(server.url)
    assert not spot_notice.taken_away(server.url)
