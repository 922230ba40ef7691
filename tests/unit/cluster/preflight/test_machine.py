"""What a machine says of itself, and what a storage's conditions are worth."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.preflight import bandwidth
from cluster.preflight.conditions import AT_ONCE, broken_conditions
from cluster.preflight.machine import PACKAGES, Asked, Machine, look
from cluster.storage import Storage, open_storage
from cluster.storage.file import FileStorage


class Unconditional(FileStorage):
    """Takes every write, as stores do that ignore headers which they do not know."""

    def write_if_absent(self, key: str, data: bytes) -> str:
        return self.write(key, data)

    def compare_and_swap(self, key: str, data: bytes, tag: str) -> str:
        return self.write(key, data)


class Unordered(FileStorage):
    """Looks first and writes then, so that several who create one key at once are all told that they have."""

    def write_if_absent(self, key: str, data: bytes) -> str:
        if self.stat(key) is None:
            return self.write(key, data)
        return super().write_if_absent(key, data)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/root"


def test_a_storage_that_keeps_conditions_has_nothing_against_it_and_nothing_left(any_storage: Storage):
    assert broken_conditions(any_storage, "scratch/check") == []
    assert list(any_storage.list("scratch/")) == []


def test_a_storage_that_ignores_conditions_is_found_out(url: str):
    storage = Unconditional(url)
    first, stale, race = broken_conditions(storage, "scratch/check")
    assert first == "If-None-Match is ignored: what was there has been overwritten"
    assert stale == "If-Match is ignored: a stale ETag has been taken for the newest"
    assert race == "of 8 that created one key at the same time with If-None-Match, 8 were told that they had"
    assert list(storage.list("scratch/")) == []


def test_a_storage_that_looks_first_and_writes_then_is_found_out(url: str, monkeypatch: pytest.MonkeyPatch):
    storage, all_have_looked = Unordered(url), threading.Barrier(AT_ONCE, timeout=60)
    stat = storage.stat

    def slow_stat(key: str):
        found = stat(key)
        if key.endswith("-race"):
            all_have_looked.wait()
        return found

    monkeypatch.setattr(storage, "stat", slow_stat)
    (race,) = broken_conditions(storage, "scratch/check")
    assert race.startswith("of 8 that created one key at the same time")


def test_bandwidth_is_measured_and_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bandwidth, "PIECE", 2**16)
    storage = open_storage(url)
    written, read = bandwidth.bytes_per_s(storage, "scratch/check", 0.05, 3)
    assert written > 0
    assert read > 0
    assert list(storage.list("")) == []


@pytest.mark.parametrize(("asked", "expected"), [(3, 3), (64, 32)])
def test_as_many_objects_are_under_way_as_asked_for_and_not_too_many(
    url: str, monkeypatch: pytest.MonkeyPatch, asked: int, expected: int
):
    monkeypatch.setattr(bandwidth, "PIECE", 2**10)
    storage, barrier, names = open_storage(url), threading.Barrier(expected, timeout=60), set[str]()
    write = storage.write

    def together(key: str, data: bytes) -> str:
        if key not in names:
            names.add(key)
            # Each first write waits until all others are under way too.
            barrier.wait()
        return write(key, data)

    monkeypatch.setattr(storage, "write", together)
    bandwidth.bytes_per_s(storage, "scratch/check", 0.05, asked)
    assert len(names) == expected


def test_a_storage_that_does_not_answer_is_an_error_and_leaves_no_thread_waiting(tmp_path: Path):
    (tmp_path / "root").write_text("no folder")
    with pytest.raises(OSError):
        bandwidth.bytes_per_s(open_storage(f"file://{tmp_path}/root"), "scratch/check", 0.05, 2)


def test_a_machine_tells_what_training_needs_to_know(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bandwidth, "PIECE", 2**16)
    cache = tmp_path / "not" / "yet" / "there"
    asked = Asked(root=url, folder="scratch/check", caches=(str(cache),), seconds=0.05, at_once=2)
    found = look(asked)
    assert set(found.versions) == {"python", *PACKAGES}
    assert (found.cache, found.at_once) == (str(cache), 2)
    assert found.cache_free is not None
    assert min(found.cores, found.cache_free, found.open_files) > 0
    # The one with the least room, such as one that cannot be written.
    both = look(replace(asked, caches=(str(cache), "/proc/1")))
    assert (both.cache, both.cache_free) == ("/proc/1", 0)
    assert look(replace(asked, caches=())).cache_free is None
    assert found.shared_memory >= 0
    assert not cache.exists()
    # As it comes back from a job.
    assert Machine(**json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(
    ("devices", "capabilities", "limit"),
    [
        (("nvidia0", "infiniband/uverbs0"), "0000000000000000", 65536),
        # Root's container with IPC_LOCK; one with every other right has the limit.
        (("nvidia0", "infiniband/uverbs0"), "0000000000004000", None),
        (("nvidia0", "infiniband/uverbs0"), "000001ffffffbfff", 65536),
        (("nvidia0",), "0000000000000000", None),
        (("nvidiactl", "infiniband/uverbs0"), "0000000000000000", None),
    ],
)
def test_what_a_process_may_lock_counts_where_gpus_have_rdma(tmp_path: Path, devices, capabilities, limit):
    for name in devices:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "status").write_text(f"Name:\tpython\nCapPrm:\tffffffffffffffff\nCapEff:\t{capabilities}\n")
    script = f"""
import resource
from pathlib import Path
from cluster.preflight.machine import locked_memory
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
print(locked_memory(Path({str(tmp_path)!r}), Path({str(tmp_path / "status")!r})))
"""
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert told == f"{limit}\n"
