"""A webhook is told of failures, stalls, roll-backs and the end, once each, whatever is killed or away."""

from __future__ import annotations

import inspect
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cluster import webhook
from cluster.errors import UserError
from cluster.storage import Storage, open_storage
from pipeline import notify, telling
from pipeline.config import parse_workflow
from pipeline.driver import create, drive
from pipeline.notify import Notifier, notifying
from pipeline.notify_config import NotifyConfig
from pipeline.record import EventLog
from stages.metrics import now_ms
from stages.training.watchdog import Watchdog

TEXT = "name: toy\nstages:\n  ingest: {source: {kind: digits}}\n"
ID = "small-20260131-101500-1a2b"
ROOM = {"workers": 8, "cpus": 1.0, "gpus": 1.0, "memory": 0.0, "labels": None, "most": 4, "free": 4}
BACK = {"update": 812, "reason": "the loss is nan", "start": 100, "stop": 200}
EVENTS = {
    "failure": ("stage_failed", {"message": "no such file"}),
    "failure of all": ("workflow_ended", {"state": "failed", "driver": 0, "message": "given up"}),
    "stall": ("attempt_ended", {"attempt": 1, "outcome": "failed", "message": "rank 3 did not get on for 600 s: x"}),
    "stall, a driver": ("driver_lost", {"number": 0, "reason": "the job is gone", "tries": 1, "budget": 8}),
    "stall, no room": ("waiting_for_room", {**ROOM, "seconds": 640.0}),
    "rollback": ("stage_rolled_back", BACK),
    "end": ("workflow_ended", {"state": "done", "driver": 0}),
}
SILENT = {
    "a start": ("stage_started", {"folder": "x"}),
    "a failure that is tried again": ("attempt_ended", {"attempt": 1, "outcome": "failed", "message": "rank 3 died"}),
    "a stop": ("attempt_ended", {"attempt": 1, "outcome": "stopped", "message": "no sign of life"}),
    "a short wait": ("waiting_for_room", {**ROOM, "seconds": 40.0}),
}


class Hook(ThreadingHTTPServer):
    """A webhook that keeps what it is sent, and answers as `answers` say, then 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/services/secret"
        self.taken: list[dict] = []
        self.answers: list[int] = []

    @property
    def texts(self) -> list[str]:
        return [message["text"] for message in self.taken]


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = self.server.answers.pop(0) if self.server.answers else 200
        if status == 200:
            self.server.taken.append(message)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hook():
    server = Hook()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(notify, "POLL_SECONDS", 0.05)


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(f"file://{tmp_path}")


@pytest.mark.parametrize("name", EVENTS)
def test_what_wakes_somebody_is_told_in_a_line(storage, hook, name):
    notifier = Notifier(storage, ID, hook.url)
    type_, data = EVENTS[name]
    event = EventLog(storage, ID).append(type_, "pretrain" if "stage" in type_ or "att" in type_ else None, **data)
    notifier.catch_up()
    (message,) = hook.taken
    assert message["text"] == message["content"]
    assert message["text"].startswith(f"patchline: {ID}")
    assert "\n" not in message["text"]
    about = message["patchline"]
    assert about["kind"] == name.split(",")[0].split()[0]
    assert (about["id"], about["data"]) == (f"{ID}/{event.number}", data)


@pytest.mark.parametrize("name", SILENT)
def test_what_mends_itself_wakes_nobody(storage, hook, name):
    notifier = Notifier(storage, ID, hook.url)
    type_, data = SILENT[name]
    EventLog(storage, ID).append(type_, "pretrain", **data)
    notifier.catch_up()
    assert hook.taken == []


def test_what_the_watchdog_says_of_a_rank_is_a_stall():
    """Its words are those that are looked for."""
    source = inspect.getsource(Watchdog)
    assert "did not get on for" in source
    assert "gave no sign of life" in source


def test_a_message_that_was_not_sent_when_its_driver_was_lost_is_sent_by_the_next_one(storage, hook):
    first = Notifier(storage, ID, hook.url)
    log = EventLog(storage, ID)
    log.append("stage_rolled_back", "pretrain", **BACK)
    first.catch_up()
    log.append("stage_failed", "pretrain", message="no such file")
    # The first one is killed here.
    Notifier(storage, ID, hook.url).catch_up()
    Notifier(storage, ID, hook.url).catch_up()
    assert [message["patchline"]["kind"] for message in hook.taken] == ["rollback", "failure"]


def test_what_was_before_anybody_was_to_be_told_stays_untold(storage, hook):
    EventLog(storage, ID).append("stage_failed", "pretrain", message="long ago")
    notifier = Notifier(storage, ID, hook.url)
    notifier.catch_up()
    assert hook.taken == []


def test_only_what_is_asked_for_is_told(storage, hook):
    notifier = Notifier(storage, ID, hook.url, ("end",))
    log = EventLog(storage, ID)
    log.append("stage_failed", "pretrain", message="no such file")
    log.append("workflow_ended", state="done", driver=0)
    notifier.catch_up()
    assert hook.texts == [f"patchline: {ID}: done"]


@pytest.mark.parametrize("answers", [[503], [429, 500]])
def test_a_webhook_that_is_away_for_a_moment_is_asked_again(storage, hook, answers):
    hook.answers = answers
    notifier = Notifier(storage, ID, hook.url)
    EventLog(storage, ID).append("workflow_ended", state="done", driver=0)
    notifier.catch_up()
    assert len(hook.taken) == 1


@pytest.mark.parametrize(("answers", "reason"), [([404], "answers 404"), ([302], "answers 302")])
def test_one_that_does_not_take_it_is_told_of_without_its_address(storage, hook, answers, reason):
    hook.answers, told = answers, []
    notifier = Notifier(storage, ID, hook.url, tell=told.append)
    log = EventLog(storage, ID)
    log.append("stage_failed", "pretrain", message="no such file")
    notifier.catch_up()
    assert reason in told[0]
    assert "no such file" in told[0]
    assert "secret" not in told[0]
    log.append("workflow_ended", state="done", driver=0)
    notifier.catch_up()
    assert hook.texts == [f"patchline: {ID}: done"]


def test_a_message_waits_for_a_webhook_that_is_away_for_longer_and_those_after_it_wait_too(storage, hook):
    hook.answers = [500] * 6
    notifier = Notifier(storage, ID, hook.url)
    log = EventLog(storage, ID)
    log.append("stage_failed", "pretrain", message="no such file")
    with pytest.raises(OSError, match="500"):
        notifier.catch_up()
    log.append("workflow_ended", state="failed", driver=0)
    with pytest.raises(OSError, match="500"):
        # Another driver's: what it goes on with is stored.
        Notifier(storage, ID, hook.url).catch_up()
    notifier.catch_up()
    assert hook.texts == [f"patchline: {ID}, pretrain: failed: no such file", f"patchline: {ID}: failed"]


def test_after_an_hour_a_message_is_given_up_and_told_here(storage, hook, monkeypatch):
    hook.answers, told = [500] * 3, []
    notifier = Notifier(storage, ID, hook.url, tell=told.append)
    log = EventLog(storage, ID)
    log.append("stage_failed", "pretrain", message="no such file")
    monkeypatch.setattr(notify, "now_ms", lambda: now_ms() + 3_600_001)
    notifier.catch_up()
    assert "no such file" in told[0]
    log.append("workflow_ended", state="done", driver=0)
    notifier.catch_up()
    assert hook.texts == [f"patchline: {ID}: done"]


def test_a_driver_waits_at_its_end_for_a_webhook_that_is_away(storage, hook, monkeypatch):
    monkeypatch.setenv("PATCHLINE_WEBHOOK", hook.url)
    told = []
    with notifying(storage, ID, None, told.append):
        hook.answers = [503] * 12
        EventLog(storage, ID).append("workflow_ended", state="done", driver=0)
    assert hook.texts == [f"patchline: {ID}: done"]
    (line,) = told
    assert line.startswith("nobody is told what happens: the webhook at 127.0.0.1:")
    assert line.endswith(f"it answers 503; it is tried again: patchline: {ID}: done".replace("patchline: ", ""))
    assert "secret" not in line


def test_a_supervisor_s_message_is_tried_again(storage, hook, monkeypatch):
    monkeypatch.setattr(telling, "RETRY_SECONDS", 0.05)
    hook.answers, told = [503] * 6, []
    notifier = Notifier(storage, ID, hook.url)
    EventLog(storage, ID).append("driver_lost", **EVENTS["stall, a driver"][1])
    teller = telling.Teller(told.append)
    teller.send(notifier)
    deadline = time.monotonic() + 120
    while not hook.taken and time.monotonic() < deadline:
        time.sleep(0.02)
    teller.close()
    assert len(hook.taken) == 1
    assert len(told) == 2


@pytest.mark.parametrize("address", ["", "hooks.example.com/x", "ftp://host/x", "http:///x"])
def test_an_address_that_is_none_is_a_mistake_and_is_not_printed(storage, address):
    with pytest.raises(UserError, match="expected https://HOST/PATH") as error:
        Notifier(storage, ID, address)
    assert not address or address not in str(error.value)


def test_a_driver_tells_the_end(storage, hook, monkeypatch, tmp_path):
    monkeypatch.setenv("PATCHLINE_WEBHOOK", hook.url)
    workflow_id = create(storage, parse_workflow(TEXT, "toy.yaml"))
    assert drive(storage, workflow_id, mlflow=f"sqlite:///{tmp_path}/mlflow.db", ray=False) == "done"
    assert hook.texts == [f"patchline: {workflow_id}: done"]


def test_a_file_says_what_is_told_and_where_the_address_is(storage, hook, monkeypatch):
    monkeypatch.setenv("PATCHLINE_WEBHOOK", "http://127.0.0.1:9")
    monkeypatch.setenv("MY_HOOK", hook.url)
    text = TEXT.replace("stages:", "notify: {tell: [failure], address_from: MY_HOOK}\nstages:")
    config = parse_workflow(text, "toy.yaml").notify
    assert config == NotifyConfig(tell=("failure",), address_from="MY_HOOK")
    with notifying(storage, ID, config, print):
        EventLog(storage, ID).append("stage_failed", "ingest", message="no such file")
        EventLog(storage, ID).append("workflow_ended", state="done", driver=0)
    assert hook.texts == [f"patchline: {ID}, ingest: failed: no such file"]
    with (
        pytest.raises(UserError, match="has no variable NOBODYS"),
        notifying(storage, ID, NotifyConfig(address_from="NOBODYS"), print),
    ):
        pass


def test_without_an_address_or_a_wish_nobody_is_told(storage, hook, monkeypatch):
    monkeypatch.delenv("PATCHLINE_WEBHOOK", raising=False)
    with notifying(storage, ID, None, print):
        EventLog(storage, ID).append("workflow_ended", state="done", driver=0)
    monkeypatch.setenv("PATCHLINE_WEBHOOK", hook.url)
    with notifying(storage, ID, NotifyConfig(tell=()), print):
        EventLog(storage, ID).append("workflow_ended", state="done", driver=0)
    assert hook.taken == []
    assert not any("NOTIFIED" in key for key in storage.list("workflows/"))


def test_a_word_that_is_no_kind_is_a_mistake():
    text = TEXT.replace("stages:", "notify: {tell: [failures]}\nstages:")
    with pytest.raises(UserError, match=r"notify.tell.0: got 'failures', expected 'failure'"):
        parse_workflow(text, "toy.yaml")
