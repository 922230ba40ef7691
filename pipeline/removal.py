"""`delete`: a workflow and those of its stages that no other workflow uses. Never what somebody uses or runs.

A stage is removed under its lease. While it is held, whoever wants the stage waits; and once the lease is there, it is
looked up again whether a workflow has come to use it. What stays of a folder is HEAD.json, empty, so that a process
that was paused for all that time finds that its lease is lost. `pipeline.collection` removes these later.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event, Lock, Thread

from cluster.errors import UserError
from cluster.storage import Storage
from pipeline.api import state_of
from pipeline.head import Head, HeadDocument, LeaseLost, read_head
from pipeline.ids import forget_named
from pipeline.keeper import Held, renew_all
from pipeline.record import listed, unlist
from pipeline.settings import Settings
from pipeline.status import holder, match_id
from pipeline.usage import AT_ONCE, Named, References, told_by
from stages.metrics import now_ms

LEASE_SECONDS = 15.0
TOO_LATE = "the leases could not be renewed in time: call it again, and it goes on"
TOMBSTONE = ("HEAD.json", "drivers/")
"""Of a workflow: what stays, so that neither its old drivers nor the cluster take a later one of its id for it."""


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A folder, or objects in one, that are removed; or that stay, and why."""

    what: str
    objects: int
    bytes: int
    kept: str = ""


def delete(workflow_id: str, settings: Settings, *, dry_run: bool = False) -> list[Removed]:
    """Remove a workflow's file, events, logs and place in the list, and the stages that it alone uses.

    Tars that an ingestion has written to a `destination` of the user's own stay, and MLflow's runs too. With
    `dry_run` nothing changes. A call that was killed is finished by the next one. Raises UserError where the
    workflow runs.
    """
    storage = settings.storage()
    found = match_id(storage, list(listed(storage)), workflow_id)
    _check_ended(storage, found, settings)
    others = References(storage, without=found)
    named, folders = others.named(), sorted(told_by(storage, found).folders)
    if dry_run:
        return [*planned(storage, folders, named), _whole(storage, f"workflows/{found}")]
    head = take(storage, f"workflows/{found}")
    if head is None:
        raise UserError(f"{found} is held by {holder(storage, found)}: wait for its end")
    with Leases([head]) as leases:
        removed = remove_stages(storage, folders, others.named)
        removed.append(_remove_workflow(storage, found, leases))
        head.clear()
    head.release("stopped")
    return removed


def _check_ended(storage: Storage, workflow_id: str, settings: Settings) -> None:
    """Raise UserError where a workflow runs. One without a file is what a killed deletion has left."""
    if storage.stat(f"workflows/{workflow_id}/workflow.yaml") is None:
        return
    state = state_of(storage, workflow_id, settings)
    if state in ("running", "submitted"):
        raise UserError(f"{workflow_id} is {state}: `patchline cancel {workflow_id}` first, or wait for its end")


def planned(storage: Storage, folders: Sequence[str], named: Named) -> list[Removed]:
    """What `remove_stages` would do."""
    found = []
    for folder in folders:
        head = read_head(storage, folder)
        if named.has(folder):
            found.append(_kept(folder, "another workflow uses it"))
        elif head is not None and head[0].state == "running" and not quiet(head[0]):
            found.append(_kept(folder, f"{head[0].owner} runs it"))
        elif (whole := _whole(storage, folder)).objects:
            found.append(whole)
    return found


def remove_stages(storage: Storage, folders: Sequence[str], named: Callable[[], Named]) -> list[Removed]:
    """Remove the folders that are not named, neither now nor once their leases are held."""
    before, removed = named(), list[Removed]()
    held: dict[str, Head] = {}
    # While others are waited for, those that are held have to be renewed.
    with Leases() as leases:
        for folder in folders:
            if before.has(folder):
                removed.append(_kept(folder, "another workflow uses it"))
            elif _is_removed(storage, folder):
                continue
            elif (head := take(storage, folder)) is None:
                removed.append(_kept(folder, "another driver runs it"))
            else:
                held[folder] = head
                leases.add(head)
        now = named()
        for folder, head in held.items():
            leases.check()
            if now.has(folder):
                leases.drop(head)
                give_back(head)
                removed.append(_kept(folder, "another workflow has come to use it"))
            else:
                removed.append(_erase(storage, head, leases))
    return removed


def take(storage: Storage, folder: str) -> Head | None:
    """The lease of a folder; None where its holder shows that it is alive. Waits until it has run out or is renewed."""
    nonces: list[str] = []

    def waiting(document: HeadDocument) -> bool:
        nonces.append(document.nonce)
        return document.nonce == nonces[0]

    return Head.acquire(storage, folder, owner("delete"), ttl=LEASE_SECONDS, waiting=waiting)


def give_back(head: Head) -> None:
    """End the lease on a folder that stays as it is."""
    record = head.read().record
    if record is not None:
        head.commit_record(record)
    else:
        ended = head.before is not None and head.before.state != "running"
        head.release(head.before.state if head.before is not None and ended else "stopped")


def owner(what: str) -> str:
    """Name of this process as a lease's holder."""
    return f"{what}/{socket.gethostname()}/{os.getpid()}"


class Leases:
    """Several leases that are renewed within a block, from a thread of its own."""

    def __init__(self, heads: Sequence[Head] = ()) -> None:
        self._held, self._lock, self._closed = [Held(head) for head in heads], Lock(), Event()
        self._lost: LeaseLost | None = None
        self._renewed = _seconds()
        self._thread = Thread(target=self._run, name="lease-keeper", daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def check(self) -> None:
        """To be called before each change. Raises LeaseLost, also where nobody can tell any more."""
        if self._lost is not None:
            raise self._lost
        if _seconds() - self._renewed > LEASE_SECONDS * 2 / 3:
            raise LeaseLost(TOO_LATE)

    def add(self, head: Head) -> None:
        """Renew this one too, which has just been taken."""
        with self._lock:
            self._held.append(Held(head))

    def drop(self, head: Head) -> None:
        """Renew this one no more. Called before it is ended, which must not look like a loss."""
        with self._lock:
            held = next(item for item in self._held if item.head is head)
            self._held.remove(held)
        held.drop()

    def _run(self) -> None:
        while not self._closed.wait(LEASE_SECONDS / 5):
            began = _seconds()
            try:
                with self._lock:
                    held = list(self._held)
                renew_all(held)
                self._renewed = began
            except LeaseLost as error:
                self._lost = error
                return
            except Exception as error:
                # Storage may be away for a moment. Until the leases run out nothing is lost.
                print(f"lease not renewed: {error}", flush=True)


def renew_in_time(head: Head) -> None:
    """Renew a lease that nothing else renews. Raises LeaseLost, also where the answer came too late to tell."""
    began = _seconds()
    head.renew()
    if _seconds() - began > LEASE_SECONDS * 2 / 3:
        raise LeaseLost(TOO_LATE)


def _seconds() -> float:
    """A clock that goes on while the machine is suspended, as others' clocks do: where there is one, as on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _erase(storage: Storage, head: Head, leases: Leases) -> Removed:
    """Remove everything but HEAD, which is emptied first: from then on nobody takes the stage for done."""
    head.clear()
    found = _whole(storage, head.folder)

    def remove(key: str) -> None:
        leases.check()
        storage.delete(key)

    keys = [key for key in storage.list(f"{head.folder}/") if key != f"{head.folder}/HEAD.json"]
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="delete")
    try:
        list(pool.map(remove, keys))
    finally:
        pool.shutdown(cancel_futures=True)
    leases.drop(head)
    head.release("stopped")
    return found


def _remove_workflow(storage: Storage, workflow_id: str, leases: Leases) -> Removed:
    """Its file goes first, and its place in the list last: until then a killed deletion can be named again."""
    folder = f"workflows/{workflow_id}"
    found = _whole(storage, folder)
    for key in sorted(storage.list(f"{folder}/"), key=lambda key: not key.endswith("/workflow.yaml")):
        if not key.removeprefix(f"{folder}/").startswith(TOMBSTONE):
            leases.check()
            storage.delete(key)
    leases.check()
    forget_named(storage, workflow_id)
    unlist(storage, workflow_id)
    return found


def _whole(storage: Storage, folder: str) -> Removed:
    sizes = [size for key, size in storage.sizes(f"{folder}/") if not _stays(key.removeprefix(f"{folder}/"))]
    return Removed(what=folder, objects=len(sizes), bytes=sum(sizes))


def _stays(name: str) -> bool:
    return name.startswith(TOMBSTONE)


def _is_removed(storage: Storage, folder: str) -> bool:
    """Whether there is but an empty HEAD, which nobody holds."""
    head = read_head(storage, folder)
    return head is not None and head[0].state != "running" and is_empty(storage, folder)


def is_empty(storage: Storage, folder: str) -> bool:
    """Whether a folder has been removed, or is run for the first time in this moment."""
    return not any(not _stays(key.removeprefix(f"{folder}/")) for key in storage.list(f"{folder}/"))


def _kept(folder: str, why: str) -> Removed:
    return Removed(what=folder, objects=0, bytes=0, kept=why)


def quiet(document: HeadDocument) -> bool:
    """Whether its holder looks dead, by this machine's clock: a hint, on which nothing rests but whether to wait."""
    return now_ms() - document.renewed_ms > 2000 * document.ttl_seconds
