"""Who asks a tracking server is said by MLflow's own variables, and to that server alone."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mlflow.utils.rest_utils import MlflowHostCreds, http_request

from pipeline import mlflow_ask, preflight
from pipeline.mlflow_page import address
from pipeline.preflight import tracking
from tests.contract.guard import Guard
from tests.contract.servers import Server

ADA = f"Basic {base64.b64encode(b'ada:love:lace').decode()}"


class Noting(Server):
    """Notes who asks; sends whoever asks for /away on to another server."""

    def __init__(self, away: str = "") -> None:
        super().__init__(_Noting)
        self.away, self.heard = away, list[str | None]()


class _Noting(BaseHTTPRequestHandler):
    server: Noting

    def do_GET(self) -> None:
        self.server.heard.append(self.headers.get("Authorization"))
        self.send_response(302 if self.path == "/away" else 200)
        if self.path == "/away":
            self.send_header("Location", self.server.away)
        self.end_headers()
        self.wfile.write(b"3.17.2")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that this process runs itself are waited for."""
    monkeypatch.setattr(preflight, "ANSWER_SECONDS", 120.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Noting]:
    monkeypatch.setenv("HOME", str(tmp_path))
    # Which is not asked for what is on this machine.
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:9")
    with (found := Noting()).running():
        yield found


@pytest.mark.parametrize(
    ("environment", "file", "said"),
    [
        ({}, "", None),
        ({"USERNAME": "ada", "PASSWORD": "love:lace"}, "", ADA),
        ({"USERNAME": "ada", "PASSWORD": "love:lace", "TOKEN": "abc"}, "", ADA),
        ({"TOKEN": "abc"}, "", "Bearer abc"),
        ({"USERNAME": "ada", "TOKEN": "abc"}, "", "Bearer abc"),
        ({}, "[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = love:lace\n", ADA),
        ({}, "no file of this kind", None),
    ],
)
def test_it_is_said_as_mlflow_itself_says_it(server, monkeypatch, tmp_path, environment, file, said):
    for name, value in environment.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(file)
    assert mlflow_ask.ask(server.url, "/version", 120) == b"3.17.2"
    assert server.heard == [said]


def test_mlflow_itself_prefers_the_name_to_the_token(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    own = MlflowHostCreds(server.url, username="ada", password="love:lace", token="abc")
    http_request(own, "/version", "GET")
    assert server.heard == [ADA]


def test_another_server_that_one_is_sent_to_is_not_told(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    with (first := Noting(away=server.url)).running():
        assert mlflow_ask.ask(first.url, "/away", 120) == b"3.17.2"
    assert (first.heard, server.heard) == (["Bearer abc"], [None])


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("beginning", ["/version", "/api/"])
def test_a_server_that_does_not_let_us_in_is_told_with_what_to_set(server, status, beginning):
    """Some tell their version to anybody."""
    guard = Guard("", refuse=lambda method, path: status if path.startswith(beginning) else 200)
    with guard.running():
        found = tracking(guard.url)
    assert (found.level, found.check) == ("warning", "MLflow")
    assert f"does not let us in without credentials ({status}): set {mlflow_ask.SETTINGS}" in found.told


@pytest.mark.parametrize("status", [200, 404])
def test_a_server_that_has_nothing_of_ours_yet_is_in_order(server, status):
    guard = Guard("", refuse=lambda method, path: status if path.startswith("/api/") else 200)
    with guard.running():
        assert tracking(guard.url).level == "ok"


def test_what_speaks_no_http_and_what_is_no_address_are_as_good_as_away():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        found = tracking(f"http://127.0.0.1:{other.getsockname()[1]}")
    assert (found.level, "does not answer (BadStatusLine" in found.told) == ("warning", True), found
    assert tracking("http://[bad").level == "warning"
    assert address("http://[bad") == "http://[bad"
