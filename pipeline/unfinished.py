"""What processes that were killed while they wrote have left of a root's bodies."""

from __future__ import annotations

from cluster.storage import Storage
from cluster.storage.file import TEMPORARY, FileStorage
from pipeline.removal import Removed


def remove_unfinished(storage: Storage, *, dry_run: bool = False) -> list[Removed]:
    """Remove it once nobody can be writing there; returns what goes. With `dry_run` nothing changes.

    In a bucket there is nothing to do: what killed uploads leave goes by the bucket's own rules.
    """
    if not isinstance(storage, FileStorage):
        return []
    sizes = storage.remove_unfinished(dry_run=dry_run)
    return [Removed(what=TEMPORARY, objects=len(sizes), bytes=sum(sizes))] if sizes else []
