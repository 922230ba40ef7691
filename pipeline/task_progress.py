"""How many of an attempt's tasks are done: a note in storage for people who follow it, which nothing rests on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

from cluster.errors import check_format
from cluster.storage import NotFound, Storage
from stages.context import canonical_json

FORMAT = 1
SECONDS = 2.0
"""Between two notes, at least."""


@dataclass(frozen=True, kw_only=True)
class TaskCount:
    """Tasks of one kind, for example shards that are written."""

    label: str
    done: int
    total: int | None
    """None where nobody knows."""

    def __str__(self) -> str:
        return f"{self.label} {self.done:,}" + (f"/{self.total:,}" if self.total is not None else "")


class Counted:
    """Maps functions over items as `map_tasks` does, and notes how many are done. Call it as that."""

    def __init__(self, storage: Storage, prefix: str, map_tasks: Callable[..., Iterator[Any]]) -> None:
        self._storage, self._key, self._map = storage, _key(prefix), map_tasks
        self._noted = time.monotonic()

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, label: str, **place: Any
    ) -> Iterator[Any]:
        total = len(items) if isinstance(items, Sized) else None
        for done, result in enumerate(self._map(function, items, label=label, **place), start=1):
            if time.monotonic() - self._noted >= SECONDS:
                self._note(TaskCount(label=label, done=done, total=total))
            yield result

    def _note(self, count: TaskCount) -> None:
        self._noted = time.monotonic()
        document = {"format": FORMAT, "label": count.label, "done": count.done, "total": count.total}
        try:
            self._storage.write(self._key, canonical_json(document))
        except Exception as error:
            # The work itself finds out soon enough where storage is away.
            print(f"how far the tasks are cannot be told: {error}", flush=True)


def read_tasks(storage: Storage, prefix: str) -> TaskCount | None:
    """The newest note of the attempt with this key prefix; None before there is one."""
    try:
        document = json.loads(storage.read(_key(prefix)))
    except NotFound:
        return None
    check_format(document.pop("format"), FORMAT, _key(prefix))
    return TaskCount(**document)


def _key(prefix: str) -> str:
    return f"{prefix}/tasks.json"
