"""The index: states in key names, one for each workflow, whoever writes and reads meanwhile."""

from __future__ import annotations

import threading

import pytest

from cluster.storage import Storage, open_storage
from pipeline.head import Head
from pipeline.record import listed, mark, unlist
from pipeline.status import find, states


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(f"file://{tmp_path}")


def entries(storage: Storage, name: str) -> list[str]:
    return [key for key in storage.list("index/") if name in key]


def test_a_new_state_takes_the_place_of_those_before(storage):
    mark(storage, "w", "submitted")
    mark(storage, "w", "running", 1)
    mark(storage, "w", "done", 1)
    assert entries(storage, "w") == ["index/states/w.000001.000002-done"]
    assert listed(storage) == {"w": "done"}


def test_what_a_driver_says_after_another_one_took_over_leaves_nothing(storage):
    mark(storage, "w", "running", 2)
    mark(storage, "w", "failed", 1)
    assert entries(storage, "w") == ["index/states/w.000002.000000-running"]


def test_an_index_of_an_earlier_version_is_read_and_goes_on(storage):
    for name in ("000000-submitted", "000001-running", "000001.000002-running", "000001.000003-failed"):
        storage.write(f"index/workflows/new/{name}", b"")
    for name in ("000000-submitted", "000001-running", "000002-done"):
        storage.write(f"index/workflows/old/{name}", b"")
    assert listed(storage) == {"new": "failed", "old": "done"}
    mark(storage, "old", "submitted")
    assert entries(storage, "old") == ["index/states/old.000000.000003-submitted"]
    assert listed(storage) == {"new": "failed", "old": "submitted"}


def test_who_reads_while_others_write_always_finds_a_state(storage):
    mark(storage, "w", "submitted")
    closed = threading.Event()

    def write(epoch: int) -> None:
        while not closed.is_set():
            mark(storage, "w", "running", epoch)

    threads = [threading.Thread(target=write, args=(epoch,)) for epoch in (1, 2)]
    for thread in threads:
        thread.start()
    try:
        found = [listed(storage) for _ in range(300)]
    finally:
        closed.set()
    for thread in threads:
        thread.join()
    assert all(states in ({"w": "submitted"}, {"w": "running"}) for states in found)
    mark(storage, "w", "done", 2)
    assert listed(storage) == {"w": "done"}


def test_a_workflow_whose_id_begins_as_anothers_is_another_one(storage):
    for name in ("toy-1", "toy-10", "toy"):
        mark(storage, name, "done")
    storage.write("index/workflows/toy-11/000000-failed", b"")
    mark(storage, "toy-1", "submitted")
    assert listed(storage) == {"toy": "done", "toy-1": "submitted", "toy-10": "done", "toy-11": "failed"}
    unlist(storage, "toy-1")
    unlist(storage, "toy-11")
    assert listed(storage) == {"toy": "done", "toy-10": "done"}


def test_a_driver_that_ended_before_it_could_say_so_is_not_listed_as_running(storage):
    head = Head.acquire(storage, "workflows/w", "driver", ttl=5)
    assert head is not None
    mark(storage, "w", "running", head.epoch)
    assert states(storage) == {"w": "running"}
    head.release("done")
    assert states(storage) == {"w": "done"}


def test_a_workflow_is_found_by_its_beginning_without_the_others(storage, monkeypatch):
    names = [f"digits-20260101-{number:06d}-aaaa" for number in range(20)]
    for name in names:
        mark(storage, name, "done")
    asked: list[str] = []
    real = type(storage).list

    def note(self: Storage, prefix: str):
        asked.append(prefix)
        return real(self, prefix)

    monkeypatch.setattr(type(storage), "list", note)
    assert find(storage, names[7]) == names[7]
    assert asked == [f"index/workflows/{names[7]}", f"index/states/{names[7]}"]
    assert find(storage, None) == names[19]
