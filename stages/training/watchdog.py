"""Finds a rank that hangs, names it, and ends the attempt: the others would wait for it for ever."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

BEAT_SECONDS = 1.0
SILENT_BEATS = 3
"""So many beats without a sign of life, and a process is stopped or gone."""
LOOKERS = 16
"""Ranks that look at what all have said, at least, where there are so many: were it each of them, rank 0 would have the
square of their number to answer."""


class Watchdog:
    """Every rank tells the group where it stands; some look for ranks that stand in one place for too long.

    Ranks keep in step, so one that hangs stops all of them. It is the one that gives no sign of life (its
    process is stopped, or its machine is gone), or else the one that has come least far. `found` is told
    on the ranks that notice, from a thread. All ranks notice where rank 0 is gone, which keeps what they say. Made
    after the process group; a context manager.
    """

    def __init__(self, seconds: float, found: Callable[[str], None]) -> None:
        self._seconds, self._found = seconds, found
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._looks = looks(self._rank, self._ranks)
        self._store = _store() if self._ranks > 1 else None
        self._place, self._moves, self._beats = "starts", 0, 0
        self._patient_beats = 0
        self._since: dict[int, tuple[str, float]] = {}
        self._beaten: dict[int, tuple[int, float]] = {}
        self._answered, self._trouble_found = time.monotonic(), ""
        self._closed, self._patient = threading.Event(), False

    def __enter__(self) -> Watchdog:
        for act in (self._talk, self._watch):
            threading.Thread(target=act, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Never waits for the thread, which may be waiting for a rank that has left already.
        self._closed.set()

    @property
    def store(self) -> Store | None:
        """What ranks tell each other by, apart from collectives; None for a single one."""
        return self._store

    def at(self, place: str) -> None:
        """This rank has come to a new place, for example `update 7 computes`. Costs nothing."""
        self._place, self._moves = place, self._moves + 1

    @contextmanager
    def patient(self, place: str) -> Iterator[None]:
        """Around what waits for storage, which gives up by itself: however long that takes, it is no hang."""
        self.at(place)
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _talk(self) -> None:
        """Tell the others and hear of them, for as long as rank 0 answers; a store whose process stands may never."""
        while not self._closed.wait(BEAT_SECONDS):
            try:
                self._trouble_found = self._look() or ""
                self._answered = time.monotonic()
            except Exception as error:
                if not self._closed.is_set():
                    print(f"rank 0 does not answer the watchdog: {error}", flush=True)

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            # The store is in rank 0's process.
            silent = time.monotonic() - self._answered
            lost = f"rank 0 gave no sign of life for {silent:.0f} s" if silent > self._seconds + BEAT_SECONDS else ""
            trouble = self._trouble_found or lost
            if trouble and not self._closed.is_set():
                self._found(trouble)
                return

    def _look(self) -> str | None:
        self._beats += 1
        # Apart from the moves, which tell who is behind: ranks do not wait for storage equally long.
        self._patient_beats += self._patient
        own = _report(self._beats, self._moves, self._patient_beats, self._place)
        reports = {self._rank: own}
        if self._store is not None:
            self._store.set(f"patchline/{self._rank}", json.dumps(own))
            if not self._looks:
                # An answer is rank 0's sign of life.
                self._store.check([f"patchline/{self._rank}"])
                return None
            for rank, said in enumerate(self._said(self._store)):
                reports[rank] = json.loads(said) if said else _report(0, 0, 0, "starts")
        return self._trouble(reports, time.monotonic())

    def _said(self, store: Store) -> list[bytes | None]:
        """What each rank said last: two requests of each rank that looks, however many ranks there are."""
        keys = [f"patchline/{rank}" for rank in range(self._ranks)]
        if store.check(keys):
            return list(store.multi_get(keys))
        # A rank may be lost before it has said anything.
        return [store.get(key) if store.check([key]) else None for key in keys]

    def _trouble(self, reports: dict[int, dict], now: float) -> str | None:
        for rank, report in reports.items():
            mark = f"{report['moves']} {report['patient_beats']} {report['place']}"
            if self._since.get(rank, ("", 0.0))[0] != mark:
                self._since[rank] = (mark, now)
            if self._beaten.get(rank, (-1, 0.0))[0] != report["beats"]:
                self._beaten[rank] = (report["beats"], now)
        gone = [rank for rank in reports if now - self._beaten[rank][1] > self._seconds]
        if gone:
            # Whatever the others are at: those that wait for storage seem to get on.
            return f"{_names(gone)} gave no sign of life for {self._seconds:.0f} s"
        if any(now - self._since[rank][1] <= self._seconds for rank in reports):
            return None
        # All stand still: because of a rank that is not there, or else of the one that is furthest behind.
        silent = [rank for rank in reports if now - self._beaten[rank][1] > SILENT_BEATS * BEAT_SECONDS]
        if silent:
            return f"{_names(silent)} gave no sign of life, and nobody got on for {self._seconds:.0f} s"
        least = min(report["moves"] for report in reports.values())
        behind = [rank for rank, report in reports.items() if report["moves"] == least]
        return f"{_names(behind)} did not get on for {self._seconds:.0f} s: {reports[behind[0]]['place']}"


def looks(rank: int, ranks: int) -> bool:
    """Whether this one of so many ranks looks at the others: all of few, of many some on machines far apart."""
    return rank % max(1, ranks // LOOKERS) == 0


def _report(beats: int, moves: int, patient_beats: int, place: str) -> dict:
    """What a rank says of itself: beats so far, places it has come to, beats it was patient in, and where it is."""
    return {"beats": beats, "moves": moves, "patient_beats": patient_beats, "place": place}


def _names(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(str(rank) for rank in ranks)}"


def _store() -> Store:
    """A store of our own in rank 0, apart from the one that collectives use."""
    host, port = os.environ["MASTER_ADDR"], [0]
    patience = timedelta(seconds=30)
    if dist.get_rank() == 0:
        store = TCPStore(host, 0, None, True, patience, wait_for_workers=False)
        port = [store.port]
    dist.broadcast_object_list(port)
    if dist.get_rank() != 0:
        store = TCPStore(host, port[0], None, False, patience)
    store.set_timeout(timedelta(seconds=BEAT_SECONDS))
    return store
