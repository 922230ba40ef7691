"""Keeps a driver's leases alive, and passes a request to stop on to the running attempt."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool

from cluster.errors import UserError, check_format
from cluster.storage import NotFound, Storage
from pipeline.head import Head, LeaseLost, read_head
from pipeline.record import listed
from pipeline.worker import request_stop

FORMAT = 1
CLOSE_SECONDS = 5.0
AT_ONCE = 16
"""Leases that are renewed side by side."""


def request_cancel(storage: Storage, workflow_id: str) -> None:
    """Ask the driver that runs a workflow now, or the first one to come, to save a checkpoint and stop.

    The request names the driver by its epoch, so that it never stops one that a later `resume` starts; and those that
    wait for its lease, or are on their way, by the number of the newest one that was submitted. Raises UserError where
    nothing runs.
    """
    found = read_head(storage, f"workflows/{workflow_id}")
    epoch = found[0].epoch if found is not None else 1
    if found is not None and found[0].state != "running":
        if listed(storage).get(workflow_id) != "submitted":
            raise UserError(f"{workflow_id} does not run ({found[0].state}): there is nothing to cancel")
        # The driver that has been submitted will raise the epoch by one when it starts.
        epoch += 1
    newest = _newest_driver(storage, workflow_id)
    while True:
        request = {"format": FORMAT, "epoch": epoch, "driver": newest}
        storage.write(_cancel_key(workflow_id), json.dumps(request).encode())
        # One that was submitted before the request could be seen is meant too.
        named, newest = newest, _newest_driver(storage, workflow_id)
        if newest == named:
            return


def _newest_driver(storage: Storage, workflow_id: str) -> int | None:
    numbers = [int(key.rpartition("/")[2]) for key in storage.list(f"workflows/{workflow_id}/drivers/")]
    return max(numbers, default=None)


def cancelled(storage: Storage, workflow_id: str, *, epoch: int, driver: int | None) -> bool:
    """Whether there is a request that means a driver of this epoch or later, or of this number."""
    try:
        request = json.loads(storage.read(_cancel_key(workflow_id)))
    except NotFound:
        return False
    check_format(request["format"], FORMAT, _cancel_key(workflow_id))
    newest = request.get("driver")
    return request["epoch"] >= epoch or (driver is not None and newest is not None and driver <= newest)


def _cancel_key(workflow_id: str) -> str:
    return f"workflows/{workflow_id}/CANCEL"


class Held:
    """A lease that is renewed until it is dropped."""

    def __init__(self, head: Head) -> None:
        self.head, self._lock, self._dropped = head, threading.Lock(), False

    def renew(self) -> Exception | None:
        """Renew it, where it was not dropped; returns what came in the way."""
        with self._lock:
            try:
                if not self._dropped:
                    self.head.renew()
            except Exception as error:
                return error
            return None

    def drop(self) -> None:
        """Wait for a renewal on its way; there is none after it."""
        with self._lock:
            self._dropped = True


def renew_all(held: Sequence[Held]) -> None:
    """Renew leases side by side. Raises LeaseLost where one is lost, else what came in the way of one."""
    if not held:
        return
    # Its threads, unlike an executor's, keep no process that ends while storage is away.
    with ThreadPool(min(AT_ONCE, len(held))) as pool:
        errors = [error for error in pool.map(Held.renew, held, chunksize=1) if error is not None]
    for error in sorted(errors, key=lambda error: not isinstance(error, LeaseLost)):
        raise error


class LeaseKeeper:
    """Renews the leases and looks for CANCEL, from a thread of its own.

    `stop` is set by a cancel request found in storage, or by a signal; `on_lost` is called, from the
    thread, when another process has taken a lease over.
    """

    def __init__(
        self, storage: Storage, workflow_id: str, ttl: float, on_lost: Callable[[str], None], number: int | None = None
    ) -> None:
        self._storage, self._id, self._ttl, self._number = storage, workflow_id, ttl, number
        self._on_lost = on_lost
        self._workflow: Head | None = None
        self._stages: dict[str, Held] = {}
        self._attempts: dict[str, str] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self.stop = threading.Event()

    def start(self, workflow: Head) -> None:
        self._workflow = workflow
        if self._cancelled():
            # While another driver still held the workflow.
            self.stop.set()
        self._thread.start()

    def hold(self, stage: Head) -> None:
        """Renew this stage's lease, beside those of others."""
        with self._lock:
            self._stages[stage.folder] = Held(stage)

    def drop(self, stage: Head) -> None:
        """Renew the stage's lease no more. Called before the lease is ended, which must not look like a loss."""
        with self._lock:
            held = self._stages.get(stage.folder)
            if held is None or held.head is not stage:
                # It is dropped already, and the folder may be held again, for another stage of this workflow.
                return
            del self._stages[stage.folder]
        held.drop()

    def attempt_begins(self, folder: str, prefix: str) -> None:
        """The attempt of this stage that a request to stop is passed on to."""
        with self._lock:
            self._attempts[folder] = prefix

    def attempt_ended(self, folder: str) -> None:
        with self._lock:
            self._attempts.pop(folder, None)

    def close(self) -> None:
        self._closed.set()
        # It may wait for storage that is away.
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        interval, renewed, told = self._ttl / 3, 0.0, set[str]()
        while not self._closed.wait(min(1.0, interval)):
            try:
                if time.monotonic() - renewed >= interval:
                    self._renew()
                    renewed = time.monotonic()
                if not self.stop.is_set() and self._cancelled():
                    self.stop.set()
                for prefix in self._to_be_told(told):
                    request_stop(self._storage, prefix)
                    told.add(prefix)
            except LeaseLost as error:
                # Once it is closed, the driver ends the lease itself, and finds out by that if it is lost.
                if not self._closed.is_set():
                    self._on_lost(str(error))
                return
            except Exception as error:
                # Storage may be away for a moment. Until the lease runs out nothing is lost.
                print(f"lease not renewed: {error}", flush=True)

    def _to_be_told(self, told: set[str]) -> list[str]:
        with self._lock:
            return [prefix for prefix in self._attempts.values() if prefix not in told] if self.stop.is_set() else []

    def _cancelled(self) -> bool:
        assert self._workflow is not None, "it has been started"
        return cancelled(self._storage, self._id, epoch=self._workflow.epoch, driver=self._number)

    def _renew(self) -> None:
        assert self._workflow is not None, "it has been started"
        with self._lock:
            held = [Held(self._workflow), *self._stages.values()]
        renew_all(held)


def exit_process(reason: str) -> None:
    # Nothing that this process does can become visible any more; ending it frees its workers.
    print(f"another driver took over: {reason}", flush=True)
    os._exit(70)
