"""A storage that lets a test do something before each call that somebody makes: another process's work, or a kill."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from cluster.storage import Storage

CALLS = (
    "read", "read_tagged", "read_range", "stat", "write", "write_if_absent", "compare_and_swap", "upload", "writer",
    "download", "list", "sizes", "list_folders", "delete",
)  # fmt: skip


def interposed(storage: Storage, before: Callable[[int, str, str], None]) -> tuple[Storage, Callable[[], int]]:
    """The storage, with `before` called before each call with its number, name and first argument; and how many
    there were."""
    found = _Interposed(storage, before)
    return cast(Storage, found), lambda: found.calls


class _Interposed:
    def __init__(self, storage: Storage, before: Callable[[int, str, str], None]) -> None:
        self._storage, self._before, self._lock = storage, before, threading.Lock()
        self.url, self.calls = storage.url, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if name not in CALLS:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                number, self.calls = self.calls, self.calls + 1
            self._before(number, name, str(arguments[0]))
            return found(*arguments, **options)

        return call
