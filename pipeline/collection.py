"""`gc`: what nothing reaches any more in a whole root, once it is old enough.

- Stages that no workflow names, whole.
- In the others: checkpoints that HEAD does not name, outputs of attempts that no record in use speaks of, and records
  that HEAD does not name. Shards, indexes and parts stay: the next attempt looks for them first.
- What deleted workflows and killed verifications have left.

A stage that runs is left alone: its own driver collects. Age is that of the last change of a folder's HEAD, by the
clocks of those who changed it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from cluster.storage import NotFound, Storage
from pipeline.garbage import unreached
from pipeline.head import HeadDocument, read_head
from pipeline.record import listed, read_record
from pipeline.removal import Leases, Removed, give_back, is_empty, planned, quiet, remove_stages, renew_in_time, take
from pipeline.unfinished import remove_unfinished
from pipeline.usage import AT_ONCE, References, stage_folders
from stages.metrics import now_ms

BATCH = 100
"""Stages whose leases are held at once."""
SCRATCH_SECONDS = 86400.0
"""What is younger in `scratch/` may be a verification's that runs: these have no lease."""


def collect_root(storage: Storage, *, older_than: float, dry_run: bool = False) -> list[Removed]:
    """Remove what has been garbage for `older_than` seconds; returns what goes, and what stays although unnamed.

    With `dry_run` nothing changes. A call that was killed is finished by the next one. Raises UserError where the
    file of a workflow that has not ended cannot be read.
    """
    old = _older(older_than)
    everybody = References(storage)
    named, folders = everybody.named(), list(stage_folders(storage))
    unnamed = [folder for folder in folders if not named.has(folder) and _is_old(storage, folder, old)]
    removed = planned(storage, unnamed, named) if dry_run else []
    for start in range(0, 0 if dry_run else len(unnamed), BATCH):
        removed += remove_stages(storage, unnamed[start : start + BATCH], everybody.named)
    in_use = outputs_in_use(storage, folders)
    for folder in folders:
        if folder not in unnamed:
            found = _clean(storage, folder, in_use, everybody, old, dry_run=dry_run)
            removed += [found] if found is not None else []
    removed += _remains(storage, unnamed, old, dry_run=dry_run)
    removed += remove_unfinished(storage, dry_run=dry_run)
    return removed + _scratch(storage, older_than, dry_run=dry_run)


def outputs_in_use(storage: Storage, folders: list[str]) -> set[str]:
    """Key prefixes of the outputs that the records which HEADs name speak of: their own, and their inputs'."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return set(chain.from_iterable(pool.map(lambda folder: _outputs(storage, folder), folders)))


def _outputs(storage: Storage, folder: str) -> list[str]:
    head = read_head(storage, folder)
    if head is None or head[0].record is None:
        return []
    try:
        record = read_record(storage, head[0].record)
    except NotFound:
        return []
    return [record.output_prefix, *(item.prefix for item in record.inputs.values())]


def _clean(
    storage: Storage,
    folder: str,
    in_use: set[str],
    everybody: References,
    old: Callable[[HeadDocument], bool],
    *,
    dry_run: bool,
) -> Removed | None:
    """Remove what a stage's HEAD does not reach, under its lease; None where there is no such thing, or it runs."""
    head = read_head(storage, folder)
    if head is None or not old(head[0]):
        return None
    if head[0].state == "running" and not quiet(head[0]):
        return None
    document = head[0]
    if not unreached(storage, folder, lambda: document, in_use):
        return None
    if dry_run:
        recorded = everybody.named(running=True).has(folder)
        doomed = unreached(storage, folder, lambda: document, in_use, recorded_stay=recorded)
        return _removed(storage, folder, doomed) if doomed else None
    held = take(storage, folder)
    if held is None:
        return None
    with Leases([held]) as leases:
        # Once more: somebody may have had the lease since.
        recorded = everybody.named(running=True).has(folder)
        doomed = unreached(storage, folder, held.read, in_use, recorded_stay=recorded)
        found = _removed(storage, folder, doomed)
        for key in doomed:
            leases.check()
            storage.delete(key)
        leases.drop(held)
        give_back(held)
    return found if doomed else None


def _remains(
    storage: Storage, folders: list[str], old: Callable[[HeadDocument], bool], *, dry_run: bool
) -> list[Removed]:
    """The empty HEADs of removed stages and workflows, and all else of workflows without a file."""
    known = listed(storage)
    bare = [f"workflows/{name}" for name in storage.list_folders("workflows/") if name not in known]
    # A workflow that is just being stored has no HEAD yet; of one with a file nothing is a remainder.
    bare = [folder for folder in bare if storage.stat(f"{folder}/workflow.yaml") is None]
    found = [_remove_remains(storage, folder, old, dry_run=dry_run) for folder in [*folders, *bare]]
    return [item for item in found if item is not None]


def _remove_remains(
    storage: Storage, folder: str, old: Callable[[HeadDocument], bool], *, dry_run: bool
) -> Removed | None:
    head = read_head(storage, folder)
    if head is None or head[0].state == "running" or not old(head[0]) or _is_wanted(storage, folder):
        return None
    if dry_run:
        return _removed(storage, folder, list(storage.list(f"{folder}/")))
    # Under its lease: whoever comes to want the folder in this moment waits, and then makes a HEAD of his own.
    held = take(storage, folder)
    if held is None:
        return None
    with Leases([held]) as leases:
        # Before the look: a workflow of this id that is stored after it keeps its file.
        keys = list(storage.list(f"{folder}/"))
        if _is_wanted(storage, folder):
            # Somebody had it between our look and our lease, and may be done.
            leases.drop(held)
            give_back(held)
            return None
        found = _removed(storage, folder, keys)
        # HEAD last, so that what a killed collection leaves is found again.
        for key in sorted(keys, key=lambda key: key.endswith("/HEAD.json")):
            leases.check()
            if key.endswith("/HEAD.json"):
                # This may wait for a renewal on its way, for longer than the lease lasts.
                leases.drop(held)
                renew_in_time(held)
            storage.delete(key)
    return found


def _is_wanted(storage: Storage, folder: str) -> bool:
    """Whether there is more than what a deletion leaves."""
    if folder.startswith("stages/"):
        return not is_empty(storage, folder)
    return storage.stat(f"{folder}/workflow.yaml") is not None


def _scratch(storage: Storage, older_than: float, *, dry_run: bool) -> list[Removed]:
    """What killed verifications have left: their folders' names begin with the moment."""
    removed = []
    for name in storage.list_folders("scratch/"):
        keys = list(storage.list(f"scratch/{name}/"))
        # Some servers go on listing folders that are empty.
        if keys and int(name.partition("-")[0]) <= now_ms() - 1000 * max(older_than, SCRATCH_SECONDS):
            removed.append(_removed(storage, f"scratch/{name}", keys))
            if not dry_run:
                for key in keys:
                    storage.delete(key)
    return removed


def _removed(storage: Storage, folder: str, keys: list[str]) -> Removed:
    sizes = [found.bytes for key in keys if (found := storage.stat(key)) is not None]
    return Removed(what=folder, objects=len(sizes), bytes=sum(sizes))


def _older(seconds: float) -> Callable[[HeadDocument], bool]:
    limit = now_ms() - 1000 * seconds
    return lambda head: head.renewed_ms <= limit


def _is_old(storage: Storage, folder: str, old: Callable[[HeadDocument], bool]) -> bool:
    """A folder without a HEAD tells nothing of its age, and stays."""
    head = read_head(storage, folder)
    return head is not None and old(head[0])
