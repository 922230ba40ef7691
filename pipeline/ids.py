"""Ids of workflows, and their age.

A generated id says when it was made: `digits-20260131-101500-1a2b`. One that a user gives does not, so it is noted
in a key's name, `index/named/<id>/<milliseconds>-<drivers>`, and a list needs no reads.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from fnmatch import fnmatchcase

from cluster.errors import UserError
from cluster.storage import Storage
from stages.metrics import now_ms

NAMED = "index/named/"
_GENERATED = re.compile(r"(.+)-(\d{8}-\d{6})-[0-9a-f]{4}")
_GIVEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_MOMENT = "%Y%m%d-%H%M%S"


def generate(name: str) -> str:
    """A new id for a workflow of this name."""
    return f"{name}-{datetime.now().astimezone().strftime(_MOMENT)}-{secrets.token_hex(2)}"


def check_id(workflow_id: str) -> str:
    """The id itself. Raises UserError where it can be no part of an address."""
    if not _GIVEN.fullmatch(workflow_id):
        raise UserError(f"--id {workflow_id!r}: expected a letter or digit, then up to 99 letters, digits, - and _")
    return workflow_id


def note_named(storage: Storage, workflow_id: str, drivers: int) -> None:
    """Note that a workflow of this id begins now, and how many drivers an earlier one of the id has had.

    Nothing changes where it has been noted.
    """
    if not any(storage.list(f"{NAMED}{workflow_id}/")):
        storage.write(f"{NAMED}{workflow_id}/{now_ms()}-{drivers}", b"")


def drivers_before(storage: Storage, workflow_id: str) -> int:
    """How many drivers an earlier workflow of this id has had, which was deleted."""
    noted = [key.rpartition("-")[2] for key in storage.list(f"{NAMED}{workflow_id}/")]
    # Two that noted it at once may have counted differently: a driver of this workflow is none of the earlier one's.
    return min(map(int, noted), default=0)


def forget_named(storage: Storage, workflow_id: str) -> None:
    """Take the note away."""
    for key in list(storage.list(f"{NAMED}{workflow_id}/")):
        storage.delete(key)


def moments(storage: Storage, workflow_ids: Iterable[str]) -> dict[str, int]:
    """When each workflow was created, in milliseconds since 1970; 0 where nothing says it.

    A generated id has the time of the machine that made it, and is read in this machine's zone.
    """
    found = {name: _moment(name) for name in workflow_ids}
    if not all(found.values()):
        for key in storage.list(NAMED):
            _, _, name, noted = key.split("/")
            moment = int(noted.partition("-")[0])
            if name in found:
                found[name] = min(found[name] or moment, moment)
    return found


def by_age(storage: Storage, workflow_ids: Iterable[str]) -> list[str]:
    """The ids, oldest first."""
    found = moments(storage, workflow_ids)
    return sorted(found, key=lambda name: (found[name], name.split("-")[-3:], name))


def chosen(
    storage: Storage, workflow_ids: Iterable[str], *, name: str | None = None, seconds: float | None = None
) -> list[str]:
    """Of these ids, oldest first, those of workflows of this name, created within the last `seconds`.

    The name is that of the workflow, or an id that a user gave, and may have * in it.
    """
    matching = [found for found in workflow_ids if name is None or _is_called(name)(found)]
    if seconds is not None:
        since = now_ms() - 1000 * seconds
        matching = [found for found, moment in moments(storage, matching).items() if moment >= since]
    return by_age(storage, matching)


def _is_called(pattern: str) -> Callable[[str], bool]:
    def called(workflow_id: str) -> bool:
        generated = _GENERATED.fullmatch(workflow_id)
        own = generated[1] if generated is not None else workflow_id
        return fnmatchcase(own, pattern) or fnmatchcase(workflow_id, pattern)

    return called


def _moment(workflow_id: str) -> int:
    generated = _GENERATED.fullmatch(workflow_id)
    if generated is None:
        return 0
    try:
        return int(1000 * time.mktime(time.strptime(generated[2], _MOMENT)))
    except (ValueError, OverflowError):
        return 0
