"""The thread that renews a driver's leases: what it takes for a loss, and what it waits for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.storage import Storage, open_storage
from pipeline import keeper, removal
from pipeline.driver_numbers import take_number
from pipeline.head import Head, seize
from pipeline.keeper import LeaseKeeper, cancelled, request_cancel
from tests.unit.pipeline.interposed import interposed

TTL = 0.03
"""The keeper renews a third of it after its start, and none of these leases is anybody else's to take."""
PATIENCE = 60.0


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}")


def acquired(storage: Storage, folder: str) -> Head:
    head = Head.acquire(storage, folder, "driver", ttl=TTL)
    assert head is not None
    return head


def test_a_renewal_that_outlasts_the_end_of_the_lease_is_no_loss(storage, monkeypatch):
    """Storage is slow near the end of a workflow: the keeper still waits for it when the lease is ended."""
    monkeypatch.setattr(keeper, "CLOSE_SECONDS", 0.0)
    renewing, gate, lost = threading.Event(), threading.Event(), list[str]()
    main = threading.current_thread()

    def before(number: int, name: str, key: str) -> None:
        if name == "read_tagged" and threading.current_thread() is not main:
            renewing.set()
            assert gate.wait(PATIENCE)

    slow, _ = interposed(storage, before)
    head = acquired(slow, "workflows/toy-1")
    kept = LeaseKeeper(slow, "toy-1", TTL, lost.append)
    kept.start(head)
    try:
        assert renewing.wait(PATIENCE)
        kept.close()
        head.release("done")
    finally:
        gate.set()
    kept._thread.join(PATIENCE)
    assert not kept._thread.is_alive()
    assert lost == []


@pytest.fixture
def stages(storage: Storage) -> list[str]:
    return [f"stages/toy/{number}" for number in range(3)]


def test_leases_are_renewed_side_by_side(storage, stages):
    """One after the other, those of many stages would outlast the time to live."""
    slow, met = that_meet(storage, 1 + len(stages))
    lost: list[str] = []
    kept = LeaseKeeper(slow, "toy-1", TTL, lost.append)
    for folder in stages:
        kept.hold(acquired(slow, folder))
    kept.start(acquired(slow, "workflows/toy-1"))
    assert met.wait(PATIENCE)
    kept.close()
    assert lost == []


def test_so_are_those_of_a_collection(storage, stages, monkeypatch):
    monkeypatch.setattr(removal, "LEASE_SECONDS", TTL)
    slow, met = that_meet(storage, len(stages))
    with removal.Leases([acquired(slow, folder) for folder in stages]):
        assert met.wait(PATIENCE)


def that_meet(storage: Storage, parties: int) -> tuple[Storage, threading.Event]:
    """A storage in which so many renewals, in threads, wait for each other; and whether they have met."""
    met, main = threading.Event(), threading.current_thread()
    barrier = threading.Barrier(parties, met.set, PATIENCE)

    def before(number: int, name: str, key: str) -> None:
        if name == "read_tagged" and threading.current_thread() is not main:
            barrier.wait()

    return interposed(storage, before)[0], met


def test_a_lease_that_is_dropped_waits_for_its_own_renewal_and_is_not_renewed_again(storage, stages):
    renewing, gate, dropped = threading.Event(), threading.Event(), threading.Event()
    main, rounds, late = threading.current_thread(), threading.Semaphore(0), list[str]()

    def before(number: int, name: str, key: str) -> None:
        if name != "read_tagged" or threading.current_thread() is main:
            return
        if key.startswith("workflows/"):
            rounds.release()
        elif key == f"{stages[0]}/HEAD.json":
            if dropped.is_set():
                late.append(key)
            renewing.set()
            assert gate.wait(PATIENCE)

    slow, _ = interposed(storage, before)
    kept = LeaseKeeper(slow, "toy-1", TTL, lambda why: None)
    heads = [acquired(slow, folder) for folder in stages]
    for head in heads:
        kept.hold(head)
    kept.start(acquired(slow, "workflows/toy-1"))
    dropping = threading.Thread(target=lambda: (kept.drop(heads[0]), dropped.set()))
    try:
        assert renewing.wait(PATIENCE)
        # Others are not waited for.
        kept.drop(heads[1])
        dropping.start()
        assert not dropped.wait(0.2)
    finally:
        gate.set()
    assert dropped.wait(PATIENCE)
    # The round that was under way, and two more.
    for _ in range(3):
        assert rounds.acquire(timeout=PATIENCE)
    kept.close()
    assert late == []


def test_a_second_drop_leaves_whoever_holds_the_folder_by_then(storage, stages):
    """Two stages of a workflow are the same: one fails, and while it still tells so the other has taken the folder."""
    renewed = threading.Event()
    kept = LeaseKeeper(storage, "toy-1", TTL, lambda why: None)
    first = acquired(storage, stages[0])
    kept.hold(first)
    kept.drop(first)
    first.release("failed")

    def before(number: int, name: str, key: str) -> None:
        if name == "compare_and_swap":
            renewed.set()

    second = acquired(storage, stages[0])
    second.storage = interposed(storage, before)[0]
    kept.hold(second)
    kept.drop(first)
    kept.start(acquired(storage, "workflows/toy-1"))
    try:
        assert renewed.wait(PATIENCE)
    finally:
        kept.close()


def test_a_lost_lease_is_told_although_another_could_not_be_renewed(storage, stages):
    def before(number: int, name: str, key: str) -> None:
        if key.startswith("workflows/") and name == "compare_and_swap":
            raise OSError("storage is full")

    told, why = threading.Event(), list[str]()
    head = acquired(storage, "workflows/toy-1")
    head.storage = interposed(storage, before)[0]
    kept = LeaseKeeper(storage, "toy-1", TTL, lambda reason: (why.append(reason), told.set()))
    stage = acquired(storage, stages[0])
    kept.hold(stage)
    seize(storage, stages[0], "another")
    kept.start(head)
    assert told.wait(PATIENCE)
    kept.close()
    assert stages[0] in why[0]


def test_a_driver_that_is_submitted_while_another_is_cancelled_is_cancelled_too(storage):
    acquired(storage, "workflows/toy-1")
    take_number(storage, "toy-1")
    met: list[str] = []

    def before(number: int, name: str, key: str) -> None:
        # A supervisor is as fast as the request: this driver is not in the list that was made for it.
        if name == "write" and not met:
            met.append(key)
            take_number(storage, "toy-1")

    request_cancel(interposed(storage, before)[0], "toy-1")
    assert met == ["workflows/toy-1/CANCEL"]
    assert cancelled(storage, "toy-1", epoch=2, driver=1)
    # One that somebody resumes it with later is not.
    assert not cancelled(storage, "toy-1", epoch=2, driver=take_number(storage, "toy-1"))
