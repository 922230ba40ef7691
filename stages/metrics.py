"""Metric points as files: the one record of a run's curves, from which every tracker is fed.

Object storage cannot append, so an attempt's points lie in numbered files of JSON lines,
`attempts/<n>/metrics/<number>.jsonl`. A file is never changed once a reader can have seen it. A point
keeps the timestamp at which it was measured: sending it twice to a tracker that keys points by their
timestamps adds nothing.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from cluster.errors import check_format
from cluster.storage.base import NotFound, Storage

FORMAT = 1


def now_ms() -> int:
    """Milliseconds since 1970, on this machine's clock."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of one metric at one update; `time_ms` is milliseconds since 1970."""

    name: str
    value: float
    step: int
    time_ms: int


def is_evaluation(name: str) -> bool:
    """Whether a metric is measured between two updates, on the validation split."""
    return name.startswith(("validation/", "raw/validation/"))


def points_body(points: Iterable[Point]) -> bytes:
    """Points as a file: a line of JSON for each."""
    return "".join(json.dumps({"format": FORMAT, **asdict(point)}) + "\n" for point in points).encode()


def read_points(storage: Storage, key: str) -> list[Point]:
    """The points of a file. Raises NotFound; UserError for a newer format."""
    return [_point(line, key) for line in storage.read(key).splitlines()]


class MetricWriter:
    """Collects points and stores them from a thread of its own, about once a second."""

    def __init__(self, storage: Storage, prefix: str, *, interval: float = 1.0) -> None:
        self._storage, self._prefix, self._interval = storage, prefix, interval
        self._points: list[Point] = []
        self._number = 0
        self._tried: bytes | None = None
        self._points_lock, self._flush_lock = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Note the values of several metrics at one update. Returns at once."""
        now = now_ms()
        with self._points_lock:
            self._points += [Point(name=name, value=float(v), step=step, time_ms=now) for name, v in values.items()]

    def flush(self) -> None:
        """Store everything noted so far; returns when it is stored."""
        with self._flush_lock:
            # What was tried may be there, its answer lost, and read: the same bytes again, newer points after it.
            self._store()
            self._tried = self._take()
            self._store()

    def close(self) -> None:
        """Stop the thread and store what is left."""
        self._closed.set()
        self._thread.join()
        self.flush()

    def _take(self) -> bytes | None:
        """The points noted so far as a file's body, or None where there are none."""
        with self._points_lock:
            points, self._points = self._points, []
        return points_body(points) or None

    def _store(self) -> None:
        if self._tried is not None:
            self._storage.write(f"{self._prefix}/metrics/{self._number:06d}.jsonl", self._tried)
            self._number, self._tried = self._number + 1, None

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            try:
                self.flush()
            except Exception as error:
                # Whatever the storage raised, the points stay in memory until a later flush; a
                # commit flushes by itself and reports its own failure.
                print(f"metrics are kept back: {error}", flush=True)


class MetricReader:
    """Reads an attempt's points as they appear."""

    def __init__(self, storage: Storage, prefix: str, *, start: int = 0) -> None:
        """`start` is the number of the first file that is read."""
        self._storage, self._prefix = storage, prefix
        self._number = start

    def new_points(self) -> Iterator[Point]:
        """The points stored since the last call, in the order in which they were measured.

        Raises UserError for a newer format.
        """
        while True:
            key = f"{self._prefix}/metrics/{self._number:06d}.jsonl"
            try:
                points = read_points(self._storage, key)
            except NotFound:
                return
            self._number += 1
            yield from points


def last_file(storage: Storage, prefix: str) -> str | None:
    """Key of the last file of points that an attempt has stored, or None where it has stored none."""
    # Numbers have as many digits as they need: the highest one is not always the last in the order of keys.
    return max(storage.list(f"{prefix}/metrics/"), key=lambda key: (len(key), key), default=None)


def last_point(storage: Storage, prefix: str) -> Point | None:
    """The last point that an attempt has stored, or None where it has stored none."""
    key = last_file(storage, prefix)
    return _point(storage.read(key).splitlines()[-1], key) if key is not None else None


def _point(line: bytes, key: str) -> Point:
    document = json.loads(line)
    # The first files had no number.
    check_format(document.pop("format", FORMAT), FORMAT, key)
    return Point(**document)
