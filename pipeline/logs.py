"""Logs that outlive the cluster: what a process prints is stored as it grows."""

from __future__ import annotations

import io
import sys
import threading
from typing import Any, TextIO

from cluster.storage.base import NotFound, Storage


class LogShipper:
    """Copies this process's stdout and stderr to `<prefix>/<number>.log`, about once a second.

    A context manager; the streams are the original ones again after it. What was printed in the last
    second before a SIGKILL is lost to storage.
    """

    def __init__(self, storage: Storage, prefix: str, interval: float = 1.0) -> None:
        self._storage, self._prefix, self._interval = storage, prefix, interval
        self._buffer, self._lock = io.StringIO(), threading.Lock()
        self._number, self._tried = 0, ""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-shipper", daemon=True)
        self._streams: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)

    def __enter__(self) -> LogShipper:
        self._streams = (sys.stdout, sys.stderr)
        sys.stdout = _Tee(self._streams[0], self.append)  # type: ignore[assignment]
        sys.stderr = _Tee(self._streams[1], self.append)  # type: ignore[assignment]
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout, sys.stderr = self._streams
        self._closed.set()
        self._thread.join()
        self._ship()

    def append(self, text: str) -> None:
        with self._lock:
            self._buffer.write(text)

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            self._ship()

    def _ship(self) -> None:
        try:
            # What was tried may be there, its answer lost, and read: the same text again, newer text after it.
            self._store()
            with self._lock:
                self._tried, self._buffer = self._buffer.getvalue(), io.StringIO()
            self._store()
        except Exception as error:
            # A log that cannot be stored must not end the work: it is kept for the next try.
            self._streams[1].write(f"log kept back: {error}\n")

    def _store(self) -> None:
        if self._tried:
            self._storage.write(f"{self._prefix}/{self._number:06d}.log", self._tried.encode())
            self._number, self._tried = self._number + 1, ""


class _Tee(io.TextIOBase):
    def __init__(self, stream: TextIO, append: Any) -> None:
        self._stream, self._append = stream, append

    def write(self, text: str) -> int:
        self._append(text)
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


class LogReader:
    """Reads a stored log as it grows."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage, self._prefix, self._number = storage, prefix, 0
        self._unseen = ""

    def new_text(self) -> str:
        """What was stored since the last call that came through."""
        while True:
            try:
                self._unseen += self._storage.read(f"{self._prefix}/{self._number:06d}.log").decode(errors="replace")
            except NotFound:
                found, self._unseen = self._unseen, ""
                return found
            self._number += 1
