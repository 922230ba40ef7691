# Fixtures of the tests beside this one.
# ruff: noqa: F401, F811
"""What a supervisor has to tell a webhook: once, whoever was killed, and without waiting for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from cluster import webhook
from cluster.storage import Storage
from pipeline import notify
from pipeline.driver import _tell_failed
from pipeline.keeper import request_cancel
from pipeline.notify import Notifier
from pipeline.record import EventLog, listed
from pipeline.settings import Settings
from pipeline.supervise import Supervisor
from tests.contract.servers import Server
from tests.unit.pipeline.job_server import JobServer
from tests.unit.pipeline.test_notify import Hook, hook
from tests.unit.pipeline.test_supervise import (
    LEASE,
    begun,
    drive,
    fail_all,
    quick,
    server,
    settings,
    storage,
    submitted,
    watch,
    watch_for,
)


@pytest.fixture(autouse=True)
def address(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(notify, "POLL_SECONDS", 0.05)
    monkeypatch.setenv("PATCHLINE_WEBHOOK", hook.url)


def taken(hook: Hook) -> list[tuple[str, str]]:
    return [(message["patchline"]["kind"], message["patchline"]["event"]) for message in hook.taken]


def test_a_driver_that_is_lost_is_told_once(hook, server, settings, storage):
    name, _ = begun(storage, server)
    supervisor = Supervisor(settings)
    watch(supervisor, lambda: server.submitted)
    watch_for(supervisor)
    supervisor.close()
    assert hook.texts == [
        f"patchline: {name}: its driver was lost (its driver's lease ran out); another one goes on (1 of 8)"
    ]


def test_what_a_killed_driver_had_not_sent_is_sent_once(hook, server, settings, storage):
    name, head = begun(storage, server)
    log = EventLog(storage, name)
    log.epoch = head.epoch
    sent = Notifier(storage, name, hook.url)
    log.append("stage_rolled_back", "second", update=8, reason="the loss is nan", start=1, stop=2)
    sent.catch_up()
    log.append("stage_failed", "second", message="no such file")
    # Killed here.
    supervisor = Supervisor(settings)
    watch(supervisor, lambda: server.submitted)
    supervisor.close()
    # The next driver knows how far that has come.
    Notifier(storage, name, hook.url).catch_up()
    assert taken(hook) == [("rollback", "stage_rolled_back"), ("failure", "stage_failed"), ("stall", "driver_lost")]


def test_the_next_driver_that_began_to_send_meanwhile_sends_nothing_twice(hook, server, settings, storage):
    name, head = begun(storage, server)
    first, second = (Notifier(storage, name, hook.url) for _ in range(2))
    log = EventLog(storage, name)
    log.epoch = head.epoch
    log.append("stage_failed", "second", message="no such file")
    first.catch_up()
    second.catch_up()
    assert taken(hook) == [("failure", "stage_failed")]


def test_giving_up_is_told_once_by_whichever_supervisor(hook, server, settings, storage):
    name = submitted(storage, server, "FAILED")
    for number in range(1, 9):
        supervisor = Supervisor(settings)
        watch(supervisor, lambda number=number: len(server.submitted) == number)
        supervisor.close()
        fail_all(server)
    with supervised([Supervisor(settings) for _ in range(3)]):
        wait_for(lambda: listed(storage)[name] == "failed")
        time.sleep(4 * LEASE)
    assert taken(hook) == [("stall", "driver_lost")] * 8 + [("failure", "workflow_ended")]
    assert "8 more drivers were lost before the workflow got on" in hook.texts[-1]
    assert "8 of 8" in hook.texts[-2]


@contextmanager
def supervised(supervisors: list[Supervisor]) -> Iterator[None]:
    """With supervisors at work, each in a thread, which end whatever becomes of the test."""
    stop = threading.Event()

    def rounds(supervisor: Supervisor) -> None:
        while not stop.is_set():
            supervisor.round()
        supervisor.close()

    threads = [threading.Thread(target=rounds, args=(item,)) for item in supervisors]
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be so"
        time.sleep(0.02)


def test_several_supervisors_tell_of_a_loss_once(hook, server, settings, storage):
    names = {begun(storage, server)[0] for _ in range(3)}
    with supervised([Supervisor(settings) for _ in range(3)]):
        wait_for(lambda: len(server.submitted) == 3)
        time.sleep(4 * LEASE)
    assert sorted(message["patchline"]["workflow"] for message in hook.taken) == sorted(names)


def test_an_end_that_the_driver_could_not_tell_is_told(hook, server, settings, storage):
    name, head = begun(storage, server, "FAILED")
    Notifier(storage, name, hook.url)
    head.release("failed")
    supervisor = Supervisor(settings)
    watch(supervisor, lambda: listed(storage)[name] == "failed")
    watch_for(supervisor)
    supervisor.close()
    assert taken(hook) == [("failure", "workflow_ended")]
    assert hook.texts == [f"patchline: {name}: failed: its driver was lost at its end"]


def test_the_end_of_what_was_cancelled_and_lost_is_told(hook, server, settings, storage):
    name, _ = begun(storage, server)
    request_cancel(storage, name)
    supervisor = Supervisor(settings)
    watch(supervisor, lambda: listed(storage)[name] == "stopped")
    supervisor.close()
    assert taken(hook) == [("end", "workflow_ended")]


class Mute(Server):
    """It takes connections, and answers nobody until it is let."""

    def __init__(self) -> None:
        super().__init__(_Waiting)
        self.asked, self.answer = threading.Event(), threading.Event()


class _Waiting(BaseHTTPRequestHandler):
    server: Mute

    def do_POST(self) -> None:
        self.server.asked.set()
        self.server.answer.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def mute() -> Iterator[Mute]:
    found = Mute()
    with found.running():
        yield found
        found.answer.set()


def test_a_webhook_that_does_not_answer_keeps_nobody_from_a_new_driver(
    mute: Mute,
    server: JobServer,
    settings: Settings,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("PATCHLINE_WEBHOOK", mute.url)
    for _ in range(6):
        begun(storage, server)
    supervisor = Supervisor(settings)
    watch(supervisor, mute.asked.is_set)
    # While the first message waits for its answer.
    watch(supervisor, lambda: len(server.submitted) == 6)
    assert not mute.answer.is_set()
    mute.answer.set()
    supervisor.close()


def test_one_that_is_down_is_told_of_and_keeps_nobody_either(server, settings, storage, monkeypatch):
    monkeypatch.setenv("PATCHLINE_WEBHOOK", "http://127.0.0.1:9/secret")
    name, _ = begun(storage, server)
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    watch(supervisor, lambda: server.submitted)
    supervisor.close()
    assert any("127.0.0.1:9 has not taken a message" in line and name in line for line in lines)
    assert not any("secret" in line for line in lines)
    server.states[f"{name}-d1"] = "RUNNING"
    assert drive(storage, name, 1) == "done"


@pytest.mark.parametrize("note", [b"", b"{}", b'{"format": 99, "event": 1}'])
def test_a_note_that_cannot_be_read_keeps_nobody_from_a_new_driver(server, settings, storage, note):
    name, _ = begun(storage, server)
    storage.write(f"workflows/{name}/NOTIFIED", note)
    lines: list[str] = []
    supervisor = Supervisor(settings, report=lines.append)
    watch(supervisor, lambda: server.submitted)
    supervisor.close()
    assert any("nobody is told what happens" in line for line in lines)


def test_a_driver_that_meets_a_mistake_before_it_begins_tells_so_itself(hook, server, settings, storage):
    """Such as one that a supervisor submitted, on a cluster with other builds than the workflow's `pin`."""
    name = submitted(storage, server)
    _tell_failed(storage, name, 0, "pin: this machine has torch 2.12.0")
    assert hook.texts == [f"patchline: {name}: failed: pin: this machine has torch 2.12.0"]


def test_where_nobody_can_be_told_the_mistake_still_stands_in_storage(server, settings, storage, monkeypatch):
    monkeypatch.setenv("PATCHLINE_WEBHOOK", "no address")
    name = submitted(storage, server)
    _tell_failed(storage, name, 0, "pin: this machine has torch 2.12.0")
    assert listed(storage) == {name: "failed"}
