"""The thread that renews a driver's leases: what it takes for a loss, and what it waits for."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.storage import Storage, open_storage
from pipeline import keeper
from pipeline.head import Head
from pipeline.keeper import LeaseKeeper
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
