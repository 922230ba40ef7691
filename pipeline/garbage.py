"""What dead attempts have left behind: found by its absence from HEAD, and removed by whoever holds the lease."""

from __future__ import annotations

from cluster.storage import Storage
from pipeline.head import HeadDocument

KEPT = ("metrics/", "logs/", "attempt.json", "fault-")
"""Of an attempt that came to nothing: what tells of it."""


def collect(storage: Storage, folder: str, head: HeadDocument) -> int:
    """Remove checkpoints that HEAD does not name, and outputs of attempts without a record; returns how many objects.

    For the holder of the stage's lease, before it starts an attempt: nobody else writes below the folder then but
    processes that lost their lease, whose objects the next call finds.
    """
    named = {item.prefix for item in head.checkpoints} | set(head.refused)
    doomed: list[str] = []
    for name in storage.list_folders(f"{folder}/checkpoints/"):
        prefix = f"{folder}/checkpoints/{name}"
        if prefix not in named:
            keys = list(storage.list(f"{prefix}/"))
            # The manifest first, so that what a killed collection leaves is no checkpoint.
            doomed += sorted(keys, key=lambda key: not key.endswith("/MANIFEST.json"))
    for name in storage.list_folders(f"{folder}/attempts/"):
        if storage.stat(f"{folder}/record-{name}.json") is None:
            prefix = f"{folder}/attempts/{name}/"
            doomed += [key for key in storage.list(prefix) if not key.removeprefix(prefix).startswith(KEPT)]
    for key in doomed:
        storage.delete(key)
    return len(doomed)
