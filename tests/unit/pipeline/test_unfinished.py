"""What killed processes leave of bodies that they were writing: gc removes it, and not what somebody still writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.storage import Storage, open_storage
from pipeline.collection import collect_root
from pipeline.space import space

TEMPORARY = ".patchline/tmp"
KILLED = """
import os, signal, sys
from cluster.storage import open_storage

with open_storage(sys.argv[1]).writer("stages/a/b/shard.tar") as file:
    file.write(b"0" * 10_000_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(f"file://{tmp_path}")


@pytest.fixture
def left(storage: Storage, tmp_path: Path) -> Path:
    """What a killed process has left, a moment ago."""
    killed = subprocess.run([sys.executable, "-c", KILLED, storage.url], check=False)
    assert killed.returncode == -signal.SIGKILL
    (path,) = (tmp_path / TEMPORARY).iterdir()
    assert path.stat().st_size > 0
    return path


def aged(path: Path, hours: float) -> None:
    """Make it so old, by the clock of its file system."""
    then = path.stat().st_ctime - 3600 * hours
    os.utime(path, (then, then))


def test_what_a_killed_process_has_left_for_a_day_is_told_and_removed(storage: Storage, left: Path):
    aged(left, 25)
    size = left.stat().st_size
    told = [{"what": TEMPORARY, "objects": 1, "bytes": size, "kept": ""}]
    assert [asdict(item) for item in collect_root(storage, older_than=604800, dry_run=True)] == told
    assert space(storage).garbage.bytes == size
    assert left.exists()
    assert [asdict(item) for item in collect_root(storage, older_than=604800)] == told
    assert list(left.parent.iterdir()) == []
    assert collect_root(storage, older_than=0) == []


def test_what_may_still_be_written_stays(storage: Storage, left: Path, monkeypatch: pytest.MonkeyPatch):
    aged(left, 23)
    now = time.time()
    # This machine's clock is not the file system's.
    monkeypatch.setattr(time, "time", lambda: now + 30 * 86400)
    assert collect_root(storage, older_than=0) == []
    assert left.exists()


def test_what_is_whole_stays_however_old_it_is(storage: Storage, left: Path, tmp_path: Path):
    tag = storage.write("other/whole", b"body")
    storage.compare_and_swap("other/whole", b"swapped", tag)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            aged(path, 10_000)
    collect_root(storage, older_than=0)
    assert storage.read("other/whole") == (tmp_path / "other" / "whole").read_bytes() == b"swapped"
    assert not left.exists()


def test_a_root_that_is_not_there_is_not_made(tmp_path: Path):
    assert collect_root(open_storage(f"file://{tmp_path}/none"), older_than=0) == []
    assert list(tmp_path.iterdir()) == []
