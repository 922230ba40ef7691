"""Keeps a driver's leases alive, and passes a request to stop on to the running attempt."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from cluster.storage import Storage
from pipeline.head import Head, LeaseLost
from pipeline.worker import request_stop


class LeaseKeeper:
    """Renews the leases and looks for CANCEL, from a thread of its own.

    `stop` is set by a cancel request found in storage, or by a signal; `on_lost` is called, from the
    thread, when another process has taken a lease over.
    """

    def __init__(self, storage: Storage, workflow_id: str, ttl: float, on_lost: Callable[[str], None]) -> None:
        self._storage, self._cancel, self._ttl = storage, f"workflows/{workflow_id}/CANCEL", ttl
        self._on_lost = on_lost
        self._workflow: Head | None = None
        self._stage: Head | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self.stop = threading.Event()
        self.attempt: str | None = None

    def start(self, workflow: Head) -> None:
        self._workflow = workflow
        self._thread.start()

    def hold(self, stage: Head) -> None:
        with self._lock:
            self._stage = stage

    def drop(self) -> None:
        """Renew the stage's lease no more. Called before the lease is ended, which must not look like a loss."""
        with self._lock:
            self._stage = None

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        interval, renewed, told = self._ttl / 3, 0.0, None
        while not self._closed.wait(min(1.0, interval)):
            try:
                if time.monotonic() - renewed >= interval:
                    self._renew()
                    renewed = time.monotonic()
                if self._storage.stat(self._cancel) is not None:
                    self.stop.set()
                if self.stop.is_set() and self.attempt and self.attempt != told:
                    told = self.attempt
                    request_stop(self._storage, told)
            except LeaseLost as error:
                self._on_lost(str(error))
                return
            except Exception as error:
                # Storage may be away for a moment. Until the lease runs out nothing is lost.
                print(f"lease not renewed: {error}", flush=True)

    def _renew(self) -> None:
        with self._lock:
            heads = [head for head in (self._workflow, self._stage) if head is not None]
            for head in heads:
                head.renew()


def exit_process(reason: str) -> None:
    # Nothing that this process does can become visible any more; ending it frees its workers.
    print(f"another driver took over: {reason}", flush=True)
    os._exit(70)
