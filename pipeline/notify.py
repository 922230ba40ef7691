"""Tells somebody's webhook what happens to a workflow: failures, stalls, roll-backs, and its end.

What is told are events that are stored, and how far that has come is stored too. So a message whose driver was killed
is sent by the next driver, or by the supervisor; one may come twice where two send it in the same moment, and its `id`
says so. Nothing waits for it:
training goes on while the webhook is away.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster import webhook
from cluster.errors import UserError, check_format
from cluster.storage import NotFound, Storage
from pipeline.notify_config import KINDS, VARIABLE, Kind, NotifyConfig
from pipeline.record import Event, EventLog
from pipeline.told import TOLD, driver_lost
from stages.metrics import now_ms

FORMAT = 1
POLL_SECONDS = 5.0
CLOSE_SECONDS = 60.0
"""For what is still to be sent when a driver ends."""
PATIENCE_SECONDS = 3600.0
"""From an event until nobody tries any more to tell of it, while its webhook is away."""
WAITS_SECONDS = 600.0
"""For room on the cluster, before that is a stall."""
STANDS_STILL = re.compile(r"did not get on|no sign of life")
"""In what an attempt ended with that the watchdog ended (`stages.training.watchdog`)."""


def kind_of(event: Event) -> Kind | None:
    """What an event is to somebody who sleeps; None for what is no reason to wake."""
    data = event.data
    match event.type:
        case "workflow_ended":
            return "failure" if data["state"] == "failed" else "end"
        case "stage_failed":
            return "failure"
        case "stage_rolled_back":
            return "rollback"
        case "driver_lost":
            return "stall"
        case "attempt_ended" if data["outcome"] == "failed" and STANDS_STILL.search(str(data["message"])):
            return "stall"
        case "waiting_for_room" if float(str(data.get("seconds", 0))) >= WAITS_SECONDS:
            return "stall"
        case _:
            return None


def text_of(workflow_id: str, event: Event) -> str:
    """What is said of such an event, in a line."""
    data, where = event.data, f"{workflow_id}, {event.stage}" if event.stage else workflow_id
    match event.type:
        case "workflow_ended":
            said = f"{data['state']}{f': {message}' if (message := data.get('message')) else ''}"
        case "stage_failed":
            said = f"failed: {data.get('message') or 'see `patchline logs`'}"
        case "driver_lost":
            said = driver_lost(data)
        case "attempt_ended":
            said = f"attempt {data['attempt']} stood still: {data['message']}"
        case kind:
            said = TOLD[kind](data)
    return f"{where}: {said}"


def message_of(storage: Storage, workflow_id: str, event: Event) -> dict[str, Any]:
    """What is sent. `text` is Slack's, Mattermost's and Teams', `content` is Discord's; `patchline` is for programs."""
    text = f"patchline: {text_of(workflow_id, event)}"
    about = {
        "id": f"{workflow_id}/{event.number}",
        "workflow": workflow_id,
        "root": storage.url,
        "kind": kind_of(event),
        "stage": event.stage,
        "event": event.type,
        "time_ms": event.time_ms,
        "data": event.data,
    }
    return {"text": text, "content": text, "patchline": about}


class Notifier:
    """Sends what is new of one workflow. Raises UserError where the address is none."""

    def __init__(
        self,
        storage: Storage,
        workflow_id: str,
        address: str,
        kinds: tuple[Kind, ...] = KINDS,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        webhook.check(address)
        self._storage, self._id, self._address, self._kinds, self._tell = storage, workflow_id, address, kinds, tell
        self._events = EventLog(storage, workflow_id)
        self._key = f"workflows/{workflow_id}/NOTIFIED"
        self._waiting = deque[Event]()
        self._told = self._begin()

    def catch_up(self) -> None:
        """Send what has happened since the last message of anybody's.

        Raises OSError where storage or the webhook is away: the next call goes on with the same message, as does the
        next driver's notifier.
        """
        self._waiting += self._events.new_events()
        while self._waiting:
            event = self._waiting[0]
            if event.number > self._told and kind_of(event) in self._kinds:
                self._send(event)
            self._told = max(self._told, event.number)
            self._waiting.popleft()

    def _send(self, event: Event) -> None:
        told = self._stored()
        if told is not None and told >= event.number:
            # The next driver, or a supervisor, was faster.
            return
        try:
            webhook.post(self._address, message_of(self._storage, self._id, event))
        except webhook.NotTaken as error:
            if error.passing and now_ms() - event.time_ms < 1000 * PATIENCE_SECONDS:
                raise webhook.NotTaken(
                    f"{error}; it is tried again: {text_of(self._id, event)}", passing=True
                ) from None
            self._tell(f"{error}; it was: {text_of(self._id, event)}")
        self._note(event.number)

    def _begin(self) -> int:
        """Number of the last event that was told; where nobody has told anything, of the last one that there is."""
        told = self._stored()
        if told is not None:
            return told
        newest = max((event.number for event in EventLog(self._storage, self._id).new_events()), default=-1)
        self._note(newest)
        return newest

    def _stored(self) -> int | None:
        try:
            document = json.loads(self._storage.read(self._key))
        except NotFound:
            return None
        check_format(document["format"], FORMAT, self._key)
        return int(document["event"])

    def _note(self, number: int) -> None:
        self._storage.write(self._key, json.dumps({"format": FORMAT, "event": number}).encode())


def notifier_of(
    storage: Storage, workflow_id: str, config: NotifyConfig | None, tell: Callable[[str], None]
) -> Notifier | None:
    """That of a workflow, as its file and this machine's environment have it; None where nobody is to be told.

    Raises UserError where the file names a variable that is not there.
    """
    config = config or NotifyConfig()
    address = os.environ.get(config.address_from, "")
    if not config.tell:
        return None
    if not address:
        if config.address_from != VARIABLE:
            raise UserError(f"notify.address_from: the driver's machine has no variable {config.address_from}")
        return None
    return Notifier(storage, workflow_id, address, config.tell, tell)


@contextmanager
def notifying(
    storage: Storage, workflow_id: str, config: NotifyConfig | None, tell: Callable[[str], None]
) -> Iterator[None]:
    """Within it, what is stored as an event is told a few seconds later, from a thread; at its end all the rest is."""
    notifier = notifier_of(storage, workflow_id, config, tell)
    if notifier is None:
        yield
        return
    closed = threading.Event()

    def run() -> None:
        away, until = False, math.inf
        while True:
            if last := closed.wait(0 if until < math.inf else POLL_SECONDS):
                until = min(until, time.monotonic() + CLOSE_SECONDS)
            try:
                notifier.catch_up()
                away = False
            except Exception as error:
                # Whatever it is, the workflow is more important.
                if not away:
                    tell(f"nobody is told what happens: {error}")
                away = True
            if last and (not away or time.monotonic() >= until):
                return
            if last:
                time.sleep(POLL_SECONDS)

    thread = threading.Thread(target=run, name="notify", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join(CLOSE_SECONDS)
