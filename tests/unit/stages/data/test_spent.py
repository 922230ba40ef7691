"""What a loader's threads spend their time on: never more waiting than work, at whatever moment somebody asks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stages.data import spent as spent_module
from stages.data.spent import Clock, Spent, waiting_for_storage
from tests.unit.stages.data.test_loader import loader


@pytest.fixture
def now(monkeypatch):
    """A clock of the test's."""
    found = [100.0]
    monkeypatch.setattr(spent_module.time, "monotonic", lambda: found[0])
    return found


def test_waits_count_with_the_part_that_is_filled_also_while_both_last(now):
    clock = Clock()
    with clock.filling():
        now[0] += 2
        with waiting_for_storage():
            now[0] += 3
            assert clock.so_far() == Spent(filling=5, storage=3)
        now[0] += 1
        assert clock.so_far() == Spent(filling=6, storage=3)
        with waiting_for_storage():
            now[0] += 4
    now[0] += 50
    assert clock.so_far() == Spent(filling=10, storage=7)
    with clock.filling():
        now[0] += 1
    assert clock.so_far() == Spent(filling=11, storage=7)


def test_a_wait_that_fails_has_been_one(now):
    clock = Clock()

    def fill():
        with clock.filling(), waiting_for_storage():
            now[0] += 3
            raise OSError

    with pytest.raises(OSError):
        fill()
    with clock.filling():
        now[0] += 1
    assert clock.so_far() == Spent(filling=4, storage=3)


def test_who_fills_nothing_has_no_part_in_it(now):
    clock = Clock()
    with waiting_for_storage():
        now[0] += 3
    with clock.filling(), ThreadPoolExecutor(1) as pool:
        pool.submit(waits, now).result()
    assert clock.so_far() == Spent(filling=3, storage=0)


def waits(now):
    with waiting_for_storage():
        now[0] += 3


def test_threads_are_summed(now):
    clock, begun, end = Clock(), threading.Barrier(3, timeout=60), threading.Event()

    def fill():
        with clock.filling(), waiting_for_storage():
            begun.wait()
            assert end.wait(60)

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(fill) for _ in range(2)]
        begun.wait()
        now[0] += 3
        assert clock.so_far() == Spent(filling=6, storage=6)
        end.set()
        for each in running:
            each.result()
    assert clock.so_far() == Spent(filling=6, storage=6)


class Gated:
    """A storage over another one, which gives no image, and no tar, before the gate is opened."""

    def __init__(self, inner):
        self.inner, self.asked, self.gate = inner, threading.Event(), threading.Event()

    def download(self, key, path):
        self._wait(key)
        self.inner.download(key, path)

    def read_range(self, key, start, length):
        self._wait(key)
        return self.inner.read_range(key, start, length)

    def _wait(self, key):
        if key.endswith(".tar"):
            self.asked.set()
            assert self.gate.wait(60)


@pytest.mark.parametrize("fetch", ["shards", "samples"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_loader_says_that_it_waits_for_storage_while_it_does(digits, tmp_path, fetch, threads):
    storage = Gated(digits[0])
    batches = loader(
        (storage, digits[1]), tmp_path, global_batch=60, loader_threads=threads, fetch=fetch, fetch_ahead=False
    )
    assert batches.spent() == Spent(0, 0)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(next, batches)
        assert storage.asked.wait(60)
        first, later = batches.spent(), batches.spent()
        storage.gate.set()
        batch.result()
    assert 0 < first.storage <= first.filling
    assert 0 < later.storage - first.storage <= later.filling - first.filling + 1e-9
    batches.close()
    end = batches.spent()
    assert later.storage < end.storage < end.filling
    assert batches.spent() == end, "nobody fills any more"
