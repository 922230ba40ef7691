"""What dead attempts have left behind: found by its absence from HEAD, and removed by whoever holds the lease."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cluster.storage import Storage
from cluster.storage.many import delete_all
from pipeline.head import Head, HeadDocument

KEPT = ("metrics/", "fewshot/", "logs/", "attempt.json", "fault-")
"""Of an attempt that came to nothing: what tells of it."""
MANIFEST = "/MANIFEST.json"
RECENT = 10
"""Newest attempts that are looked at: what a process that lost its lease is still writing belongs to one of these."""


def collect(storage: Storage, head: Head) -> int:
    """Remove checkpoints that HEAD does not name, and outputs of attempts without a record; returns how many objects.

    For the holder of the stage's lease, before it starts an attempt: nobody else writes below the folder then but
    processes that lost their lease, whose objects the next call finds. Raises LeaseLost, and has removed nothing then.
    """
    folder = head.folder
    checkpoints = storage.list_folders(f"{folder}/checkpoints/")
    attempts = sorted(storage.list_folders(f"{folder}/attempts/"), key=int)
    # After the listings: what was there while the epoch was still ours, and is not named then, never will be. What the
    # next driver commits is in folders of attempts of its own.
    doomed = _unnamed(storage, folder, checkpoints, head.read())
    # Those before were looked at when these began.
    for name in attempts[-RECENT:]:
        if storage.stat(f"{folder}/record-{name}.json") is None:
            prefix = f"{folder}/attempts/{name}/"
            doomed += [key for key in storage.list(prefix) if not key.removeprefix(prefix).startswith(KEPT)]
    manifests = [key for key in doomed if key.endswith(MANIFEST)]
    for keys in (manifests, [key for key in doomed if not key.endswith(MANIFEST)]):
        delete_all(storage, keys)
    return len(doomed)


def unreached(
    storage: Storage,
    folder: str,
    read: Callable[[], HeadDocument],
    in_use: Collection[str],
    *,
    recorded_stay: bool = False,
) -> list[str]:
    """Keys of what HEAD does not reach, of all attempts, in the order in which it is to be removed.

    `read` gives HEAD, after the listings, as in `collect`. The output of its own record stays, and those whose key
    prefixes are `in_use`, since other records in use speak of them. So does what tells of attempts; and with
    `recorded_stay` whatever has a record: while a workflow runs that uses the stage, it may have begun with an earlier
    one.
    """
    checkpoints, attempts = (storage.list_folders(f"{folder}/{name}/") for name in ("checkpoints", "attempts"))
    records = set(storage.list(f"{folder}/record-"))
    head = read()
    doomed = _unnamed(storage, folder, checkpoints, head)
    staying = records if recorded_stay else {head.record}
    for name in attempts:
        prefix = f"{folder}/attempts/{name}"
        if prefix not in in_use and f"{folder}/record-{name}.json" not in staying:
            keys = [key for key in storage.list(f"{prefix}/") if not key.removeprefix(f"{prefix}/").startswith(KEPT)]
            doomed += _manifest_first(keys)
    return doomed + sorted(records - staying)


def _unnamed(storage: Storage, folder: str, checkpoints: Collection[str], head: HeadDocument) -> list[str]:
    """Keys of those checkpoints, by their folders' names, that HEAD does not name."""
    named = {item.prefix for item in head.checkpoints} | set(head.refused)
    doomed: list[str] = []
    for name in checkpoints:
        prefix = f"{folder}/checkpoints/{name}"
        if prefix not in named:
            doomed += _manifest_first(list(storage.list(f"{prefix}/")))
    return doomed


def _manifest_first(keys: list[str]) -> list[str]:
    """So that what a killed collection leaves is no checkpoint and no output."""
    return sorted(keys, key=lambda key: not key.endswith(MANIFEST))
